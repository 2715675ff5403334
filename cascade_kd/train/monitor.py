"""The validation figure that stops training early (floor 6). B requests, K places, M rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from torch import nn

from cascade_kd.data import Dataset, evaluation_requests
from cascade_kd.metrics import auc, hits, logloss, recall_at
from cascade_kd.models import Model, TowerModel
from cascade_kd.models.shards import shards_of
from cascade_kd.retrieval import IndexConfig
from cascade_kd.stages import RetrievalStage, ScoringStage, event_logits
from cascade_kd.train.distributed import gathered, share_of
from cascade_kd.types import Feature

Monitor = Callable[[], float]


def make_monitor(
    name: str, model: Model, dataset: Dataset, features: Sequence[Feature], label: str, *, index: IndexConfig
) -> tuple[Monitor, bool]:
    """A function that measures ``auc``, ``logloss`` or ``recall@K`` on the validation part, and whether more is better.

    recall@K is taken over the full catalogue with exact inner products, training items left out. Several ranks score a
    share of the rows each and measure all of them; recall@K, and what needs tables that are shared out, every rank
    measures by itself.
    """
    match = re.fullmatch(r"recall@(\d+)", name)
    if match:
        assert isinstance(model, TowerModel), "recall@K is monitored on tower models only; config checks this"
        return _recall_monitor(int(match[1]), model, dataset, features, label, index), True
    rows_M = dataset.rows("valid")
    stage = ScoringStage("monitor", "never", 1, tuple(features), model, dataset)
    label_M = dataset.events.labels[label][rows_M]

    def measure() -> float:
        if isinstance(model, nn.Module) and shards_of(model):  # all ranks look the same rows up
            logits_M = event_logits(stage, dataset, "valid", rows_M)
        else:
            logits_M = gathered(event_logits(stage, dataset, "valid", share_of(rows_M)))
        metric = auc(logits_M, label_M) if name == "auc" else logloss(logits_M, label_M)
        return float("nan") if metric.mean is None else metric.mean

    return measure, name == "auc"


def _recall_monitor(
    k: int, model: TowerModel, dataset: Dataset, features: Sequence[Feature], label: str, index: IndexConfig
) -> Monitor:
    asked = evaluation_requests(dataset, "valid", label)
    exact = index if index.is_exact else IndexConfig()

    def measure() -> float:
        keep = min(k, dataset.num_items)
        stage = RetrievalStage("monitor", "recall", keep, tuple(features), model, dataset, exact, measured=False)
        found = stage(asked.requests)
        hit_BK = hits(found.item_BK, found.valid_BK, asked.offsets_B1, asked.positive_P)
        metric = recall_at(hit_BK, asked.offsets_B1.diff(), k)
        return float("nan") if metric.mean is None else metric.mean

    return measure

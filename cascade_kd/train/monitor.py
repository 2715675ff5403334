"""The validation figure that stops training early (floor 6). B requests, K places, M rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from cascade_kd.data import Dataset, evaluation_requests
from cascade_kd.metrics import auc, hits, logloss, recall_at
from cascade_kd.models import Model, TowerModel
from cascade_kd.models.shards import shards_of
from cascade_kd.retrieval import IndexConfig
from cascade_kd.stages import RetrievalStage, ScoringStage, Stage, event_logits
from cascade_kd.train.distributed import gathered, share_of
from cascade_kd.types import Candidates, Feature

Monitor = Callable[[], float]


@dataclass(frozen=True)
class Received:
    """What the stages before hand on for the validation requests of a label, and how much their scores count."""

    candidates: Candidates
    upstream_weight: float


def make_monitor(
    name: str,
    model: Model,
    dataset: Dataset,
    features: Sequence[Feature],
    label: str,
    *,
    index: IndexConfig,
    received: Received | None = None,
) -> tuple[Monitor, bool]:
    """A function that measures ``auc``, ``logloss`` or ``recall@K`` on the validation part, and whether more is better.

    recall@K is of the order in which a stage serves what it has ``received``, and of all validation positives. A first
    stage receives nothing: it searches the full catalogue by exact inner products, training items left out. Several
    ranks score a share of the rows each and measure all of them; recall@K, and what needs tables that are shared out,
    every rank measures by itself.
    """
    match = re.fullmatch(r"recall@(\d+)", name)
    if match:
        served = _served(int(match[1]), model, dataset, features, index, received)
        return _recall_monitor(int(match[1]), served, dataset, label, received), True
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


def _served(
    k: int,
    model: Model,
    dataset: Dataset,
    features: Sequence[Feature],
    index: IndexConfig,
    received: Received | None,
) -> Callable[[], Stage]:
    """The model as the stage that it is becoming, made anew for every figure, as an index is of the weights."""
    if received is not None:
        weight = received.upstream_weight
        return lambda: ScoringStage("monitor", "never", k, tuple(features), model, dataset, weight)
    assert isinstance(model, TowerModel), "config lets only tower models search the catalogue"
    exact = index if index.is_exact else IndexConfig()
    keep = min(k, dataset.num_items)
    return lambda: RetrievalStage("monitor", "recall", keep, tuple(features), model, dataset, exact, measured=False)


def _recall_monitor(
    k: int, served: Callable[[], Stage], dataset: Dataset, label: str, received: Received | None
) -> Monitor:
    asked = evaluation_requests(dataset, "valid", label)

    def measure() -> float:
        found = served()(asked.requests, received.candidates if received is not None else None)
        hit_BK = hits(found.item_BK, found.valid_BK, asked.offsets_B1, asked.positive_P)
        metric = recall_at(hit_BK, asked.offsets_B1.diff(), k)
        return float("nan") if metric.mean is None else metric.mean

    return measure

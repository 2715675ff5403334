"""The metrics of a cascade, stage by stage and end to end (floor 6). B requests, K places, M rows, I items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from cascade_kd.cascade import Cascade, Trace
from cascade_kd.data import Dataset, EvaluationRequests, evaluation_requests
from cascade_kd.evaluate.consistency import agreement, popularity_of, recall_by_popularity
from cascade_kd.evaluate.settings import EvaluateConfig
from cascade_kd.metrics import (
    auc,
    calibration_curve,
    ece,
    gauc,
    hits,
    logloss,
    ndcg_at,
    platt,
    recall_at,
    survival,
)
from cascade_kd.stages import LogitStage, RetrievalStage, Stage, event_logits

Tree = dict[str, Any]


@dataclass(frozen=True)
class Labelled:
    """What evaluation has to know of a stage beside itself: its label, and whether its logits are probabilities."""

    label: str
    probability_model: bool


@dataclass(frozen=True)
class Evaluation:
    """Metric trees of design: ``stages`` and ``cascade``; calibration bins and test-row logits [M] by stage.

    ``calibrated`` are the logits after the Platt scaling that a loss that is no probability model needs.
    """

    stages: Tree
    cascade: Tree
    calibration: dict[str, list[dict[str, float]]]
    logits: dict[str, Tensor]
    calibrated: dict[str, Tensor]
    trace: Trace
    asked: EvaluationRequests


def evaluate(
    cascade: Cascade,
    dataset: Dataset,
    labelled: Mapping[str, Labelled],
    config: EvaluateConfig,
) -> Evaluation:
    """Ask every test request of the whole catalogue and score every test row.

    Positives of a list are the test events with the last stage's label. recall@k and ndcg@k of a stage look at the
    stage's own order of what it received, k up to what it received (a recall stage: up to its ``keep``), and always
    at its own ``keep``; ``cascade`` holds the last stage's output and the share of positives that every stage keeps
    (``survival``) and drops (``lost``). auc, gauc, logloss and ece are over the test rows of the stage's own label. A
    recall stage also has the facts of its ``index``, which was measured on validation requests, a later one its
    agreement with the order that it received (``previous``); ``popularity`` is recall@keep by groups of items.
    """
    cascade = Cascade(tuple(_masking(stage, config.mask_seen) for stage in cascade.stages))
    last = cascade.stages[-1]
    asked = evaluation_requests(dataset, "test", labelled[last.name].label)
    indices = {  # built before the clock of the trace starts
        stage.name: stage.built(asked.requests.part) for stage in cascade.stages if isinstance(stage, RetrievalStage)
    }
    trace = cascade.trace(asked.requests)
    num_positives_B = asked.offsets_B1.diff()
    group_I1 = popularity_of(dataset)
    stages: Tree = {}
    calibration: dict[str, list[dict[str, float]]] = {}
    logits: dict[str, Tensor] = {}
    calibrated: dict[str, Tensor] = {}
    kept_hits: list[Tensor] = []
    for stage, step in zip(cascade.stages, trace.steps, strict=True):
        tree: Tree = {}
        if isinstance(stage, LogitStage) and "logits" in stage.signals:
            rows = row_metrics(stage, dataset, labelled[stage.name])
            tree, calibration[stage.name] = rows.tree, rows.bins
            logits[stage.name], calibrated[stage.name] = rows.logits_M, rows.calibrated_M
        hit_BK = hits(step.ordered.item_BK, step.ordered.valid_BK, asked.offsets_B1, asked.positive_P)
        width = hit_BK.shape[1]
        tree |= list_metrics(hit_BK, num_positives_B, {k for k in config.k if k <= width} | {min(stage.keep, width)})
        stages[stage.name] = tree | {"seconds_per_1000_requests": 1000 * step.seconds / max(1, len(asked.requests))}
        if stage.name in indices:
            stages[stage.name]["index"] = {**indices[stage.name].facts, "notes": list(indices[stage.name].notes)}
        if step.received is not None:
            stages[stage.name]["previous"] = agreement(step.ordered, step.received, stage.keep)
        kept = hit_BK[:, : stage.keep]
        stages[stage.name]["popularity"] = recall_by_popularity(step.kept, kept, asked, group_I1)
        kept_hits.append(kept.sum(1))
    funnel = survival(kept_hits, num_positives_B)
    final_BK = hits(trace.steps[-1].kept.item_BK, trace.steps[-1].kept.valid_BK, asked.offsets_B1, asked.positive_P)
    width = final_BK.shape[1]
    names = [stage.name for stage in cascade.stages]
    whole = list_metrics(final_BK, num_positives_B, {k for k in config.k if k <= width} | {width})
    whole["survival"] = {name: metric.as_dict() for name, metric in zip(names, funnel.survival, strict=True)}
    whole["lost"] = {name: metric.as_dict() for name, metric in zip(names, funnel.lost, strict=True)}
    whole["found"] = funnel.found.as_dict()
    return Evaluation(stages, whole, calibration, logits, calibrated, trace, asked)


def list_metrics(hit_BK: Tensor, num_positives_B: Tensor, ks: Sequence[int] | set[int]) -> Tree:
    """recall@k and ndcg@k for every k."""
    tree: Tree = {f"recall@{k}": recall_at(hit_BK, num_positives_B, k).as_dict() for k in sorted(ks)}
    return tree | {f"ndcg@{k}": ndcg_at(hit_BK, num_positives_B, k).as_dict() for k in sorted(ks)}


@dataclass(frozen=True)
class RowMetrics:
    """auc, gauc, logloss and ece of the test rows, the calibration bins, the rows' logits [M], and them calibrated."""

    tree: Tree
    bins: list[dict[str, float]]
    logits_M: Tensor
    calibrated_M: Tensor


def row_metrics(stage: LogitStage, dataset: Dataset, labelled: Labelled) -> RowMetrics:
    """The metrics of the test rows of one label.

    Where the loss is not a probability model, logloss, ece and the bins are taken after Platt scaling on the
    validation rows and marked ``"calibrated": "platt"``.
    """
    rows_M = dataset.rows("test")
    label_M = dataset.events.labels[labelled.label][rows_M]
    logits_M = event_logits(stage, dataset, "test", rows_M)
    mark: Tree = {}
    probability_M = logits_M
    if not labelled.probability_model:
        valid_M = dataset.rows("valid")
        slope, intercept = platt(
            event_logits(stage, dataset, "valid", valid_M), dataset.events.labels[labelled.label][valid_M]
        )
        probability_M = logits_M.double() * slope + intercept
        mark = {"calibrated": "platt"}
    curve = calibration_curve(probability_M, label_M)
    bins = [
        {"predicted": float(p), "observed": float(o), "n": int(n)}
        for p, o, n in zip(curve.predicted_b, curve.observed_b, curve.count_b, strict=True)
    ]
    tree = {
        "auc": auc(logits_M, label_M).as_dict(),
        "gauc": gauc(logits_M, label_M, dataset.events.user_N[rows_M]).as_dict(),
        "logloss": logloss(probability_M, label_M).as_dict() | mark,
        "ece": ece(probability_M, label_M).as_dict() | mark,
    }
    return RowMetrics(tree, bins, logits_M, probability_M)


def _masking(stage: Stage, mask_seen: bool) -> Stage:
    return replace(stage, mask_seen=mask_seen) if isinstance(stage, RetrievalStage) else stage

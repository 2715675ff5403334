"""What the stages of an objective make of the logged lists of test requests (floor 8).

N events, M test rows, L lists, K places of a list.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cascade_kd.config import ExperimentConfig
from cascade_kd.data import Dataset
from cascade_kd.distill.objectives import AnyObjective
from cascade_kd.evaluate import Evaluation
from cascade_kd.experiment.lists import list_kind
from cascade_kd.experiment.workshop import Round, logit_stage
from cascade_kd.losses import teacher_order, top_places
from cascade_kd.metrics import joint_recall_at, ndcg_at
from cascade_kd.stages import event_logits
from cascade_kd.train.teacher_lists import LoggedLists, logged_lists


def add_request_metrics(
    config: ExperimentConfig, dataset: Dataset, teachers: Round, evaluation: Evaluation
) -> dict[str, dict[str, Any]]:
    """Put into ``evaluation`` what comes through the stages of every objective on lists of requests.

    ``cascade``: ``joint_recall@k@m``, the truths of a list that survive the budgets ``keep`` of all its stages, m the
    last; ``stages``: ``recall@k@keep`` and ``list_ndcg@k`` of each stage over the full list. k is the objective's, or
    ``all`` where labels are the truth. As LCRON (2025) and RecFlow (ICLR 2025) count. Returns the joint recall by
    objective.
    """
    found: dict[str, dict[str, Any]] = {objective.name: {} for objective in config.objectives}
    for objective in config.objectives:
        if list_kind(config, dataset, objective) not in ("requests", "log"):
            continue
        if objective.teacher is not None and "logits" not in teachers[objective.teacher].stage.signals:
            continue  # it orders candidates, not logged rows
        lists = logged_lists(dataset, part="test")
        truth_LK = _truths(objective, dataset, teachers, lists)
        valid_LK = lists.item_LK > 0
        stages = [config.stage(name) for name in objective.stages]
        scores = [_at(lists, dataset, evaluation.logits[stage.name]) for stage in stages]
        keeps = [stage.keep for stage in stages]
        k = "all" if objective.k is None else objective.k
        name = f"joint_recall@{k}@{keeps[-1]}"
        found[objective.name][name] = joint_recall_at(scores, keeps, truth_LK, valid_LK).as_dict()
        evaluation.cascade[name] = found[objective.name][name]
        for stage, score_LK in zip(stages, scores, strict=True):
            tree = evaluation.stages[stage.name]
            tree[f"recall@{k}@{stage.keep}"] = joint_recall_at([score_LK], [stage.keep], truth_LK, valid_LK).as_dict()
            by_score_LK = teacher_order(score_LK, lists.item_LK, valid_LK)
            depth = valid_LK.shape[1] if objective.k is None else objective.k
            tree[f"list_ndcg@{k}"] = ndcg_at(truth_LK.gather(1, by_score_LK), truth_LK.sum(1), depth).as_dict()
    return found


def _at(lists: LoggedLists, dataset: Dataset, value_M: Tensor) -> Tensor:
    """[L, K] values of the test rows at the places of the lists, 0 where there is none."""
    value_N = value_M.new_zeros(len(dataset.events.item_N))
    value_N[dataset.rows("test")] = value_M
    return value_N[lists.event_LK.clamp(min=0)].masked_fill(lists.event_LK < 0, 0.0)


def _truths(objective: AnyObjective, dataset: Dataset, teachers: Round, lists: LoggedLists) -> Tensor:
    """[L, K] the true rows, or the first k in the order of the teacher or of the log."""
    rows_M = dataset.rows("test")
    if objective.truth == "label":
        assert objective.label is not None, "config fills it in"
        return _at(lists, dataset, dataset.events.labels[objective.label][rows_M]) > 0
    if objective.teacher is not None:
        score_M = event_logits(logit_stage(teachers[objective.teacher]), dataset, "test", rows_M)
    else:
        assert dataset.events.position_N is not None, "config asks for [roles] position"
        score_M = -dataset.events.position_N[rows_M].float()
    valid_LK = lists.item_LK > 0
    order_LK = teacher_order(_at(lists, dataset, score_M), lists.item_LK, valid_LK)
    top_LK = top_places(valid_LK.gather(1, order_LK), objective.k)
    return torch.zeros_like(valid_LK).scatter(1, order_LK, top_LK)

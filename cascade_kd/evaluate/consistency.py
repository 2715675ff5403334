"""How far two orders of the same lists agree, and whom a list serves (floor 6). B requests, K places, I items."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cascade_kd.data import Dataset, EvaluationRequests
from cascade_kd.losses import popularity_groups
from cascade_kd.metrics import group_recall_at, kendall_tau, overlap_at
from cascade_kd.types import Candidates

PAIRS = 1 << 28  # of places, over all lists, that a tau is counted on: a second or so
POPULARITY_GROUPS = 4


def agreement(one: Candidates, other: Candidates, k: int) -> dict[str, Any]:
    """``tau`` and ``overlap@k`` of two orders of the same items.

    Long lists of many requests: tau of as many lists, evenly spaced, as make 2^28 pairs of places; its ``n`` says.
    """
    every = max(1, -(-len(one) * one.width**2 // PAIRS))
    a_BK, b_BK, where_BK = (x[::every] for x in _aligned(one, other))
    k = min(k, one.width)
    return {
        "tau": kendall_tau(a_BK, b_BK, where_BK).as_dict(),
        f"overlap@{k}": overlap_at(one.item_BK, one.valid_BK, other.item_BK, other.valid_BK, k).as_dict(),
    }


def _aligned(one: Candidates, other: Candidates) -> tuple[Tensor, Tensor, Tensor]:
    """The scores of both by item code, and which places hold an item."""
    by_item = [x.item_BK.argsort(dim=1, stable=True) for x in (one, other)]
    scores = [x.score_BK.gather(1, order) for x, order in zip((one, other), by_item, strict=True)]
    return scores[0], scores[1], one.valid_BK.gather(1, by_item[0])


def popularity_of(dataset: Dataset) -> Tensor:
    """[I + 1] the group of every item: 0 the most popular, all of equal mass of training events."""
    group_I = popularity_groups(dataset.training_counts()[1:], POPULARITY_GROUPS)
    return torch.cat([group_I.new_zeros(1), group_I])


def recall_by_popularity(
    kept: Candidates, hit_BK: Tensor, asked: EvaluationRequests, group_I1: Tensor
) -> dict[str, Any]:
    """Recall of a stage's output among the positives of every group of items; group ``1`` is the most popular."""
    metrics = group_recall_at(
        kept.item_BK, hit_BK, asked.offsets_B1, asked.positive_P, group_I1, POPULARITY_GROUPS, kept.width
    )
    return {str(group): metric.as_dict() for group, metric in enumerate(metrics, start=1)}

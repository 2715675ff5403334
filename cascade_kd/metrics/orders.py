"""Metrics of two orders of one list, and of what a cascade's cuts leave of it.

Axes: B lists, K places of a list, in any order; the same for all tensors of a call.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cascade_kd.metrics.metric import Metric, mean_and_stderr


def kendall_tau(score_a_BK: Tensor, score_b_BK: Tensor, valid_BK: Tensor) -> Metric:
    """Kendall's tau-b between two orders of each list, mean over lists; n = lists counted.

    ``(C - D) / sqrt((C + D + A) (C + D + B))``: C and D the pairs of places that both scores order alike and
    differently, A and B those that only the first or only the second ties; pairs tied in both count nowhere, equality
    is exact. Lists where a score is constant or fewer than 2 places are valid have no tau (``without_order``). An order
    known by ranks goes in as their negatives. Cost O(B K^2) time, O(B K) memory. NaN is refused with ValueError.

    Source: Kendall, "The treatment of ties in ranking problems", Biometrika 1945.
    """
    if bool(((score_a_BK.isnan() | score_b_BK.isnan()) & valid_BK).any()):
        raise ValueError("scores hold NaN, which has no order")
    zero_B = torch.zeros(len(valid_BK), dtype=torch.int64, device=valid_BK.device)
    agree_B, ordered_a_B, ordered_b_B = zero_B, zero_B.clone(), zero_B.clone()
    for shift in range(1, valid_BK.shape[1]):  # every pair of places once, without K^2 memory
        both = valid_BK[:, shift:] & valid_BK[:, :-shift]
        a, b = (_sign(score_BK[:, shift:], score_BK[:, :-shift]) * both for score_BK in (score_a_BK, score_b_BK))
        agree_B = agree_B + (a * b).sum(dim=1)
        ordered_a_B, ordered_b_B = ordered_a_B + a.abs().sum(dim=1), ordered_b_B + b.abs().sum(dim=1)
    some_B = (ordered_a_B > 0) & (ordered_b_B > 0)
    scale_B = ordered_a_B.double().sqrt() * ordered_b_B.double().sqrt()
    extra = {"without_order": int((~some_B).sum())}
    return mean_and_stderr((agree_B / scale_B)[some_B], extra=extra, none="no list has two orders to compare")


def _sign(left: Tensor, right: Tensor) -> Tensor:
    """1 where the first is larger, -1 where it is smaller; of infinities too, whose difference has no sign."""
    return (left > right).to(torch.int8) - (left < right).to(torch.int8)


def survivors(scores: Sequence[Tensor], keeps: Sequence[int], valid_BK: Tensor) -> Tensor:
    """What stages leave of a list when each keeps its top ``keeps[s]`` of what the stage before it kept, bool [B, K].

    Ties go to the earlier place, so put places in the order of item codes. Raises ValueError unless every stage has
    scores and a budget of at least 1.
    """
    if len(scores) != len(keeps) or min(keeps, default=0) < 1:
        raise ValueError(f"every stage needs scores and a budget >= 1, got {len(scores)} stages and budgets {keeps}")
    left_BK = valid_BK
    for score_BK, keep in zip(scores, keeps, strict=True):
        by_score_BK = score_BK.argsort(dim=1, descending=True, stable=True)
        sorted_BK = left_BK.gather(1, by_score_BK)
        kept_BK = sorted_BK & (sorted_BK.cumsum(dim=1) <= keep)
        left_BK = torch.zeros_like(left_BK).scatter(1, by_score_BK, kept_BK)
    return left_BK


def joint_recall_at(scores: Sequence[Tensor], keeps: Sequence[int], truth_BK: Tensor, valid_BK: Tensor) -> Metric:
    """Joint Recall@k@m: share of a list's ground truths among the :func:`survivors` of all stages, mean over lists.

    k is the number of ground truths marked in ``truth_BK`` (at valid places), m the last budget. With one stage it is
    the Recall@k@m of that stage over the full list. n = lists with a ground truth; the others are left out and
    counted in ``without_truth``. Source: LCRON, 2025, after RecFlow, ICLR 2025.
    """
    truth_BK = truth_BK & valid_BK
    num_B = truth_BK.sum(dim=1)
    found_B = (survivors(scores, keeps, valid_BK) & truth_BK).sum(dim=1)
    some_B = num_B > 0
    extra = {"without_truth": int((~some_B).sum())}
    return mean_and_stderr((found_B.double() / num_B)[some_B], extra=extra, none="no list has a ground truth")

"""Places of a teacher's list: who comes first, at which position, with which weight.

Axes: B lists, K places of a list, N sampled items.

Everywhere in this package the places of a list stand in the teacher's order, place 0 its first. A position is the
number of a place from 1 among the places that count, so that masking a place is removing it; padded places have 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cascade_kd.losses.checks import check_same_shape


def teacher_order(teacher_score_BK: Tensor, item_BK: Tensor, where_BK: Tensor) -> Tensor:
    """Places of every list from the teacher's first to its last, [B, K]: what to ``gather`` with.

    By score, highest first; ties go to the smaller item code; padded places come last. Strictly increasing transforms
    of the scores give the same order. Raises ValueError for a NaN among the places that count.
    """
    check_same_shape(teacher_score_BK, where_BK, "teacher scores and their mask")
    check_same_shape(item_BK, where_BK, "items and their mask")
    if bool((teacher_score_BK.isnan() & where_BK).any()):
        raise ValueError("the teacher's scores hold NaN, which has no order; find the row that made it")
    # Stable sorts, the last key first: item code, score, padding.
    order_BK = item_BK.argsort(dim=1, stable=True)
    by_score_BK = teacher_score_BK.gather(1, order_BK).argsort(dim=1, descending=True, stable=True)
    order_BK = order_BK.gather(1, by_score_BK)
    return order_BK.gather(1, _true_first(where_BK.gather(1, order_BK)))


def _true_first(where_BK: Tensor) -> Tensor:
    return where_BK.to(torch.uint8).argsort(dim=1, descending=True, stable=True)


def positions(where_BK: Tensor) -> Tensor:
    """Position of every place, from 1 among the places that count, 0 where padded; int64 [B, K]."""
    return where_BK.cumsum(dim=1).masked_fill(~where_BK, 0)


def top_places(where_BK: Tensor, k: int | Tensor | None) -> Tensor:
    """Mask of the first k places that count, all of them if there are fewer or ``k`` is None; bool [B, K].

    ``k`` [B] is of every list its own.
    """
    check_k(k)
    if k is None:
        return where_BK
    return where_BK & (where_BK.cumsum(dim=1) <= (k.unsqueeze(1) if isinstance(k, Tensor) else k))


def first_places(where_BK: Tensor, k: int | Tensor | None) -> Tensor:
    """Numbers of the first k places that count, int64 [B, min(k, K)]; padded places follow where there are fewer.

    With ``k`` [B], one of every list, as many as the largest.
    """
    check_k(k)
    return _true_first(where_BK)[:, : int(k.max()) if isinstance(k, Tensor) else k]


def student_rank(score_BK: Tensor, where_BK: Tensor) -> Tensor:
    """Rank of every place by the student's score, from 1 at the highest, int64 [B, K]; padded places come last.

    Ties go to the teacher's earlier place.
    """
    order_BK = score_BK.detach().masked_fill(~where_BK, 0.0).argsort(dim=1, descending=True, stable=True)
    order_BK = order_BK.gather(1, _true_first(where_BK.gather(1, order_BK)))
    rank_K = torch.arange(1, order_BK.shape[1] + 1, device=order_BK.device)
    return torch.empty_like(order_BK).scatter_(1, order_BK, rank_K.expand_as(order_BK))


def estimated_rank(score_BK: Tensor, sampled_BN: Tensor, *, where_BN: Tensor, num_items: int) -> Tensor:
    """The student's rank of every place among all items, from 1, estimated from a sample of scores, int64 [B, K].

    ``1 + floor((num_items - 1) * share of the sampled scores above)``, 1 without a sample. Source: Tang and Wang,
    "Ranking distillation", KDD 2018, arXiv:1809.07428.
    """
    check_same_shape(sampled_BN, where_BN, "sampled scores and their mask")
    ascending_BN = sampled_BN.detach().masked_fill(~where_BN, -math.inf).sort(dim=1).values  # -inf is above none
    not_above_BK = torch.searchsorted(ascending_BN, score_BK.detach().contiguous(), right=True)
    above_BK = sampled_BN.shape[1] - not_above_BK
    return 1 + (num_items - 1) * above_BK // where_BN.sum(dim=1, keepdim=True).clamp(min=1)


def position_weight(position_BK: Tensor, alpha: float) -> Tensor:
    """Weight of a positive by its position in the teacher's list, ``1 + alpha / position``, position from 1.

    In the type of ``position_BK`` if that is floating. Source: Zhang Junlin, "Knowledge distillation in recommender
    systems", 2020 (alpha is tuned, no value given). Raises ValueError unless alpha is a finite number >= 0.
    """
    if not 0.0 <= alpha < math.inf:
        raise ValueError(f"alpha must be a finite number >= 0, got {alpha}")
    return 1 + alpha / position_BK.clamp(min=1)


def decay_weight(where_BK: Tensor, scale: float, k: int | None = None) -> Tensor:
    """Weight ``e^{-position / scale}`` over the first k places, normalised to sum 1 a list, float64 [B, K].

    RD's position weight (scale 1, k 10), and the chance to be drawn of RRD's interesting items (scale 10) and CD's.
    """
    if not 0.0 < scale < math.inf:
        raise ValueError(f"scale must be a finite number > 0, got {scale}")
    top_BK = top_places(where_BK, k)
    decay_BK = (-positions(where_BK).double() / scale).masked_fill(~top_BK, torch.finfo(torch.float64).min)
    return decay_BK.softmax(dim=1).masked_fill(~top_BK, 0.0)


def gap_weight(gap_BK: Tensor, scale: float) -> Tensor:
    """Weight of a difference of ranks, ``tanh(max(scale * gap, 0))``, float64: 0 where the ranks agree.

    RD's rank-difference weight and DCD's chance to be drawn: ``gap`` is the student's rank minus the teacher's
    position (under-estimated items), or the reverse (over-estimated ones).
    """
    return (scale * gap_BK.double()).clamp(min=0).tanh()


def check_k(k: int | Tensor | None) -> None:
    """Raise ValueError for a k below 1."""
    lowest = int(k.min()) if isinstance(k, Tensor) and k.numel() else k
    if isinstance(lowest, int) and lowest < 1:
        raise ValueError(f"k must be >= 1, got {lowest}")

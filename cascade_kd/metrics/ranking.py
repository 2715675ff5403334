"""Metrics of ranked lists against sets of positives and against each other.

Axes: B users (requests), K places of a list, best first, P (user, positive item) pairs, H hits, G groups of items.
Sets of positives are ragged: row b holds ``positive_P[offsets_B1[b]:offsets_B1[b + 1]]``, ascending and distinct.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cascade_kd.masked import is_member
from cascade_kd.metrics.metric import Metric, mean_and_stderr


def hits(item_BK: Tensor, valid_BK: Tensor, offsets_B1: Tensor, positive_P: Tensor) -> Tensor:
    """Whether the item at each place is one of its user's positives; bool [B, K], false at padded places.

    Raises ValueError for positives that are not ascending and distinct within a user: they would be counted twice.
    """
    member_BK = is_member(item_BK, offsets_B1, positive_P)
    starts_P = torch.zeros(len(positive_P) + 1, dtype=torch.bool, device=positive_P.device)
    starts_P[offsets_B1] = True  # the first positive of a user may be smaller than the one before it
    if not bool(((positive_P.diff() > 0) | starts_P[1:-1]).all()):
        raise ValueError("the positives of each user must be ascending and distinct")
    return member_BK & valid_BK


def _over_users(value_B: Tensor, num_positives_B: Tensor) -> Metric:
    counts_B = num_positives_B > 0
    extra = {"without_positives": int((~counts_B).sum())}
    return mean_and_stderr(value_B[counts_B], extra=extra, none="no user has a positive")


def recall_at(hit_BK: Tensor, num_positives_B: Tensor, k: int) -> Metric:
    """Hits in the first k places / all positives of the user (not min(k, positives)), mean over users.

    n = users with a positive; the others are left out and counted in ``without_positives``.
    """
    found_B = hit_BK[:, :k].sum(dim=1)
    return _over_users(found_B.double() / num_positives_B, num_positives_B)


def group_recall_at(
    item_BK: Tensor, hit_BK: Tensor, offsets_B1: Tensor, positive_P: Tensor, group_I: Tensor, num_groups: int, k: int
) -> list[Metric]:
    """Recall@k of the positives of each group of items, group by group: what a list does for unpopular items.

    Hits in the first k places that belong to the group / the user's positives in it, mean over users who have one;
    as :func:`recall_at` otherwise. ``group_I`` maps item codes to groups 0 to G - 1, ``hit_BK`` comes of :func:`hits`.
    """
    user_P = torch.arange(len(item_BK), device=item_BK.device).repeat_interleave(offsets_B1.diff())
    num_BG = _count_groups(user_P, group_I[positive_P], len(item_BK), num_groups)
    user_H, place_H = hit_BK[:, :k].nonzero(as_tuple=True)
    found_BG = _count_groups(user_H, group_I[item_BK[user_H, place_H]], len(item_BK), num_groups)
    return [_over_users(found_BG[:, g].double() / num_BG[:, g], num_BG[:, g]) for g in range(num_groups)]


def _count_groups(user_P: Tensor, group_P: Tensor, num_users: int, num_groups: int) -> Tensor:
    return torch.bincount(user_P * num_groups + group_P, minlength=num_users * num_groups).view(num_users, num_groups)


def ndcg_at(hit_BK: Tensor, num_positives_B: Tensor, k: int) -> Metric:
    """Normalised discounted cumulative gain with binary gain, mean over users.

    ``sum_{r <= k} hit_r / log2(1 + r)`` over the same sum of a perfect list of ``min(k, positives)`` hits, rank r
    from 1. n = users with a positive; the others are left out and counted in ``without_positives``.
    """
    discount_K = 1.0 / torch.log2(1.0 + torch.arange(1, k + 1, dtype=torch.float64))
    ideal_K = discount_K.cumsum(0).to(hit_BK.device)  # summed on the CPU: CUDA has no order of its own
    discount_K = discount_K.to(hit_BK.device)
    gain_B = hit_BK[:, :k].double() @ discount_K[: hit_BK.shape[1]]
    return _over_users(gain_B / ideal_K[num_positives_B.clamp(1, k) - 1], num_positives_B)


def overlap_at(item_a_BK: Tensor, valid_a_BK: Tensor, item_b_BJ: Tensor, valid_b_BJ: Tensor, k: int) -> Metric:
    """Share of the top k that two lists of one user have in common, order aside, mean over users.

    ``|top-k of a with top-k of b| / k``; where the longer of the two lists has fewer than k valid places, divided by
    that length instead (``short_lists`` counts them). Users with two empty lists are left out (``empty_lists``).
    n = users counted. Items are codes >= 0, distinct within a list.
    """
    a_BK = item_a_BK[:, :k].masked_fill(~valid_a_BK[:, :k], -1)
    b_BK = item_b_BJ[:, :k].masked_fill(~valid_b_BJ[:, :k], -1)
    both_BK = torch.cat([a_BK, b_BK], dim=1).sort(dim=1).values
    common_B = ((both_BK[:, 1:] == both_BK[:, :-1]) & (both_BK[:, 1:] >= 0)).sum(dim=1)
    length_B = torch.maximum((a_BK >= 0).sum(dim=1), (b_BK >= 0).sum(dim=1))
    some_B = length_B > 0
    extra = {"short_lists": int(((length_B < k) & some_B).sum()), "empty_lists": int((~some_B).sum())}
    return mean_and_stderr(
        (common_B.double() / length_B)[some_B], extra=extra, none="both lists of all users are empty"
    )

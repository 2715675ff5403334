"""Listwise losses: the chance that the student's Plackett-Luce model gives to the teacher's order.

Axes: B lists, K places (in the teacher's order where the loss reads it off the places), L uninteresting items,
S sampled permutations.

The position weights ``1 + alpha / position`` are scaled to mean 1 over the places that they weigh, so that alpha moves
emphasis and not size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cascade_kd.losses.checks import check_same_shape, check_teacher
from cascade_kd.losses.order.places import position_weight, positions, top_places
from cascade_kd.masked import mask_logits, masked_log_softmax, masked_sum


def _fill_low(score_BK: Tensor, where_BK: Tensor) -> Tensor:
    """Scores with padded places so far below their list's lowest that no sum of exponentials feels them.

    Not the lowest number of the type, which the gradient of logcumsumexp takes for its own.
    """
    highest = torch.finfo(score_BK.dtype).max
    low_B1 = score_BK.detach().masked_fill(~where_BK, highest).amin(dim=1, keepdim=True) - 1000
    low_B1 = low_B1.masked_fill(~where_BK.any(dim=1, keepdim=True), 0.0)
    return torch.where(where_BK, score_BK, low_B1)


def _suffix_logsumexp(score_BK: Tensor) -> Tensor:
    """``log sum_{j >= i} exp(s_j)`` at every place."""
    return score_BK.flip(1).logcumsumexp(dim=1).flip(1)


def listmle(score_BK: Tensor, *, where_BK: Tensor, k: int | Tensor | None = None, alpha: float = 0.0) -> Tensor:
    """``-sum_{i <= k} w_i (s_i - log sum_{j >= i} exp(s_j))``: minus the log-chance of the teacher's first k, [B].

    All places if k is None; ``k`` [B] is of every list its own: what stands behind is in no order. exp(-loss) sums to
    1 over the orders of the list (over the ordered k-tuples). The sum, not the mean, over places: its gradient has the
    size of the list's. With two places it is RankNet.

    Source: Xia et al., "Listwise approach to learning to rank", ICML 2008; top-k truncation after Xia, Liu, Li,
    "Statistical consistency of top-k ranking", NIPS 2009.
    """
    check_same_shape(score_BK, where_BK, "scores and their mask")
    score_BK, top_BK = _fill_low(score_BK, where_BK), top_places(where_BK, k)
    weight_BK = position_weight(positions(where_BK).to(score_BK.dtype), alpha) * top_BK
    weight_BK = weight_BK * (top_BK.sum(dim=1) / weight_BK.sum(dim=1).clamp(min=1)).unsqueeze(1)
    return masked_sum(weight_BK * (_suffix_logsumexp(score_BK) - score_BK), top_BK)


def listnet(student_BK: Tensor, teacher_BK: Tensor, *, where_BK: Tensor, alpha: float = 0.0) -> Tensor:
    """Cross entropy of the top-1 chances, ``-sum_i q_i log softmax(l)_i``, where the teacher has scores, [B].

    ``q`` is the softmax of the teacher's scores times the position weight, normalised again; only the weight reads
    the places as the teacher's order. Not 0 at l = z (``kl_listwise`` is, with the same gradient and a temperature).

    Source: Cao et al., "Learning to rank: from pairwise approach to listwise approach", ICML 2007.
    """
    check_teacher(student_BK, teacher_BK)
    check_same_shape(student_BK, where_BK, "student and its mask")
    log_w_BK = position_weight(positions(where_BK).to(student_BK.dtype), alpha).log()
    q_BK = torch.softmax(mask_logits(teacher_BK + log_w_BK, where_BK), dim=1)
    return masked_sum(-q_BK * masked_log_softmax(student_BK, where_BK), where_BK)


def rankdistil(
    score_BK: Tensor, order_BSK: Tensor, *, where_BK: Tensor, k: int | None = None, alpha: float = 0.0
) -> Tensor:
    """Cross entropy of teacher's and student's top-k Plackett distributions over sampled orders, [B].

    The mean of :func:`listmle` over S orders of the places drawn from the teacher (``draw_permutations``), an unbiased
    estimate. With k = 1 its expectation is :func:`listnet`. Source: Reddi et al., "RankDistil", AISTATS 2021.
    Differs: without the constant log (N - k)!, which has no gradient.
    """
    check_same_shape(score_BK, where_BK, "scores and their mask")
    if order_BSK.ndim != 3 or (order_BSK.shape[0], order_BSK.shape[2]) != tuple(score_BK.shape):
        raise ValueError(f"orders must be [B, S, K] of scores {tuple(score_BK.shape)}, got {tuple(order_BSK.shape)}")
    ordered_BSK = score_BK[:, None, :].expand(order_BSK.shape).gather(2, order_BSK)
    where_BSK = where_BK[:, None, :].expand(order_BSK.shape).gather(2, order_BSK)
    loss = listmle(ordered_BSK.flatten(0, 1), where_BK=where_BSK.flatten(0, 1), k=k, alpha=alpha)
    return loss.view(order_BSK.shape[:2]).mean(dim=1)


def relaxed_ranking(interesting_BK: Tensor, uninteresting_BL: Tensor, *, where_BK: Tensor, where_BL: Tensor) -> Tensor:
    """RRD: minus the log-chance that interesting items come in the teacher's order, before all uninteresting ones, [B].

    ``-sum_k (s_k - log(sum_{i >= k} exp(s_i) + sum_j exp(u_j)))``; the order of the uninteresting items does not
    matter. One interesting item makes it a softmax cross entropy, no uninteresting one ListMLE. DCD's loss has
    under-estimated items in the first block and over-estimated ones in the second.

    Source: Kang et al., "DE-RRD", CIKM 2020, arXiv:2012.04357; Lee and Kim, "Dual correction strategy for
    ranking distillation", CIKM 2021, arXiv:2109.03459.
    """
    check_same_shape(interesting_BK, where_BK, "interesting scores and their mask")
    check_same_shape(uninteresting_BL, where_BL, "uninteresting scores and their mask")
    score_BK = _fill_low(interesting_BK, where_BK)
    rest_B1 = mask_logits(uninteresting_BL, where_BL).logsumexp(dim=1, keepdim=True)
    return masked_sum(torch.logaddexp(_suffix_logsumexp(score_BK), rest_B1) - score_BK, where_BK)

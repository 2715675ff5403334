"""NeuralSort: a permutation matrix with a gradient, and the chance to be among its first rows.

Axes: B lists, R ranks, K places of a list. All in log space, so that no temperature and no score gives 0 or NaN.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cascade_kd.losses.checks import check_same_shape, check_temperature
from cascade_kd.losses.order.places import check_k
from cascade_kd.masked import mask_logits, masked_log_softmax


def neural_sort(score_BK: Tensor, *, where_BK: Tensor, temperature: float) -> Tensor:
    """Soft permutation matrix of the descending order, [B, R, K] with R = K; padded rows and columns are 0.

    ``P_r = softmax(((n + 1 - 2 r) s - A 1) / tau)``, ``A_ij = |s_i - s_j|``, over the n places that count. Rows sum to
    1, columns need not; tau -> 0 gives the permutation matrix of the descending order. Memory O(B K^2).

    Source: Grover et al., "Stochastic optimization of sorting networks via continuous relaxations", ICLR 2019.
    """
    log_p_BRK = log_neural_sort(score_BK, where_BK=where_BK, temperature=temperature)
    return log_p_BRK.exp().masked_fill(~_both(where_BK), 0.0)


def log_neural_sort(score_BK: Tensor, *, where_BK: Tensor, temperature: float) -> Tensor:
    """Logarithm of :func:`neural_sort`, [B, R, K]; the lowest finite number in padded rows and columns."""
    check_same_shape(score_BK, where_BK, "scores and their mask")
    check_temperature(temperature)
    score_BK = score_BK.masked_fill(~where_BK, 0.0)
    rank_R = torch.arange(1, score_BK.shape[1] + 1, device=score_BK.device)
    slope_BR = (where_BK.sum(dim=1, keepdim=True) + 1 - 2 * rank_R).to(score_BK.dtype)
    gap_BKK = (score_BK[:, :, None] - score_BK[:, None, :]).abs().masked_fill(~where_BK[:, None, :], 0.0)
    logits_BRK = (slope_BR[:, :, None] * score_BK[:, None, :] - gap_BKK.sum(dim=2)[:, None, :]) / temperature
    both_BRK = _both(where_BK)
    return mask_logits(masked_log_softmax(logits_BRK, both_BRK), both_BRK)


def _both(where_BK: Tensor) -> Tensor:
    """Rows up to the number of places that count, and their columns."""
    rank_R = torch.arange(where_BK.shape[1], device=where_BK.device)
    return (rank_R < where_BK.sum(dim=1, keepdim=True))[:, :, None] & where_BK[:, None, :]


class Membership(NamedTuple):
    """Log-chances of every place to be in a stage's first q and to be cut by it."""

    log_in_BK: Tensor
    log_out_BK: Tensor
    cuts_B: Tensor  # whether the stage cuts this list at all, that is has fewer places than it


def membership(log_p_BRK: Tensor, q: int, *, where_BK: Tensor) -> Membership:
    """Top-q membership of every place from :func:`log_neural_sort`, columns normalised under stop-gradient.

    ``log (sum_{r <= q} P_r / sg(sum_r P_r))`` and the same over r > q. The two chances sum to 1, while over places the
    first do not sum to q. A stage that keeps the whole list cuts nothing: chances 1 and 0, without gradient.

    Source: LCRON, 2025 (kwai/LCRON). Differs: in log space, without its 1e-6 in denominators and logarithms.
    """
    check_k(q)
    lowest = torch.finfo(log_p_BRK.dtype).min / 4  # so that a few of them can be added
    cuts_B = where_BK.sum(dim=1) > q
    counts_BK = where_BK & cuts_B[:, None]
    log_all_BK = log_p_BRK.detach().logsumexp(dim=1)
    log_in_BK = log_p_BRK[:, :q].logsumexp(dim=1) - log_all_BK
    beyond = q if q < log_p_BRK.shape[1] else 0  # where no list is longer than q, all are masked below
    log_out_BK = log_p_BRK[:, beyond:].logsumexp(dim=1) - log_all_BK
    return Membership(log_in_BK.masked_fill(~counts_BK, 0.0), log_out_BK.masked_fill(~counts_BK, lowest), cuts_B)

"""Losses against labels.

Axes: R rows (request, item), B examples of a batch, N columns (items of the batch or of a sample).

The losses over columns take the target's place among them in ``target_B``, and in ``where_BN`` the columns that count.
A row whose own target is masked holds no example: value and gradient 0.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from cascade_kd.losses.checks import check_same_shape
from cascade_kd.masked import mask_logits, masked_mean


def bce(logits_R: Tensor, label_R: Tensor) -> Tensor:
    """Binary cross entropy of a logit, [R], natural log.

    ``-y log sigmoid(l) - (1 - y) log sigmoid(-l)``, finite at any logit. Labels are 0 and 1 or any share between
    (soft labels). Raises ValueError for different shapes.
    """
    check_same_shape(logits_R, label_R, "logits and labels")
    return F.binary_cross_entropy_with_logits(logits_R, label_R.to(logits_R.dtype), reduction="none")


def sampled_softmax(score_BN: Tensor, target_B: Tensor, *, log_q_N: Tensor | None = None, where_BN: Tensor) -> Tensor:
    """Softmax cross entropy of each row's target column among sampled columns, corrected for their sampling, [B].

    ``-log softmax(score - log_q)[target]`` over the columns of ``where_BN``. ``target_B`` are column numbers (for
    in-batch negatives ``arange(B)``), ``log_q_N`` the log-probability that a column's item is drawn into the batch
    ([B, N] where rows have columns of their own), None where all are equally likely: over the whole catalogue it is the
    full softmax. Accidental hits, that is other columns with the target's item, are the caller's to mask.

    Source: Yi et al., "Sampling-bias-corrected neural modeling for large corpus item recommendations", RecSys 2019,
    section 3 (the correction applies to the target as well). Differs: ``log_q`` is given, not estimated online.
    """
    check_same_shape(score_BN, where_BN, "scores and their mask")
    # Not by masked_log_softmax: one column of it is wanted, and over thousands of columns every pass counts.
    logits_BN = mask_logits(score_BN if log_q_N is None else score_BN - log_q_N, where_BN)
    there_B = where_BN.gather(1, target_B.unsqueeze(1)).squeeze(1)
    return F.cross_entropy(logits_BN, target_B, reduction="none").masked_fill(~there_B, 0.0)


def bpr(score_BN: Tensor, target_B: Tensor, *, where_BN: Tensor) -> Tensor:
    """Bayesian personalised ranking: mean over the other columns of ``-log sigmoid(s_target - s_j)``, [B].

    0 for a row without another column. Source: Rendle et al., UAI 2009, section 4.1, without its regulariser, which is
    the optimiser's weight decay. Differs: the mean over several negatives of a positive instead of one.
    """
    target_B1, there_B, others_BN = _split(score_BN, target_B, where_BN)
    loss_B = masked_mean(F.softplus(score_BN.masked_fill(~others_BN, 0.0) - target_B1), others_BN)
    return loss_B.masked_fill(~there_B, 0.0)


def ccl(cosine_BN: Tensor, target_B: Tensor, *, margin: float, negative_weight: float, where_BN: Tensor) -> Tensor:
    """Cosine contrastive loss: ``1 - c_target + w * mean over the other columns of max(0, c_j - margin)``, [B].

    Cosines in, not logits. Source: Mao et al., "SimpleX", CIKM 2021, eq. 2.
    """
    target_B1, there_B, others_BN = _split(cosine_BN, target_B, where_BN)
    excess_BN = (cosine_BN.masked_fill(~others_BN, 0.0) - margin).clamp(min=0)
    loss_B = 1 - target_B1.squeeze(1) + negative_weight * masked_mean(excess_BN, others_BN)
    return loss_B.masked_fill(~there_B, 0.0)


def _split(score_BN: Tensor, target_B: Tensor, where_BN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The target's score [B, 1], whether it counts [B], and the other columns that do."""
    check_same_shape(score_BN, where_BN, "scores and their mask")
    at_B1 = target_B.unsqueeze(1)
    there_B1 = where_BN.gather(1, at_B1)
    score_B1 = score_BN.gather(1, at_B1).masked_fill(~there_B1, 0.0)
    return score_B1, there_B1.squeeze(1), where_BN.scatter(1, at_B1, False)

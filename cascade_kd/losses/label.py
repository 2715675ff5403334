"""Losses against labels.

Axes: R rows (request, item), B examples of a batch, N columns (items of the batch or of a sample).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cascade_kd.losses.checks import check_same_shape
from cascade_kd.masked import masked_log_softmax


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
    ([B, N] where rows have columns of their own), None where all are equally likely. Accidental hits, that is other
    columns with the target's item, are the caller's to mask. A row whose own target is masked holds no example: value
    and gradient 0.

    Source: Yi et al., "Sampling-bias-corrected neural modeling for large corpus item recommendations", RecSys 2019,
    section 3 (the correction applies to the target as well). Differs: ``log_q`` is given, not estimated online.
    """
    check_same_shape(score_BN, where_BN, "scores and their mask")
    logits_BN = score_BN if log_q_N is None else score_BN - log_q_N
    log_p_BN = masked_log_softmax(logits_BN, where_BN)
    return -torch.gather(log_p_BN, 1, target_B[:, None]).squeeze(1)

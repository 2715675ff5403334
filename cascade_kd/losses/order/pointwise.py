"""Pointwise losses on a teacher's list: its first places are positives.

Axes: B lists, K places in the teacher's order, M sampled items.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cascade_kd.losses.checks import check_same_shape, check_teacher, check_temperature
from cascade_kd.losses.order.places import position_weight, positions, top_places
from cascade_kd.masked import masked_mean, masked_sum


def topk_pointwise(score_BK: Tensor, *, where_BK: Tensor, k: int | Tensor, alpha: float = 0.0) -> Tensor:
    """Weighted mean of binary cross entropies: the teacher's first k are positives, everything else negative, [B].

    Positives weigh ``1 + alpha / position``, negatives 1. Divided by the sum of weights, so that neither alpha nor the
    length of the list changes the size of the loss. A list of at most k places has positives only: let negatives from
    elsewhere stand behind it, and ``k`` [B], of every list its own, end before them.

    Source: Zhang Junlin, "Knowledge distillation in recommender systems", 2020, the pointwise form without logits.
    """
    check_same_shape(score_BK, where_BK, "scores and their mask")
    score_BK = score_BK.masked_fill(~where_BK, 0.0)
    positive_BK = top_places(where_BK, k)
    weight_BK = torch.where(positive_BK, position_weight(positions(where_BK).to(score_BK.dtype), alpha), 1.0)
    loss_B = masked_sum(-weight_BK * F.logsigmoid(torch.where(positive_BK, score_BK, -score_BK)), where_BK)
    return loss_B / masked_sum(weight_BK, where_BK).clamp(min=1)


def ranking_distillation(score_BK: Tensor, weight_BK: Tensor, *, where_BK: Tensor) -> Tensor:
    """RD: ``-sum_r w_r log sigmoid(s_r)`` over the teacher's list, [B]; no gradient reaches the weights.

    ``weight_BK`` is ``decay_weight(where_BK, 1.0, k=10)``, times ``gap_weight(estimated_rank(..) - positions(..), .1)``
    once the student has learnt for a while (hybrid; epoch 10 in the source's code, which does not normalise it again).

    Source: Tang and Wang, "Ranking distillation", KDD 2018, arXiv:1809.07428, section 3.
    """
    check_same_shape(score_BK, where_BK, "scores and their mask")
    check_same_shape(score_BK, weight_BK, "scores and weights")
    log_p_BK = F.logsigmoid(score_BK.masked_fill(~where_BK, 0.0))
    return masked_sum(-weight_BK.detach().to(score_BK.dtype) * log_p_BK, where_BK)


def collaborative_distillation(
    student_BM: Tensor, teacher_BM: Tensor, *, where_BM: Tensor, temperature: float = 2.0, offset: float = 0.0
) -> Tensor:
    """CD: mean over sampled items of the cross entropy with ``sigmoid((t + offset) / temperature)`` as target, [B].

    Logits of both. Which items: ``draw_places`` by ``decay_weight`` of the teacher's or the student's order.

    Source: Lee et al., "Collaborative distillation for top-N recommendation", ICDM 2019, arXiv:1911.05276.
    Differs: the mean over the sample instead of the sum, so that its size does not move the loss.
    """
    check_teacher(student_BM, teacher_BM)
    check_temperature(temperature)
    check_same_shape(student_BM, where_BM, "student and its mask")
    target_BM = ((teacher_BM.masked_fill(~where_BM, 0.0) + offset) / temperature).sigmoid()
    score_BM = student_BM.masked_fill(~where_BM, 0.0)
    return masked_mean(F.binary_cross_entropy_with_logits(score_BM, target_BM, reduction="none"), where_BM)

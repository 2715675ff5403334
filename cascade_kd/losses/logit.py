"""Distillation losses on logits: the student's logit l learns from the teacher's z.

Axes: R rows (request, item), B lists, K places of a list. All raise ValueError for a teacher that carries a gradient,
for different shapes and for a temperature that is not positive. All are 0 with a gradient of exactly 0 at l = z.

Source: Hinton, Vinyals, Dean, "Distilling the knowledge in a neural network", 2015, arXiv:1503.02531, section 2.
Differs: KL instead of cross entropy (same gradient; the value then is 0 at l = z and converges as T grows), and the
factor T^2 is always there, so that gradients keep their size when the temperature is tuned.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cascade_kd.losses.checks import check_same_shape, check_teacher, check_temperature
from cascade_kd.masked import mask_logits, masked_sum


def _centred(logits_BK: Tensor, where_BK: Tensor) -> Tensor:
    """Masked logits minus their row's largest, which no softmax sees; keeps digits when a row is far from 0."""
    return mask_logits(logits_BK - mask_logits(logits_BK, where_BK).amax(dim=-1, keepdim=True).detach(), where_BK)


def kl_listwise(student_BK: Tensor, teacher_BK: Tensor, *, where_BK: Tensor, temperature: float = 1.0) -> Tensor:
    """KL divergence from teacher to student of the softmax over each list, [B].

    ``T^2 sum_i q_i (log q_i - log p_i)`` with ``q = softmax(z / T)``, ``p = softmax(l / T)`` over ``where_BK``;
    gradient ``T (p_i - q_i)``, which tends to ``((l_i - mean l) - (z_i - mean z)) / N`` as T grows. A list without a
    place is 0.
    """
    check_teacher(student_BK, teacher_BK)
    check_temperature(temperature)
    check_same_shape(student_BK, where_BK, "student and its mask")
    l_BK = _centred(student_BK / temperature, where_BK)
    z_BK = _centred(teacher_BK / temperature, where_BK)
    # Through logsumexp, whose gradient is exp(l - lse): the same floating-point numbers as q when l = z, hence the
    # exact zero that log_softmax's gradient misses by a rounding.
    lse_l_B1, lse_z_B1 = l_BK.logsumexp(-1, keepdim=True), z_BK.logsumexp(-1, keepdim=True)
    q_BK = (z_BK - lse_z_B1).exp()
    return temperature**2 * (masked_sum(q_BK * (z_BK - l_BK), where_BK) + (lse_l_B1 - lse_z_B1).squeeze(-1))


def kl_binary(student_R: Tensor, teacher_R: Tensor, *, temperature: float = 1.0) -> Tensor:
    """KL divergence from teacher to student of the Bernoulli variable of each row, [R].

    ``T^2 KL(sigmoid(z / T) || sigmoid(l / T))``; gradient ``T (sigmoid(l / T) - sigmoid(z / T))``, which tends to
    ``(l - z) / 4``, the value to ``(l - z)^2 / 8``, as T grows.
    """
    check_teacher(student_R, teacher_R)
    check_temperature(temperature)
    l_R, z_R = student_R / temperature, teacher_R / temperature
    q_R = z_R.sigmoid()
    cross_R = F.binary_cross_entropy_with_logits(l_R, q_R, reduction="none")
    return temperature**2 * (cross_R - F.binary_cross_entropy_with_logits(z_R, q_R, reduction="none"))


def mse_logits(student_R: Tensor, teacher_R: Tensor) -> Tensor:
    """Squared difference of logits ``(l - z)^2``, elementwise, [R]; gradient ``2 (l - z)``.

    Source: the hint of Zhou et al., "Rocket launching", AAAI 2018, arXiv:1708.04106, whose sum over classes is the
    sum of this; the paper drops the 2 of the gradient.
    """
    check_teacher(student_R, teacher_R)
    return (student_R - teacher_R).square()


def mse_probabilities(student_R: Tensor, teacher_R: Tensor) -> Tensor:
    """Squared difference of probabilities ``(sigmoid(l) - sigmoid(z))^2``, [R]; weak where the student saturates."""
    check_teacher(student_R, teacher_R)
    return (student_R.sigmoid() - teacher_R.sigmoid()).square()


def mse_probabilities_listwise(student_BK: Tensor, teacher_BK: Tensor, *, where_BK: Tensor) -> Tensor:
    """Summed squared difference of the softmax over each list, ``sum_i (p_i - q_i)^2``, [B].

    Gradient ``2 p_i ((p_i - q_i) - sum_k p_k (p_k - q_k))``. A list without a place is 0. Source: the probability
    hint that "Rocket launching" (AAAI 2018, table 3) compares with.
    """
    check_teacher(student_BK, teacher_BK)
    check_same_shape(student_BK, where_BK, "student and its mask")
    p_BK = torch.softmax(mask_logits(student_BK, where_BK), dim=-1)
    q_BK = torch.softmax(mask_logits(teacher_BK, where_BK), dim=-1)
    return masked_sum((p_BK - q_BK).square(), where_BK)

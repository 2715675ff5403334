"""Distillation losses on logits: the student's logit l learns from the teacher's z.

Axes: R rows (request, item), B lists, K places of a list. All raise ValueError for a teacher that carries a gradient,
for different shapes and for a temperature that is not positive. All have a gradient of exactly 0 at l = z (``mimic``:
where l is z standardised), and the value 0 but for ``cross_entropy_binary``, which gives the teacher's entropy.

Source: Hinton, Vinyals, Dean, "Distilling the knowledge in a neural network", 2015, arXiv:1503.02531, section 2.
Differs: KL instead of cross entropy (same gradient; the value then is 0 at l = z and converges as T grows), and the
factor T^2 is always there, so that gradients keep their size when the temperature is tuned. ListNet's cross entropy of
scores (Cao et al., ICML 2007) is ``kl_listwise`` plus the teacher's entropy.
"""

from __future__ import annotations

from math import isfinite

import torch
import torch.nn.functional as F
from torch import Tensor

from cascade_kd.losses.checks import check_same_shape, check_teacher, check_temperature
from cascade_kd.masked import mask_logits, masked_sum


def _centred(logits_BK: Tensor, where_BK: Tensor) -> Tensor:
    """Masked logits minus their row's largest, which no softmax sees; keeps digits when a row is far from 0."""
    return mask_logits(logits_BK - mask_logits(logits_BK, where_BK).amax(dim=-1, keepdim=True).detach(), where_BK)


def _kl(l_BK: Tensor, z_BK: Tensor, where_BK: Tensor) -> Tensor:
    """KL divergence from ``softmax(z)`` to ``softmax(l)`` over the places of ``where_BK``, [B]."""
    l_BK, z_BK = _centred(l_BK, where_BK), _centred(z_BK, where_BK)
    # Through logsumexp, whose gradient is exp(l - lse): the same floating-point numbers as q when l = z, hence the
    # exact zero that log_softmax's gradient misses by a rounding.
    lse_l_B1, lse_z_B1 = l_BK.logsumexp(-1, keepdim=True), z_BK.logsumexp(-1, keepdim=True)
    q_BK = (z_BK - lse_z_B1).exp()
    return masked_sum(q_BK * (z_BK - l_BK), where_BK) + (lse_l_B1 - lse_z_B1).squeeze(-1)


def kl_listwise(student_BK: Tensor, teacher_BK: Tensor, *, where_BK: Tensor, temperature: float = 1.0) -> Tensor:
    """KL divergence from teacher to student of the softmax over each list, [B].

    ``T^2 sum_i q_i (log q_i - log p_i)`` with ``q = softmax(z / T)``, ``p = softmax(l / T)`` over ``where_BK``;
    gradient ``T (p_i - q_i)``, which tends to ``((l_i - mean l) - (z_i - mean z)) / N`` as T grows. A list without a
    place is 0.
    """
    check_teacher(student_BK, teacher_BK)
    check_temperature(temperature)
    check_same_shape(student_BK, where_BK, "student and its mask")
    return temperature**2 * _kl(student_BK / temperature, teacher_BK / temperature, where_BK)


def clid_listwise(student_BK: Tensor, teacher_BK: Tensor, *, where_BK: Tensor) -> Tensor:
    """Calibration-compatible list-wise distillation: KL divergence of the probabilities normalised over each list, [B].

    ``sum_i Q_i (log Q_i - log P_i)`` with ``P_i = sigmoid(l_i) / sum_j sigmoid(l_j)`` and Q from z likewise. It sees
    the probabilities of a list up to a factor, so the label's loss keeps the calibration; also 0, with gradient 0,
    where the student's probabilities are a multiple of the teacher's. A list without a place is 0.

    Source: Gui et al., "Calibration-compatible listwise distillation of privileged features for CTR prediction" (CLID),
    2023, arXiv:2312.08727. Differs: KL instead of cross entropy.
    """
    check_teacher(student_BK, teacher_BK)
    check_same_shape(student_BK, where_BK, "student and its mask")
    # Filled first: the gradient of logsigmoid at a NaN under the mask would be NaN, times 0.
    log_p_BK = F.logsigmoid(student_BK.masked_fill(~where_BK, 0.0))
    return _kl(log_p_BK, F.logsigmoid(teacher_BK.masked_fill(~where_BK, 0.0)), where_BK)


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


def cross_entropy_binary(student_R: Tensor, teacher_R: Tensor) -> Tensor:
    """Cross entropy of the student's logit against the teacher's probability, [R].

    ``-q log sigmoid(l) - (1 - q) log sigmoid(-l)`` with ``q = sigmoid(z)``; gradient ``sigmoid(l) - q``. Its least
    value is the entropy of q. ``(1 - w) bce(l, y) + w`` times this is ``bce(l, (1 - w) y + w q)``.

    Source: the distillation loss L_d of Xu et al., "Privileged features distillation", KDD 2020.
    """
    check_teacher(student_R, teacher_R)
    return F.binary_cross_entropy_with_logits(student_R, teacher_R.sigmoid(), reduction="none")


def mse_logits(student_R: Tensor, teacher_R: Tensor) -> Tensor:
    """Squared difference of logits ``(l - z)^2``, elementwise, [R]; gradient ``2 (l - z)``.

    Source: the hint of Zhou et al., "Rocket launching", AAAI 2018, arXiv:1708.04106, whose sum over classes is the
    sum of this; the paper drops the 2 of the gradient.
    """
    check_teacher(student_R, teacher_R)
    return (student_R - teacher_R).square()


def mimic(student_R: Tensor, teacher_R: Tensor, *, mean: float, sd: float) -> Tensor:
    """Half the squared difference to the teacher's standardised logit, ``(l - (z - mean) / sd)^2 / 2``, [R].

    ``mean`` and ``sd`` are those of the teacher's logits over the training rows. The student so trained gives
    standardised logits: ``mean + sd * l`` is on the teacher's scale. Raises ValueError unless sd is a number > 0.

    Source: Ba, Caruana, "Do deep nets really need to be deep?", NeurIPS 2014, eq. 1: no labels, no temperature.
    """
    check_teacher(student_R, teacher_R)
    if not (isfinite(mean) and 0.0 < sd < float("inf")):
        raise ValueError(f"mean must be finite and sd a finite number > 0, got mean {mean} and sd {sd}")
    return (student_R - (teacher_R - mean) / sd).square() / 2


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

"""Distillation on logits, row by row (floor 4). R rows (request, item)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from cascade_kd.distill.settings import LogitDistillConfig
from cascade_kd.losses import cross_entropy_binary, kl_binary, mimic, mse_logits, mse_probabilities

LogitLoss = Callable[[Tensor, Tensor], Tensor]

LOGIT_LOSSES: dict[str, LogitLoss] = {
    "kl": kl_binary,  # Hinton et al. 2015, two classes: T^2 KL of the tempered Bernoullis
    "bce": cross_entropy_binary,  # Xu et al. 2020, PFD
    "mse": mse_logits,  # Zhou et al. 2018, Rocket's hint
    "mimic": partial(mimic, mean=0.0, sd=1.0),  # Ba & Caruana 2014
    "prob-mse": mse_probabilities,
}


def logit_loss(config: LogitDistillConfig, *, mean: float = 0.0, sd: float = 1.0) -> LogitLoss:
    """The loss of a ``[[distill]]`` table: (student logits [R], teacher logits [R]) -> [R], not reduced.

    ``mean`` and ``sd`` of the teacher's logits are what ``mimic`` standardises by.
    """
    if config.loss == "kl":
        return partial(kl_binary, temperature=config.temperature)
    if config.loss == "mimic":  # the student stays on the teacher's scale, and so a model of probabilities
        return lambda student_R, teacher_R: mimic((student_R - mean) / sd, teacher_R, mean=mean, sd=sd)
    return LOGIT_LOSSES[config.loss]

"""Distillation on logits, row by row (floor 4). R rows (request, item)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from cascade_kd.distill.settings import LogitDistillConfig
from cascade_kd.losses import kl_binary, mse_logits, mse_probabilities

LogitLoss = Callable[[Tensor, Tensor], Tensor]

LOGIT_LOSSES: dict[str, LogitLoss] = {
    "kl": kl_binary,  # Hinton et al. 2015, two classes: T^2 KL of the tempered Bernoullis
    "mse": mse_logits,  # Ba & Caruana 2014; Rocket's hint
    "prob-mse": mse_probabilities,
}


def logit_loss(config: LogitDistillConfig) -> LogitLoss:
    """The loss of a ``[[distill]]`` table: (student logits [R], teacher logits [R]) -> [R], not reduced."""
    if config.loss == "kl":
        return partial(kl_binary, temperature=config.temperature)
    return LOGIT_LOSSES[config.loss]

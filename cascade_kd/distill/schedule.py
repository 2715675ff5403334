"""The weight of a term over the steps of a training (floor 4)."""

from __future__ import annotations

import math

from cascade_kd.distill.pair import Weighted


def weight_at(config: Weighted, step: int, total_steps: int) -> float:
    """Weight at a 0-based optimiser step: 0 before ``warmup_steps``, then the schedule.

    linear and cosine go from ``weight`` at the first weighted step to ``end_weight`` at the last step of the longest
    training (``epochs`` full epochs; early stopping may end before). Xu et al., KDD 2020, Algorithm 1 is "constant"
    with ``warmup_steps`` = k.
    """
    if step < config.warmup_steps:
        return 0.0
    if config.schedule == "constant" or config.end_weight is None:
        return config.weight
    span = max(1, total_steps - 1 - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / span)
    if config.schedule == "cosine":
        progress = (1.0 - math.cos(math.pi * progress)) / 2.0
    return config.weight + (config.end_weight - config.weight) * progress

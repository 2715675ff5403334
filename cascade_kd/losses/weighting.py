"""Weights of several losses, learnt with them. M terms of a loss."""

from __future__ import annotations

from torch import Tensor

from cascade_kd.losses.checks import check_same_shape


def uncertainty_weighting(loss_M: Tensor, log_sd_M: Tensor) -> Tensor:
    """Terms weighted by a learnt uncertainty each, [M], to be summed.

    ``exp(-2 u) L / 2 + u`` with ``u`` the learnable logarithm of the standard deviation, 0 at the start. Its minimum
    over u is at ``exp(2 u) = L`` and has the gradient ``1 / (2 L)`` towards L: every term then weighs by its relative
    change. A term that is 0 throughout (a weight that is still 0) draws its u downwards without end: leave it out.

    Source: Kendall, Gal, Cipolla, "Multi-task learning using uncertainty to weigh losses", CVPR 2018,
    arXiv:1705.07115, eq. 7, and, with w = exp(u), the combination of LCRON (2025). Differs: one form for regression and
    classification, whose half the paper drops.
    """
    check_same_shape(loss_M, log_sd_M, "losses and their log standard deviations")
    return (-2 * log_sd_M).exp() * loss_M / 2 + log_sd_M

"""Learnt weights of several losses."""

import math

import pytest
import torch
from torch.testing import assert_close

from cascade_kd.losses import uncertainty_weighting

LOSS = torch.tensor([3.0, 0.25], dtype=torch.float64)


def test_a_worked_value():
    """w = (2, 1/2): 3 / (2 * 4) + log 2 and .25 / (2 / 4) - log 2."""
    got = uncertainty_weighting(LOSS, torch.tensor([2.0, 0.5], dtype=torch.float64).log())
    assert_close(got, torch.tensor([3 / 8 + math.log(2), 0.25 * 2 - math.log(2)], dtype=torch.float64))


def test_weights_of_1_halve_the_losses():
    assert torch.equal(uncertainty_weighting(LOSS, torch.zeros(2).double()), LOSS / 2)


def test_the_best_variance_is_the_loss_and_pulls_by_its_inverse():
    log_sd, loss = (0.5 * LOSS.log()).requires_grad_(), LOSS.clone().requires_grad_()
    value = uncertainty_weighting(loss, log_sd)
    to_loss, to_log_sd = torch.autograd.grad(value.sum(), (loss, log_sd))
    assert_close(to_log_sd, torch.zeros(2).double(), rtol=0, atol=1e-15)
    assert_close(to_loss, 1 / (2 * LOSS))
    assert_close(value.detach(), 0.5 + 0.5 * LOSS.log())
    for other in (-0.3, 0.2):
        assert (uncertainty_weighting(LOSS, log_sd.detach() + other) > value.detach()).all()


def test_autograd_equals_finite_differences():
    log_sd = torch.tensor([0.7, -1.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(uncertainty_weighting, (LOSS.clone().requires_grad_(), log_sd))


def test_another_number_of_weights_is_refused():
    with pytest.raises(ValueError, match="one shape"):
        uncertainty_weighting(LOSS, torch.zeros(1))

"""The logit distiller: its table of losses, its weight over the steps."""

from __future__ import annotations

import math

import pytest
import torch

from cascade_kd.distill import LOGIT_LOSSES, LogitDistillConfig, logit_loss, weight_at


def config(**keys: object) -> LogitDistillConfig:
    return LogitDistillConfig.model_validate({"teacher": "rank", "student": "prerank", "method": "logit", **keys})


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_a_perfect_copy_has_no_gradient_and_the_teacher_never_has_one(name: str) -> None:
    student = torch.tensor([-3.0, 0.1, 7.0], requires_grad=True)
    loss = logit_loss(config(loss=name))
    loss(student, student.detach().clone()).sum().backward()
    assert torch.equal(student.grad, torch.zeros(3))
    with pytest.raises(ValueError, match="teacher"):
        loss(student.detach(), student)


def test_the_temperature_reaches_the_loss_with_its_square() -> None:
    student, teacher = torch.tensor([0.3], dtype=torch.float64), torch.tensor([1.2], dtype=torch.float64)
    p, q = torch.sigmoid(student / 4), torch.sigmoid(teacher / 4)
    expected = 16 * (q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log())
    torch.testing.assert_close(logit_loss(config(temperature=4.0))(student, teacher), expected)


def test_golden_values() -> None:
    student, teacher = torch.tensor([0.5], dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64)
    assert float(logit_loss(config(loss="mse"))(student, teacher)) == pytest.approx((2.0 - 0.5) ** 2)
    gap = 1 / (1 + math.exp(-2.0)) - 1 / (1 + math.exp(-0.5))
    assert float(logit_loss(config(loss="prob-mse"))(student, teacher)) == pytest.approx(gap**2)


def test_weight_over_steps() -> None:
    constant = config(weight=0.5, warmup_steps=3)
    assert [weight_at(constant, step, 10) for step in range(5)] == [0, 0, 0, 0.5, 0.5]
    linear = config(weight=1.0, schedule="linear", end_weight=0.0, warmup_steps=2)
    assert [weight_at(linear, step, 7) for step in range(7)] == pytest.approx([0, 0, 1, 0.75, 0.5, 0.25, 0])
    cosine = config(weight=0.0, schedule="cosine", end_weight=1.0)
    assert weight_at(cosine, 0, 5) == 0
    assert weight_at(cosine, 2, 5) == pytest.approx(0.5)
    assert weight_at(cosine, 4, 5) == pytest.approx(1.0)
    assert weight_at(cosine, 400, 5) == pytest.approx(1.0)

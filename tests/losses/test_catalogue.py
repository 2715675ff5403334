"""The full softmax by blocks: torch's own cross entropy and its gradient, whatever the block."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from cascade_kd.losses import catalogue, full_softmax

B, ITEMS, D = 23, 11, 4


def vectors(*, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    user_BD = torch.randn(B, D, generator=generator, dtype=torch.float64) * scale
    item_ID = torch.randn(ITEMS, D, generator=generator, dtype=torch.float64)
    target_B = torch.randint(0, ITEMS, (B,), generator=generator)
    return user_BD.to(dtype).requires_grad_(), item_ID.to(dtype).requires_grad_(), target_B


@pytest.mark.parametrize("scores", [1, 3 * ITEMS, 10**6])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_it_is_cross_entropy(monkeypatch: pytest.MonkeyPatch, scores: int, scale: float) -> None:
    """Also in blocks of one row and of a short last one, and where probabilities are 0 in float64."""
    monkeypatch.setattr(catalogue, "CACHED", scores)
    user_BD, item_ID, target_B = vectors(scale=scale)
    losses = full_softmax(user_BD, item_ID, target_B), F.cross_entropy(user_BD @ item_ID.T, target_B)
    assert_close(*losses)
    for ours, theirs in zip(*(torch.autograd.grad(3 * loss, (user_BD, item_ID)) for loss in losses), strict=True):
        assert_close(ours, theirs)


def test_finite_differences() -> None:
    user_BD, item_ID, target_B = vectors()
    assert torch.autograd.gradcheck(lambda u, v: full_softmax(u, v, target_B), (user_BD, item_ID))


def test_one_value_by_hand() -> None:
    """Scores 0 and 2 and target 0: log(1 + e^2); the gradient of the user is sigmoid(2) times the other item."""
    user_BD = torch.tensor([[1.0, 0.0]], requires_grad=True)
    item_ID = torch.tensor([[0.0, 0.0], [2.0, 5.0]])
    loss = full_softmax(user_BD, item_ID, torch.tensor([0]))
    two = torch.tensor(2.0)
    assert_close(loss, (1 + two.exp()).log())
    loss.backward()
    assert_close(user_BD.grad, two.sigmoid() * item_ID[1:])


def test_half_precision_sums_in_float32() -> None:
    user_BD, item_ID, target_B = vectors(dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = full_softmax(user_BD, item_ID, target_B)
    assert loss.dtype == torch.float32
    exact = F.cross_entropy(user_BD.double() @ item_ID.double().T, target_B)
    assert_close(loss.double(), exact, rtol=0.01, atol=0)  # bfloat16 has 8 bits of mantissa
    loss.backward()
    assert item_ID.grad is not None
    (grad,) = torch.autograd.grad(F.cross_entropy(user_BD.double() @ item_ID.double().T, target_B), item_ID)
    assert_close(item_ID.grad.double(), grad.double(), rtol=0.05, atol=0.01)

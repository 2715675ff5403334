"""Quick dropout: rates, scales, independence, the seed, and evaluation mode."""

from __future__ import annotations

import math

import pytest
import torch

from cascade_kd.models.dropout import Dropout

N = 200_003  # no multiple of four


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rate_and_scale(rate: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(N, dtype=dtype, requires_grad=True)
    y = Dropout(rate)(x)
    dropped = y == 0
    assert y.dtype == dtype
    assert abs(float(dropped.double().mean()) - rate) < 4 * math.sqrt(rate * (1 - rate) / N) + 1e-5
    torch.testing.assert_close(y[~dropped], torch.full_like(y[~dropped], 1 / (1 - rate)), rtol=1e-4, atol=0)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())  # type: ignore[arg-type]


def test_neighbours_are_independent() -> None:
    """Also the four numbers of one draw."""
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(N)) > 0).double() - 0.5
    for lag in range(1, 9):
        assert abs(float((kept[lag:] * kept[:-lag]).mean())) < 4 * 0.25 / math.sqrt(N)


def test_the_seed_decides() -> None:
    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return Dropout(0.3)(torch.ones(3, 5, 7))

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_evaluation_and_share_0_change_nothing() -> None:
    x = torch.randn(9)
    assert Dropout(0.5).eval()(x) is x
    state = torch.random.get_rng_state()
    assert Dropout(0.0)(x) is x
    assert torch.equal(state, torch.random.get_rng_state())

"""Adapters: worked equalities, whose gradients, whose random numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from cascade_kd.distill import Experts, Regressor, gumbel_temperature
from cascade_kd.losses import hint

N, W, V = 7, 3, 5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def student() -> Tensor:
    return torch.randn(N, W, generator=generator(1))


def teacher() -> Tensor:
    return torch.randn(N, V, generator=generator(2))


def call(adapter: nn.Module, student_NW: Tensor, *, temperature: float = 0.5, seed: int = 3) -> Tensor:
    if isinstance(adapter, Experts):
        return adapter(student_NW, teacher(), temperature=temperature, generator=generator(seed))
    return adapter(student_NW)


BUILDS: dict[str, Callable[[torch.Generator], nn.Module]] = {
    "linear": lambda g: Regressor(W, V, generator=g),
    "one hidden layer": lambda g: Regressor(W, V, hidden=4, generator=g),
    "experts": lambda g: Experts(W, V, experts=6, generator=g),
}
ALL = pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)


@ALL
def test_the_teachers_width_comes_out(build: Callable) -> None:
    assert call(build(generator()), student()).shape == (N, V)


@ALL
def test_weights_and_calls_come_from_their_generators_alone(build: Callable) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, other = build(generator(1)), build(generator(1)), build(generator(2))
    out = call(first, student())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(out, call(second, student()))
    assert not torch.equal(out, call(other, student()))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@ALL
def test_weights_are_xaviers_and_biases_0(build: Callable) -> None:
    for name, parameter in build(generator()).named_parameters():
        if name.endswith(("bias", "_MH", "_MV")):
            assert not parameter.any(), name
        else:
            bound = math.sqrt(6 / (parameter.shape[-1] + parameter.shape[-2]))
            assert 0.5 * bound < parameter.abs().max() <= bound, name


@ALL
def test_gradients_reach_the_student_and_every_weight_but_no_teacher(build: Callable) -> None:
    adapter, student_NW = build(generator()), student().requires_grad_()
    hint(call(adapter, student_NW, temperature=5.0), teacher()).sum().backward()
    assert student_NW.grad is not None
    assert (student_NW.grad != 0).any(dim=1).all()
    for name, parameter in adapter.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@ALL
def test_autograd_equals_finite_differences(build: Callable) -> None:
    adapter = build(generator()).double()
    teacher_NV = teacher().double()

    def loss(student_NW: Tensor) -> Tensor:
        if isinstance(adapter, Experts):
            return hint(adapter(student_NW, teacher_NV, temperature=0.7, generator=generator()), teacher_NV)
        return hint(adapter(student_NW), teacher_NV)

    assert torch.autograd.gradcheck(loss, student().double().requires_grad_())


def test_a_linear_regressor_is_its_matrix() -> None:
    adapter = Regressor(2, 2, generator=generator())
    adapter.last.weight.data = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
    adapter.last.bias.data = torch.tensor([0.5, 0.0])
    assert_close(adapter(torch.tensor([[3.0, 1.0]])), torch.tensor([[3 + 2 + 0.5, -1.0]]))


def test_a_hidden_layer_is_cut_at_0_and_the_output_is_not() -> None:
    adapter = Regressor(1, 1, hidden=1, generator=generator())
    assert adapter.first is not None
    adapter.first.weight.data.fill_(2.0)
    adapter.last.weight.data.fill_(-3.0)
    adapter.last.bias.data.fill_(1.0)
    assert_close(adapter(torch.tensor([[1.0], [-1.0]])), torch.tensor([[-5.0], [1.0]]))


def test_fields_are_mapped_place_by_place() -> None:
    adapter = Regressor(W, V, generator=generator())
    fields = torch.randn(N, 4, W, generator=generator())
    assert_close(adapter(fields)[:, 2], adapter(fields[:, 2]))


@pytest.mark.parametrize("temperature", [1.0, 1e-10])
def test_one_expert_is_a_regressor_with_its_hidden_layer(temperature: float) -> None:
    """Of the same generator they have the same weights, too."""
    expert = Experts(W, V, experts=1, generator=generator())
    regressor = Regressor(W, V, hidden=(W + V) // 2, generator=generator())
    assert_close(call(expert, student(), temperature=temperature), regressor(student()))
    expert.first_MH.data += 0.3
    expert.last_MV.data -= 0.2
    assert regressor.first is not None
    regressor.first.bias.data += 0.3
    regressor.last.bias.data -= 0.2
    assert_close(call(expert, student(), temperature=temperature), regressor(student()))


def test_experts_written_out() -> None:
    experts = Experts(W, V, experts=4, generator=generator())
    for bias in (experts.first_MH, experts.last_MV):
        bias.data.normal_(generator=generator(7))
    choice_NM = experts.choice(teacher(), temperature=0.8, generator=generator(3))
    want = torch.zeros(N, V)
    for m in range(4):
        hidden = (student() @ experts.first_MHW[m].T + experts.first_MH[m]).relu()
        want += choice_NM[:, m : m + 1] * (hidden @ experts.last_MVH[m].T + experts.last_MV[m])
    assert_close(call(experts, student(), temperature=0.8), want)


def test_the_choice_is_a_softmax_of_the_gate_with_gumbel_noise() -> None:
    experts = Experts(W, V, experts=4, generator=generator())
    noise = -torch.empty(N, 4).exponential_(generator=generator(3)).log()
    want = ((experts.gate(teacher()) + noise) / 0.5).softmax(-1)
    got = experts.choice(teacher(), temperature=0.5, generator=generator(3))
    assert_close(got, want)
    assert_close(got.sum(dim=1), torch.ones(N))


def test_a_hard_choice_has_the_gates_probabilities() -> None:
    """Gumbel-max: the largest of logits plus noise is a draw from their softmax."""
    experts = Experts(W, V, experts=3, generator=generator())
    experts.gate.bias.data = torch.tensor([0.6, 0.3, 0.1]).log()
    draws = 40_000
    choice = experts.choice(torch.zeros(draws, V), temperature=1e-10, generator=generator(4))
    error = 4 * math.sqrt(0.25 / draws)
    assert_close(choice.mean(dim=0), torch.tensor([0.6, 0.3, 0.1]), rtol=0, atol=error)


def test_the_annealing_ends_hard() -> None:
    assert gumbel_temperature(0.0) == 1.0
    assert gumbel_temperature(0.5) == pytest.approx(1e-5)
    assert gumbel_temperature(1.0) == pytest.approx(1e-10)
    assert gumbel_temperature(0.25, start=16.0, end=1.0) == pytest.approx(8.0)
    experts = Experts(W, V, experts=6, generator=generator())
    largest = [
        experts.choice(teacher(), temperature=gumbel_temperature(x), generator=generator(3)).amax(dim=1)
        for x in (0.0, 0.05, 0.1, 1.0)
    ]
    assert all((b >= a).all() for a, b in pairwise(largest))
    assert (largest[0] < 1).all()
    last = experts.choice(teacher(), temperature=gumbel_temperature(1.0), generator=generator(3))
    assert torch.equal(last.sort(dim=1).values, torch.eye(6)[[5] * N])


@pytest.mark.parametrize("temperature", [1.0, 1e-10])
def test_huge_states_give_no_nan(temperature: float) -> None:
    experts = Experts(W, V, experts=6, generator=generator())
    student_NW = student().requires_grad_()
    out = experts(student_NW, 100 * teacher(), temperature=temperature, generator=generator())
    out.sum().backward()
    assert out.isfinite().all()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (student_NW, *experts.parameters()))


def test_a_teacher_with_a_gradient_is_refused() -> None:
    experts = Experts(W, V, generator=generator())
    with pytest.raises(ValueError, match="the teacher's hidden states carry a gradient"):
        experts(student(), teacher().requires_grad_(), temperature=1.0, generator=generator())

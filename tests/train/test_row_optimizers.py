"""Row-sparse optimisers: torch's own trajectories where the two are defined to agree, loops over rows elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cascade_kd.models import Table
from cascade_kd.train.row_optimizers import RowAdagrad, RowAdam

V, D, STEPS, LR = 12, 3, 30, 0.1
ROW_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": RowAdam,
    "adagrad": lambda tables, **keys: RowAdagrad(tables, rowwise=False, **keys),
    "rowwise-adagrad": lambda tables, **keys: RowAdagrad(tables, rowwise=True, **keys),
}


def table(dtype: torch.dtype = torch.float64) -> Table:
    torch.manual_seed(0)
    return Table(V, D, std=1.0).to(dtype)


def codes_of(step: int) -> Tensor:
    """[8, 2], rows met twice and more in every step, most rows in none."""
    return torch.randint(0, V // 2, (8, 2), generator=torch.Generator().manual_seed(step)) + (step % 3)


def loss_of(look_up: Callable[[Tensor], Tensor], codes: Tensor, step: int) -> Tensor:
    looked = look_up(codes)
    target = torch.randn(looked.shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return (looked - target.to(looked.dtype)).pow(4).mean() + looked[0].sum()


def trained(
    make: Callable[..., torch.optim.Optimizer], dtype: torch.dtype = torch.float64, codes: Any = codes_of, **keys: Any
) -> tuple[Tensor, torch.optim.Optimizer]:
    """A table after some row-sparse steps."""
    made = table(dtype)
    optimizer = make([made], lr=LR, **keys)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(made, codes(step), step).backward()
        optimizer.step()
    return made.weight.detach(), optimizer


def trained_by_torch(
    make: Callable[..., torch.optim.Optimizer],
    dtype: torch.dtype = torch.float64,
    codes: Any = codes_of,
    *,
    sparse: bool = False,
    **keys: Any,
) -> Tensor:
    """The same steps with torch's own look-up and optimiser."""
    weight = table(dtype).weight
    optimizer = make([weight], lr=LR, **keys)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(lambda c: torch.nn.functional.embedding(c, weight, sparse=sparse), codes(step), step).backward()
        optimizer.step()
    return weight.detach()


def every_row(step: int) -> Tensor:
    return torch.cat([torch.randperm(V, generator=torch.Generator().manual_seed(step)), codes_of(step).flatten()])


def test_adagrad_is_torchs_adagrad_on_the_dense_gradient() -> None:
    """Exact but for the order in which the gradients of a row are added: 1e-12 in float64, 1e-5 in float32."""
    ours, _ = trained(ROW_OPTIMIZERS["adagrad"])
    torch.testing.assert_close(ours, trained_by_torch(torch.optim.Adagrad), rtol=1e-12, atol=1e-12)
    ours, _ = trained(ROW_OPTIMIZERS["adagrad"], torch.float32)
    torch.testing.assert_close(ours, trained_by_torch(torch.optim.Adagrad, torch.float32), rtol=1e-5, atol=1e-6)


def test_adam_is_torchs_adam_where_every_step_touches_every_row() -> None:
    for dtype, rtol in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        ours, _ = trained(RowAdam, dtype, every_row, l2=0.02)
        theirs = trained_by_torch(torch.optim.Adam, dtype, every_row, weight_decay=0.02)
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol)


def test_adam_is_torchs_sparse_adam_but_for_eps() -> None:
    ours, _ = trained(RowAdam, eps=1e-30)
    torch.testing.assert_close(
        ours, trained_by_torch(torch.optim.SparseAdam, sparse=True, eps=1e-30), rtol=1e-11, atol=1e-12
    )
    # SparseAdam's eps is added before the bias correction; ours as torch's Adam adds it.
    far, _ = trained(RowAdam, eps=1e-2)
    theirs = trained_by_torch(torch.optim.SparseAdam, sparse=True, eps=1e-2)
    assert (far - theirs).abs().max() > 1e-3


def by_hand(name: str, l2: float) -> list[list[float]]:
    """Row by row in plain Python, from the formulas."""
    rows: list[list[float]] = table().weight.tolist()
    mean, square = ([[0.0] * D for _ in range(V)] for _ in range(2))
    for step in range(STEPS):
        weight = torch.tensor(rows, dtype=torch.float64, requires_grad=True)
        codes = codes_of(step)
        (grad,) = torch.autograd.grad(loss_of(lambda c, w=weight: w[c], codes, step), weight)
        for row in sorted(set(codes.flatten().tolist())):
            g = [grad[row, d].item() + l2 * rows[row][d] for d in range(D)]
            for d in range(D):
                if name == "adam":
                    mean[row][d] = 0.9 * mean[row][d] + 0.1 * g[d]
                    square[row][d] = 0.999 * square[row][d] + 0.001 * g[d] ** 2
                    top, under = mean[row][d] / (1 - 0.9 ** (step + 1)), square[row][d] / (1 - 0.999 ** (step + 1))
                    rows[row][d] -= LR * top / (math.sqrt(under) + 1e-8)
                else:
                    square[row][d] += g[d] ** 2 if name == "adagrad" else sum(x * x for x in g) / D
                    rows[row][d] -= LR * g[d] / (math.sqrt(square[row][d]) + 1e-10)
    return rows


@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize("name", ROW_OPTIMIZERS)
def test_trajectories_are_those_of_a_loop_over_the_touched_rows(name: str, l2: float) -> None:
    ours, _ = trained(ROW_OPTIMIZERS[name], l2=l2)
    torch.testing.assert_close(ours, torch.tensor(by_hand(name, l2), dtype=torch.float64), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", ROW_OPTIMIZERS)
def test_rows_that_are_not_touched_stay_as_they_are(name: str) -> None:
    made = table()
    optimizer = ROW_OPTIMIZERS[name]([made], lr=LR, l2=0.5)
    before = made.weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        made(torch.tensor([2, 9, 2])).square().sum().backward()
        optimizer.step()
    moved = (made.weight != before).any(1).nonzero().flatten().tolist()
    assert moved == [2, 9]
    for key, value in optimizer.state[made.weight].items():
        if key != "step":
            assert value.any(1).nonzero().flatten().tolist() == [2, 9], key
    held = made.weight.detach().clone()
    optimizer.zero_grad()
    optimizer.step()  # nothing was touched
    assert torch.equal(made.weight, held)


@pytest.mark.parametrize("name", ROW_OPTIMIZERS)
def test_zero_grad_forgets(name: str) -> None:
    made = table()
    optimizer = ROW_OPTIMIZERS[name]([made], lr=LR)
    made(torch.tensor([1])).sum().backward()
    optimizer.zero_grad()
    before = made.weight.detach().clone()
    optimizer.step()
    assert torch.equal(made.weight, before)


@pytest.mark.parametrize("name", ROW_OPTIMIZERS)
def test_the_number_of_threads_changes_nothing(name: str) -> None:
    rows = 40_000  # more than one block of touched rows

    def run(threads: int) -> Tensor:
        torch.set_num_threads(threads)
        try:
            torch.manual_seed(0)
            made = Table(rows, 8, std=1.0)
            optimizer = ROW_OPTIMIZERS[name]([made], lr=LR)
            generator = torch.Generator().manual_seed(1)
            for _ in range(3):
                codes, pooled = (torch.randint(0, rows, shape, generator=generator) for shape in ((9000, 5), (300, 50)))
                optimizer.zero_grad()
                loss = made(codes).sin().sum() + made.weighted_sum(pooled, torch.ones(pooled.shape)).sin().sum()
                loss.backward()
                optimizer.step()
            return made.weight.detach()
        finally:
            torch.set_num_threads(1)

    assert torch.equal(run(1), run(2))


class SeesTheTable(TorchDispatchMode):
    """Which operations are handed, or make, a tensor of at least so many elements."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements = elements
        self.handed: set[str] = set()
        self.made: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        big = [x for x in (*args, *(kwargs or {}).values()) if isinstance(x, Tensor) and x.numel() >= self.elements]
        if big:
            self.handed.add(name)
        places = {x.untyped_storage().data_ptr() for x in big if x.layout == torch.strided}
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, Tensor) and x.layout == torch.strided:
                memory = x.untyped_storage()
                if memory.nbytes() >= self.elements and memory.data_ptr() not in places:
                    self.made.add(name)
        return out


@pytest.mark.parametrize("name", ROW_OPTIMIZERS)
def test_a_step_gathers_and_scatters_and_never_passes_over_the_table(name: str) -> None:
    """Only operations that read or write given rows are handed the table or its state, and none makes such a tensor."""
    rows = 1_000_000
    made = Table(rows, 4, std=1.0)
    optimizer = ROW_OPTIMIZERS[name]([made], lr=LR, l2=0.1)

    def step() -> None:
        optimizer.zero_grad()
        codes = torch.randint(0, rows, (60, 5))
        (made(codes).sum() + made.weighted_sum(codes, torch.ones(60, 5)).square().sum()).backward()
        optimizer.step()

    step()
    with SeesTheTable(rows) as seen:
        step()
    assert "index_copy_" in seen.handed
    assert seen.handed <= {"_embedding_bag_forward_only", "mm", "detach", "index_copy_"}  # mm: times a sparse matrix
    assert not seen.made
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    peak = max(event.cpu_memory_usage for event in profile.key_averages())
    assert 0 < peak < rows  # bytes; the smallest tensor of the table's length has 4 times as many

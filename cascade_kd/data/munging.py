"""MUNGE: pseudo rows from real ones, for a teacher to label (floor 2).

M rows, E visits that may go at once, A nominal attributes, C continuous attributes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from cascade_kd.streams import generator_at, stream


def munge(
    nominal: Mapping[str, Tensor],
    continuous: Mapping[str, Tensor],
    neighbour_M: Tensor,
    *,
    swap: float,
    variance: float,
    seed: int,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One pseudo copy of M rows: (nominal, continuous), new tensors of the same shapes, types and devices.

    Every row e is visited once, in a random order, together with its neighbour e' = ``neighbour_M[e]``; each attribute
    a changes with probability ``swap``, in both rows, and later visits see what earlier ones changed:

        nominal:     e_a <-> e'_a
        continuous:  sd = |e_a - e'_a| / variance;  e_a <- Normal(e'_a, sd),  e'_a <- Normal(old e_a, sd)

    ``nominal`` columns are integer codes [M], or lists of codes [M, T], swapped whole; ``continuous`` ones float32 [M],
    of any scale, since the draws scale with them. ``variance`` is the paper's s: the larger, the tighter; infinite, a
    plain swap. The draws of a column follow from ``seed`` and its name alone.

    Visits that share no row are made at once, which is the same as one after the other (:func:`rounds`). Rounds are at
    least as many as the visits of the busiest row; time is O(M) numbers and O(rounds) calls, 2 s a copy of 800,000 rows
    of 11 attributes on one CPU thread. Raises ``ValueError`` for a row that is its own neighbour, and for settings or
    columns that do not fit.

    Source: Bucila, Caruana, Niculescu-Mizil, "Model compression", KDD 2006, algorithm 1. Differs: the order of visits
    is random, and neighbours are those among the original rows, looked up once, not in the rows as they change.
    """
    check(nominal, continuous, neighbour_M, swap=swap, variance=variance)
    size, device = len(neighbour_M), neighbour_M.device
    neighbour_M = neighbour_M.cpu()
    swapped_MA = _columns([swaps(name, size, swap, seed) for name in nominal], torch.empty(size, 0).bool())
    moved_MC = _columns([swaps(name, size, swap, seed) for name in continuous], torch.empty(size, 0).bool())
    noise_M2C = _columns([noise(name, size, seed) / variance for name in continuous], torch.empty(size, 2, 0))
    source_MA = torch.arange(size).unsqueeze(1).repeat(1, len(nominal))  # the row whose value this one has now
    value_MC = _columns([x_M.cpu() for x_M in continuous.values()], torch.empty(size, 0))
    for row_E in rounds(visiting_order(size, seed), neighbour_M):
        other_E = neighbour_M[row_E]
        a, b = source_MA[row_E], source_MA[other_E]
        swapped_EA = swapped_MA[row_E]
        source_MA[row_E], source_MA[other_E] = torch.where(swapped_EA, b, a), torch.where(swapped_EA, a, b)
        x, y = value_MC[row_E], value_MC[other_E]
        moved_EC, noise_E2C = moved_MC[row_E], noise_M2C[row_E] * (x - y).abs().unsqueeze(1)
        value_MC[row_E] = torch.where(moved_EC, y + noise_E2C[:, 0], x)
        value_MC[other_E] = torch.where(moved_EC, x + noise_E2C[:, 1], y)
    source_AM, value_CM = source_MA.T.to(device), value_MC.T.contiguous().to(device)
    return (
        {name: x_M.index_select(0, source_M) for (name, x_M), source_M in zip(nominal.items(), source_AM, strict=True)},
        dict(zip(continuous, value_CM, strict=True)),
    )


def visiting_order(size: int, seed: int) -> Tensor:
    """[M] the rows in the order of their visits."""
    return torch.randperm(size, generator=generator_at(stream(seed, "order")))


def swaps(name: str, size: int, swap: float, seed: int) -> Tensor:
    """[M] bool: whether the visit of each row changes this attribute. More are true with a larger ``swap``."""
    return torch.rand(size, generator=generator_at(stream(seed, "swap", name))) < swap


def noise(name: str, size: int, seed: int) -> Tensor:
    """[M, 2] standard normal draws: for the row itself and for its neighbour."""
    return torch.randn(size, 2, generator=generator_at(stream(seed, "noise", name)))


def rounds(order_M: Tensor, neighbour_M: Tensor) -> Iterator[Tensor]:
    """The rows in groups [E] whose visits share no row; group by group is the same as visiting in ``order_M``.

    A visit goes as soon as no earlier one is left at either of its two rows, so all visits of one row keep their
    order. Each is looked at when one before it is done: O(M) in all, however long the queue at one row.
    """
    size = len(order_M)
    touched_N = torch.stack([order_M, neighbour_M[order_M]], dim=1).flatten()  # entries 2i and 2i + 1 are visit i's
    entry_N = touched_N.argsort(stable=True)  # by row, then by time
    same_N = touched_N[entry_N][1:] == touched_N[entry_N][:-1]
    follower_N = torch.full_like(touched_N, -1)  # the next visit of the same row
    follower_N[entry_N[:-1][same_N]] = entry_N[1:][same_N] // 2
    follower_M2 = follower_N.view(size, 2)
    waits_M = torch.bincount(follower_N[follower_N >= 0], minlength=size)
    ready_E = (waits_M == 0).nonzero().squeeze(1)
    while len(ready_E):
        yield order_M[ready_E]
        next_N = follower_M2[ready_E].flatten()
        next_N = next_N[next_N >= 0]
        waits_M.index_add_(0, next_N, torch.full_like(next_N, -1))
        ready_E = next_N[waits_M[next_N] == 0].unique()


def check(
    nominal: Mapping[str, Tensor],
    continuous: Mapping[str, Tensor],
    neighbour_M: Tensor,
    *,
    swap: float,
    variance: float,
) -> None:
    """Raise ``ValueError`` for what :func:`munge` cannot take."""
    size = len(neighbour_M)
    if not 0 <= swap <= 1:
        raise ValueError(f"swap is a probability, from 0 to 1, got {swap}")
    if not variance > 0:
        raise ValueError(f"variance must be above 0 (the larger, the nearer to a plain swap), got {variance}")
    for name, column in {**nominal, **continuous}.items():
        if len(column) != size:
            raise ValueError(f"column '{name}' has {len(column)} rows, neighbours are given for {size}")
    if size and not 0 <= int(neighbour_M.min()) <= int(neighbour_M.max()) < size:
        raise ValueError(f"neighbours must be row numbers from 0 to {size - 1}")
    own_M = neighbour_M == torch.arange(size, device=neighbour_M.device)
    if bool(own_M.any()):
        raise ValueError(f"row {int(own_M.nonzero()[0])} is its own neighbour; want another row")


def _columns(columns: list[Tensor], none: Tensor) -> Tensor:
    """The columns side by side in the last axis, ``none`` if there are none."""
    return torch.stack(columns, dim=-1) if columns else none

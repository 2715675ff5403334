"""A log sorted by group and time, so that "what came before t" is one binary search (floor 2).

A group is a combination of codes (a user, a user and a tag, ...). Entries are sorted by keys
``group << 34 | seconds``; the entries of a group strictly before t are those from the group's start to the place
of ``group << 34 | t``, and a count or a sum over them is a difference of two running totals.

Axes: N events, M entries (an event once for each of its tags), G groups, Q queries, R rows, T tags.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cascade_kd.errors import DataError

TIME_BITS = 34  # seconds since the first event: 544 years
MAX_SECONDS = (1 << TIME_BITS) - 1
MAX_GROUPS = 1 << (63 - TIME_BITS)
NO_GROUP = torch.iinfo(torch.int64).max


def mixed_radix(codes: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """One id for every combination of codes: [R, T], T the product of the widths of ``codes`` ([R] or [R, T])."""
    raw_RT = torch.zeros(1, 1, dtype=torch.int64, device=codes[0].device)
    for code, size in zip(codes, sizes, strict=True):
        code_RT = code if code.dim() == 2 else code[:, None]
        raw_RT = (raw_RT[:, :, None] * size + code_RT[:, None, :]).flatten(1)
    return raw_RT


def all_known(codes: Sequence[Tensor]) -> Tensor:
    """Which combinations [R, T] of :func:`mixed_radix` hold no code 0 (unknown, padding)."""
    known_RT = torch.ones(1, 1, dtype=torch.bool, device=codes[0].device)
    for code in codes:
        code_RT = code if code.dim() == 2 else code[:, None]
        known_RT = (known_RT[:, :, None] & (code_RT > 0)[:, None, :]).flatten(1)
    return known_RT


def build_index(codes: Sequence[Tensor], sizes: Sequence[int], second_N: Tensor, row_N: Tensor) -> LogIndex:
    """Index the events ``row_N`` by the combinations of ``codes``; a combination with a code 0 is left out.

    ``second_N`` are seconds since the data set's first event. Of equal (group, time), entries keep the events' order.
    Raises ``DataError`` where the combinations outnumber int64.
    """
    capacity = 1
    for size in sizes:
        capacity *= size
    if capacity >= 1 << 62:
        raise DataError(
            f"the keys of a statistic have {capacity:.1e} combinations, at most 4.6e18 are possible: use fewer keys"
        )
    raw_NT = mixed_radix(codes, sizes)
    known_NT = all_known(codes)
    place_M = known_NT.flatten().nonzero()[:, 0]
    raw_M = raw_NT.flatten()[place_M]
    event_M = place_M // raw_NT.shape[1]
    if capacity <= 4 * len(raw_M) + (1 << 16):  # few enough to address every combination
        group_G, rank_M, groups = None, raw_M, capacity
    else:
        group_G, rank_M = torch.unique(raw_M, return_inverse=True)
        groups = len(group_G)
        group_G = torch.cat([group_G, group_G.new_tensor([NO_GROUP])])
    assert groups < MAX_GROUPS, groups
    key_M, order_M = ((rank_M << TIME_BITS) | second_N[event_M]).sort(stable=True)
    bounds = torch.arange(groups + 2, dtype=torch.int64, device=key_M.device) << TIME_BITS
    return LogIndex(group_G, torch.searchsorted(key_M, bounds), key_M, row_N[event_M[order_M]])


def totals(index: LogIndex, raw_Q: Tensor, second_Q: Tensor, wanted: Sequence[Total]) -> list[Tensor]:
    """Every one of ``wanted`` over the entries of group ``raw_Q`` before ``second_Q``, each [Q], float64.

    An age is inf where no entry counts.
    """
    places = index.before(raw_Q, second_Q, tuple(dict.fromkeys(total.window for total in wanted)))
    return [_total(index, *places[total.window], second_Q, total) for total in wanted]


def _total(index: LogIndex, start_Q: Tensor, end_Q: Tensor, second_Q: Tensor, total: Total) -> Tensor:
    if total.of == "count":
        return (end_Q - start_Q).double()
    if total.of == "sum":
        assert total.running_M1 is not None
        return total.running_M1.index_select(0, end_Q) - total.running_M1.index_select(0, start_Q)
    if len(index.key_M) == 0:
        return torch.full_like(second_Q, torch.inf, dtype=torch.float64)
    last_Q = end_Q if total.running_M1 is None else total.running_M1.index_select(0, end_Q)
    time_Q = index.key_M.index_select(0, (last_Q - 1).clamp(min=0)) & MAX_SECONDS
    return (second_Q - time_Q).double().masked_fill(last_Q <= start_Q, torch.inf)


def running_sum(value_M: Tensor) -> Tensor:
    """[M+1]: the sum of the first m entries, float64, so that differences of large sums of 0 and 1 are exact.

    On the CPU: CUDA adds in another order at every call.
    """
    return torch.cat([value_M.new_zeros(1), value_M]).cpu().cumsum(0, dtype=torch.float64).to(value_M.device)


def last_true(true_M: Tensor) -> Tensor:
    """[M+1]: of the first m entries, the number of the last that is true, counted from 1; 0 if none is."""
    number_M = torch.arange(1, len(true_M) + 1, device=true_M.device) * true_M
    return torch.cat([number_M.new_zeros(1), number_M]).cummax(0).values


@dataclass(frozen=True)
class Total:
    """What to total over the entries of a window (seconds; None: all before).

    ``count`` of the entries; ``sum`` of what ``running_M1`` is the running sum of; ``age``, the seconds since the last
    entry, or since the last that is true where ``running_M1`` is from :func:`last_true`.
    """

    of: Literal["count", "sum", "age"]
    window: int | None = None
    running_M1: Tensor | None = None

    @property
    def empty(self) -> float:
        """The total of no entries."""
        return torch.inf if self.of == "age" else 0.0

    def over_groups(self, total_RT: Tensor) -> Tensor:
        """[R]: the totals of T groups of a row in one; the youngest of their ages."""
        return total_RT.amin(1) if self.of == "age" else total_RT.sum(1)


@dataclass(frozen=True)
class LogIndex:
    """The entries of a log sorted by group, then time."""

    group_G: Tensor | None  # ids of the groups, ascending, closed by NO_GROUP; None: group g has id g
    start_G: Tensor  # first entry of every group, closed by M
    key_M: Tensor  # position of the group << 34 | seconds
    row_M: Tensor  # the event of every entry

    def before(
        self, raw_Q: Tensor, second_Q: Tensor, windows: Sequence[int | None] = ()
    ) -> dict[int | None, tuple[Tensor, Tensor]]:
        """The entries of group ``raw_Q`` strictly before ``second_Q``: window -> start and end (exclusive), each [Q].

        Window None holds all of them, a window of w seconds those no earlier than ``second_Q - w``.
        """
        rank_Q = raw_Q if self.group_G is None else torch.searchsorted(self.group_G, raw_Q.contiguous())
        base_Q = rank_Q << TIME_BITS
        start_Q = self.start_G.index_select(0, rank_Q)
        end_Q = torch.searchsorted(self.key_M, base_Q | second_Q)
        if self.group_G is not None:  # an unknown group has no entries: nothing lies between its start and its end
            end_Q = torch.where(self.group_G[rank_Q] == raw_Q, end_Q, start_Q)
        places: dict[int | None, tuple[Tensor, Tensor]] = {None: (start_Q, end_Q)}
        for window in windows:
            if window is not None:
                from_Q = torch.searchsorted(self.key_M, base_Q | (second_Q - window).clamp(min=0))
                places[window] = torch.minimum(from_Q, end_Q), end_Q
        return places

"""A log sorted by group and time, so that "what came before t" is one binary search (floor 2).

A group is a combination of codes (a user, a user and a tag, ...). Entries are sorted by keys
``group << 34 | seconds``; the entries of a group strictly before t are those from the group's start to the place
of ``group << 34 | t``, and a count or a sum over them is a difference of two running totals.

Axes: N events, M entries (an event once for each of its tags), G groups, Q queries, R rows, T tags.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    return mixed_radix([(code > 0).long() for code in codes], [2] * len(codes)) == (1 << len(codes)) - 1


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


def differences(index: LogIndex, raw_Q: Tensor, second_Q: Tensor, running: Sequence[Tensor]) -> list[Tensor]:
    """The count of the entries before ``second_Q``, then one sum per running total [M+1]; each [Q], float64."""
    start_Q, end_Q = index.before(raw_Q, second_Q)
    sums = [total.index_select(0, end_Q) - total.index_select(0, start_Q) for total in running]
    return [(end_Q - start_Q).double(), *sums]


@dataclass(frozen=True)
class LogIndex:
    """The entries of a log sorted by group, then time."""

    group_G: Tensor | None  # ids of the groups, ascending, closed by NO_GROUP; None: group g has id g
    start_G: Tensor  # first entry of every group, closed by M
    key_M: Tensor  # position of the group << 34 | seconds
    row_M: Tensor  # the event of every entry

    def before(self, raw_Q: Tensor, second_Q: Tensor) -> tuple[Tensor, Tensor]:
        """The entries of group ``raw_Q`` strictly before ``second_Q``: start and end (exclusive), each [Q]."""
        rank_Q = raw_Q if self.group_G is None else torch.searchsorted(self.group_G, raw_Q.contiguous())
        start_Q = self.start_G.index_select(0, rank_Q)
        end_Q = torch.searchsorted(self.key_M, (rank_Q << TIME_BITS) | second_Q)
        if self.group_G is not None:
            end_Q = torch.where(self.group_G[rank_Q] == raw_Q, end_Q, start_Q)
        return start_Q, end_Q

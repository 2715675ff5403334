"""Histories and statistics as of a time, answered from indices of the log (floor 2).

Nothing is stored per row: :mod:`cascade_kd.data.log_index` finds the events of a group strictly before a time, and
training rows and candidates take the same path.

Which events a look-up reads ("the log") follows from the split and from the part that asks:

    split "time"     every event, whatever its part: online, all earlier events are known
    any other split  train and valid: the train part; test: the train and valid parts

Axes: N events, M entries of an index, R rows, B requests, T tags, L length of a history, V size of a vocabulary,
Q queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cascade_kd.data.log_index import MAX_SECONDS, LogIndex, all_known, build_index, differences, mixed_radix
from cascade_kd.errors import UserError
from cascade_kd.types import Part


def log_of(split: str, part: Part) -> str:
    """The log that ``part`` may read: ``all``, ``train`` or ``train+valid``."""
    if split == "time":
        return "all"
    return "train+valid" if part == "test" else "train"


def _ordered(keys: Sequence[str]) -> tuple[str, ...]:
    """Keys of one set in one order, those of the item last."""
    return tuple(sorted(keys, key=lambda key: (key.startswith("item"), key)))


def _context_columns(keys: Sequence[str]) -> list[str]:
    """The columns of ``context.<column>`` keys."""
    return [key.removeprefix("context.") for key in keys if key.startswith("context.")]


def context_column(name: str, context: Mapping[str, Tensor]) -> Tensor:
    """A column of the requests. Raises ``UserError`` if they lack it."""
    if name not in context:
        given = ", ".join(context) or "none"
        raise UserError(f"the requests lack the context column '{name}' (given: {given}); put it into their context")
    return context[name]


def _request_starts(raw_R: Tensor, time_R: Tensor) -> Tensor:
    """True where a row's (id, time) differs from the row before: rows of one request lie together."""
    new_R = torch.ones_like(raw_R, dtype=torch.bool)
    new_R[1:] = (raw_R[1:] != raw_R[:-1]) | (time_R[1:] != time_R[:-1])
    return new_R


@dataclass(frozen=True)
class Events:
    """The log: N rows sorted by (user, time, request). Codes and times are int64, times in unix seconds."""

    user_N: Tensor
    item_N: Tensor
    time_N: Tensor
    part_N: Tensor  # uint8: 0 train, 1 valid, 2 test
    labels: Mapping[str, Tensor]  # float32 0/1
    columns: Mapping[str, Tensor]  # feature name -> [N], context and pair side
    request_N: Tensor | None = None
    oracle_N: Tensor | None = None  # the label's true probability, generated worlds only


@dataclass(frozen=True)
class Statistic:
    """A count, sum or mean of ``value`` (a label) over the earlier events that share the keys."""

    name: str
    keys: tuple[str, ...]
    aggregate: str
    value: str | None
    smoothing: float
    prior: float

    def number(self, count_R: Tensor, sum_R: Tensor | None) -> Tensor:
        """The feature, float32: log1p(count), log1p(sum) or (sum + smoothing * prior) / (count + smoothing).

        A mean without smoothing and without events is the prior.
        """
        if self.aggregate == "count":
            return count_R.float().log1p()
        assert sum_R is not None
        if self.aggregate == "sum":
            return sum_R.float().log1p()
        mean_R = (sum_R + self.smoothing * self.prior) / (count_R + self.smoothing)
        return mean_R.nan_to_num(nan=self.prior).float()


@dataclass(frozen=True)
class History:
    """The last ``length`` items of a user, of the events with label ``events`` true (None: of all events)."""

    name: str
    length: int
    events: str | None


@dataclass(frozen=True, eq=False)
class Lookup:
    """What the log of one data set says as of a time; every index is built at its first use, on the log's device."""

    events: Events
    users: Mapping[str, Tensor]  # feature -> [U+1] or [U+1, T]
    items: Mapping[str, Tensor]
    sizes: Mapping[str, int]  # key ("user", "item", "item.genres", ...) -> V, code 0 included
    split: str
    time_offset: int
    _indices: dict[tuple[str, ...], LogIndex] = field(default_factory=dict, repr=False)
    _running: dict[tuple[str, ...], Tensor] = field(default_factory=dict, repr=False)

    def histories(self, wanted: Sequence[History], user_B: Tensor, time_B: Tensor, part: Part) -> dict[str, Tensor]:
        """Item codes [B, L] of each user's last events strictly before ``time_B``.

        Most recent first (index 0), padded with 0 at the end; of one second, the later row of the log comes first.
        """
        second_B = self._seconds(time_B)
        return {history.name: self._history(history, user_B, second_B, part) for history in wanted}

    def statistics(
        self,
        wanted: Sequence[Statistic],
        *,
        user_R: Tensor,
        item_R: Tensor,
        time_R: Tensor,
        context: Mapping[str, Tensor],
        part: Part,
    ) -> dict[str, Tensor]:
        """Statistics [R], float32, of the log's events strictly before ``time_R``; equal keys share a search.

        A tags key counts an event once for each of its tags and adds up the groups of the tags asked for. A code 0
        (unknown, padding) has no events.
        """
        second_R = self._seconds(time_R)
        sharing: dict[tuple[str, ...], list[Statistic]] = {}
        for statistic in wanted:
            sharing.setdefault(_ordered(statistic.keys), []).append(statistic)
        answers: dict[str, Tensor] = {}
        for keys, statistics in sharing.items():
            values = tuple(dict.fromkeys(s.value for s in statistics if s.aggregate != "count" and s.value is not None))
            codes = [self._codes(key, user_R, item_R, context) for key in keys]
            count_R, *sums = self._totals(keys, codes, second_R, values, log_of(self.split, part))
            by_value = dict(zip(values, sums, strict=True))
            for s in statistics:
                answers[s.name] = s.number(count_R, None if s.value is None else by_value.get(s.value))
        return answers

    def _seconds(self, time: Tensor) -> Tensor:
        return (time - self.time_offset).clamp(0, MAX_SECONDS)

    def _codes(self, key: str, user_R: Tensor, item_R: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        """The codes of one key, [R] or [R, T]: of the log's rows and of a query's alike."""
        side, _, name = key.partition(".")
        if side == "context":
            return context_column(name, context)
        table, code_R = (self.users, user_R) if side == "user" else (self.items, item_R)
        return table[name].index_select(0, code_R) if name else code_R

    def _rows(self, log: str, label: str | None) -> Tensor:
        """The log's row numbers, of the events with ``label`` true."""
        part_N = self.events.part_N
        keep_N = torch.ones_like(part_N, dtype=torch.bool) if log == "all" else part_N <= (log == "train+valid")
        if label is not None:
            keep_N = keep_N & (self.events.labels[label] > 0)
        return keep_N.nonzero()[:, 0]

    def _index(self, keys: tuple[str, ...], log: str, label: str | None = None) -> LogIndex:
        name = (*keys, log, label or "")
        if name not in self._indices:
            row_N = self._rows(log, label)
            events = self.events
            context = {column: events.columns[column][row_N] for column in _context_columns(keys)}
            codes = [self._codes(key, events.user_N[row_N], events.item_N[row_N], context) for key in keys]
            sizes = [self.sizes[key] for key in keys]
            self._indices[name] = build_index(codes, sizes, self._seconds(events.time_N[row_N]), row_N)
        return self._indices[name]

    def _running_total(self, keys: tuple[str, ...], log: str, value: str) -> Tensor:
        """Running total [M+1] of a label over the entries, float64 so that differences of large totals are exact."""
        name = (*keys, log, value)
        if name not in self._running:
            value_M = self.events.labels[value].double()[self._index(keys, log).row_M]
            self._running[name] = torch.cat([value_M.new_zeros(1), value_M.cumsum(0)])
        return self._running[name]

    def _history(self, history: History, user_B: Tensor, second_B: Tensor, part: Part) -> Tensor:
        log = log_of(self.split, part)
        index = self._index(("user",), log, history.events)
        name = ("history", log, history.events or "")
        if name not in self._running:  # the items of the entries behind a 0, which padded places point at
            item_M = self.events.item_N[index.row_M]
            self._running[name] = torch.cat([item_M.new_zeros(1), item_M])
        start_B, end_B = index.before(user_B, second_B)
        place_BL = end_B[:, None] - torch.arange(history.length, device=end_B.device)
        place_BL.masked_fill_(place_BL <= start_B[:, None], 0)
        return self._running[name].index_select(0, place_BL.flatten()).view(place_BL.shape)  # take costs twice that

    def _totals(
        self, keys: tuple[str, ...], codes: list[Tensor], second_R: Tensor, values: tuple[str, ...], log: str
    ) -> list[Tensor]:
        """The count and the sums of ``values`` over the earlier events of every row's groups, each [R], float64."""
        index = self._index(keys, log)
        sizes = [self.sizes[key] for key in keys]
        running = [self._running_total(keys, log, value) for value in values]
        by_request = self._totals_by_request(index, keys, codes, sizes, second_R, running)
        if by_request is not None:
            return by_request
        raw_RT = mixed_radix(codes, sizes)
        width = raw_RT.shape[1]
        if width == 1:
            return differences(index, raw_RT[:, 0], second_R, running)
        # Most places of a tags row are padding: search only those that hold a tag.
        place_Q = all_known(codes).flatten().nonzero()[:, 0]
        second_Q = second_R.index_select(0, place_Q // width)
        found = differences(index, raw_RT.take(place_Q), second_Q, running)
        return [x.new_zeros(raw_RT.numel()).index_copy_(0, place_Q, x).view(-1, width).sum(1) for x in found]

    def _totals_by_request(
        self,
        index: LogIndex,
        keys: tuple[str, ...],
        codes: list[Tensor],
        sizes: list[int],
        second_R: Tensor,
        running: list[Tensor],
    ) -> list[Tensor] | None:
        """The same by one search per (request, code of the item key), where that is fewer; else None."""
        code_RT = codes[-1] if codes[-1].dim() == 2 else codes[-1][:, None]
        size = sizes[-1]
        if not keys[-1].startswith("item") or code_RT.numel() < 2 * size:
            return None
        raw_R = mixed_radix(codes[:-1], sizes[:-1]) if codes[:-1] else torch.zeros_like(code_RT[:, :1])
        if raw_R.shape[1] != 1:
            return None
        raw_R = raw_R[:, 0]
        new_R = _request_starts(raw_R, second_R)
        first_B = new_R.nonzero()[:, 0]
        if 2 * len(first_B) * size > code_RT.numel():
            return None
        raw_BV = raw_R[first_B, None] * size + torch.arange(size, device=raw_R.device)
        found = differences(index, raw_BV.flatten(), second_R[first_B].repeat_interleave(size), running)
        place_RT = (new_R.cumsum(0) - 1)[:, None] * size + code_RT
        return [x.take(place_RT).sum(1) for x in found]

"""Histories and statistics as of a time, answered from indices of the log (floor 2).

:mod:`cascade_kd.data.log_index` finds the events of a group strictly before a time, for any user, item and time. The
statistics of the log's own rows are prepared as well (``Events.statistics``), bit for bit what is looked up here.

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

from cascade_kd.data.log_index import (
    MAX_SECONDS,
    LogIndex,
    Total,
    all_known,
    build_index,
    last_true,
    mixed_radix,
    running_sum,
    totals,
)
from cascade_kd.data.statistic import Statistic, Term, log_of, ordered_keys, terms_of
from cascade_kd.errors import UserError
from cascade_kd.types import Part


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
    position_N: Tensor | None = None  # where the item stood when it was shown
    oracle_N: Tensor | None = None  # the label's true probability, generated worlds only
    statistics: Mapping[str, Tensor] = field(default_factory=dict)  # float32, of the rows' own pairs, where prepared


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
        return {history.name: self._history(history, user_B, time_B, part) for history in wanted}

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
        """Statistics [R], float32, of the log's events in [time_R - window, time_R); equal keys share a search.

        A tags key counts an event once for each of its tags and adds up the groups of the tags asked for (a recency:
        the most recent of them). A code 0 (unknown, padding) has no events.
        """
        second_R = self._seconds(time_R)
        log = log_of(self.split, part)
        sharing: dict[tuple[str, ...], list[Statistic]] = {}
        for statistic in wanted:
            sharing.setdefault(ordered_keys(statistic.keys), []).append(statistic)
        answers: dict[str, Tensor] = {}
        for keys, statistics in sharing.items():
            codes = [self._codes(key, user_R, item_R, context) for key in keys]
            terms = tuple(dict.fromkeys(term for s in statistics for term in terms_of(s)))
            found = dict(zip(terms, self._totals(keys, codes, second_R, terms, log), strict=True))
            for s in statistics:
                of = {term.of: found[term] for term in terms_of(s)}
                answers[s.name] = s.number(of.get("count"), of.get("sum"), of.get("age"))
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

    def _total(self, keys: tuple[str, ...], log: str, term: Term) -> Total:
        """The term with what the index needs to answer it: one value an entry, kept from the first use on."""
        if term.value is None:
            return Total(term.of, term.window)
        name = (term.of, *keys, log, term.value)
        if name not in self._running:
            value_M = self.events.labels[term.value][self._index(keys, log).row_M]
            self._running[name] = running_sum(value_M) if term.of == "sum" else last_true(value_M > 0)
        return Total(term.of, term.window, self._running[name])

    def history_entries(
        self, history: History, user_B: Tensor, time_B: Tensor, part: Part
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the users' whole histories hold: ``item_M1, start_B, end_B``.

        A user's events strictly before ``time_B``, oldest first, have the items ``item_M1[start + 1 : end + 1]``; start
        is the same at all times. ``item_M1[0]`` is 0, for padded places to point at.
        """
        log = log_of(self.split, part)
        index = self._index(("user",), log, history.events)
        name = ("history", log, history.events or "")
        if name not in self._running:
            item_M = self.events.item_N[index.row_M]
            self._running[name] = torch.cat([item_M.new_zeros(1), item_M])
        start_B, end_B = index.before(user_B, self._seconds(time_B))[None]
        return self._running[name], start_B, end_B

    def _history(self, history: History, user_B: Tensor, time_B: Tensor, part: Part) -> Tensor:
        item_M1, start_B, end_B = self.history_entries(history, user_B, time_B, part)
        place_BL = end_B[:, None] - torch.arange(history.length, device=end_B.device)
        place_BL.masked_fill_(place_BL <= start_B[:, None], 0)
        return item_M1.index_select(0, place_BL.flatten()).view(place_BL.shape)  # take costs twice that

    def _totals(
        self, keys: tuple[str, ...], codes: list[Tensor], second_R: Tensor, terms: Sequence[Term], log: str
    ) -> list[Tensor]:
        """Every term over the earlier events of every row's groups, each [R], float64."""
        index = self._index(keys, log)
        sizes = [self.sizes[key] for key in keys]
        wanted = [self._total(keys, log, term) for term in terms]
        by_request = _totals_by_request(index, keys, codes, sizes, second_R, wanted)
        if by_request is not None:
            return by_request
        raw_RT = mixed_radix(codes, sizes)
        width = raw_RT.shape[1]
        if width == 1:
            return totals(index, raw_RT[:, 0], second_R, wanted)
        # Most places of a tags row are padding: search only those that hold a tag.
        place_Q = all_known(codes).flatten().nonzero()[:, 0]
        second_Q = second_R.index_select(0, place_Q // width)
        found = totals(index, raw_RT.take(place_Q), second_Q, wanted)
        return [
            total.over_groups(x.new_full((raw_RT.numel(),), total.empty).index_copy_(0, place_Q, x).view(-1, width))
            for total, x in zip(wanted, found, strict=True)
        ]


def _totals_by_request(
    index: LogIndex,
    keys: tuple[str, ...],
    codes: list[Tensor],
    sizes: list[int],
    second_R: Tensor,
    wanted: Sequence[Total],
) -> list[Tensor] | None:
    """The totals by one search per (request, code of the item key), where that is fewer; else None."""
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
    found = totals(index, raw_BV.flatten(), second_R[first_B].repeat_interleave(size), wanted)
    place_RT = (new_R.cumsum(0) - 1)[:, None] * size + code_RT
    return [total.over_groups(x.take(place_RT)) for total, x in zip(wanted, found, strict=True)]

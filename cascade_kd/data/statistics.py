"""The statistics of every row of the log, in one sorted pass for each set of keys (floor 2).

The same numbers as :class:`~cascade_kd.data.lookup.Lookup` answers for a row's own user, item and context, bit for
bit: events strictly before the row's second, of the log that the row's part may read, a tags key once for each tag,
nothing for a code 0.

The log comes whole, or in buckets in time order with no second in two of them. Of earlier buckets a key set keeps the
totals of every combination of codes that has occurred (8 bytes a key and 8 for each total), and, where a statistic has
a window, the entries of the longest window.

Axes: N rows of a bucket, T combinations of a row (more than one with tags), M entries (row, combination) sorted by
key and time, U runs of one key and second, G keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cascade_kd.data.checks import TIME_BITS
from cascade_kd.data.statistic import Statistic, Term, log_of, ordered_keys, statistics_of, terms_of
from cascade_kd.errors import DataError
from cascade_kd.types import PARTS

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
LAST_PART = {"train": 0, "train+valid": 1, "all": 2}  # of the events that a log holds
NEVER = -1  # the second of an event that there is not


def statistic_pass(meta: Mapping[str, Any], users: pl.DataFrame, items: pl.DataFrame) -> StatisticPass:
    """A pass over the log that ``meta`` (``meta.json``) and the tables of a prepared data set describe."""
    sizes = {"user": meta["num_users"] + 1, "item": meta["num_items"] + 1}
    sizes |= {f"{f['side']}.{f['name']}": f["size"] for f in meta["features"] if f["size"]}
    by_keys: dict[tuple[str, ...], list[Statistic]] = {}
    for statistic in statistics_of(meta).values():
        by_keys.setdefault(ordered_keys(statistic.keys), []).append(statistic)
    key_sets = [KeySet(keys, [sizes[key] for key in keys], sharing, meta["split"]) for keys, sharing in by_keys.items()]
    tables = {"user": users, "item": items}
    attributes = {
        key: tables[key.split(".")[0]][key.split(".", 1)[1]].to_numpy()
        for key_set in key_sets
        for key in key_set.keys
        if key.startswith(("user.", "item."))
    }
    return StatisticPass(key_sets, attributes, meta["time_offset"])


@dataclass(frozen=True)
class StatisticPass:
    """All statistics of a data set; ``attributes`` are the code columns of keys like ``item.genres``, row c code c."""

    key_sets: Sequence[KeySet]
    attributes: Mapping[str, Integers]
    time_offset: int

    def columns(self, events: pl.DataFrame) -> list[pl.Series]:
        """``statistic:NAME`` (Float32) of the next bucket, in the order of its rows, which may be any.

        ``events`` has user, item, time, part, label:NAME and feature:NAME as ``events.parquet``.
        """
        second_N = events["time"].to_numpy() - self.time_offset
        part_N = events["part"].to_numpy()
        out: list[pl.Series] = []
        for key_set in self.key_sets:
            codes = [self._codes(key, events) for key in key_set.keys]
            labels = {name: events[f"label:{name}"].to_numpy() > 0 for name in key_set.labels}
            found = key_set.totals(codes, second_N, part_N, labels)
            for s in key_set.statistics:
                of = {term.of: found[term] for term in terms_of(s)}
                number_N = s.formula(np, of.get("count"), of.get("sum"), of.get("age"))
                out.append(pl.Series(f"statistic:{s.name}", number_N.astype(np.float32)))
        return out

    def _codes(self, key: str, events: pl.DataFrame) -> Integers:
        """The codes of one key, [N] or [N, T]."""
        side, _, name = key.partition(".")
        column = f"feature:{name}" if side == "context" else side
        code_N = events[column].to_numpy()
        return self.attributes[key][code_N] if key in self.attributes else code_N


@dataclass(frozen=True)
class Entries:
    """M entries sorted by key, then second; ``row_M`` is the place of each among the bucket's entries, -1 of a tail."""

    key_M: Integers
    second_M: Integers
    part_M: NDArray[np.uint8]
    true: Mapping[str, NDArray[np.bool_]]  # label -> [M]
    row_M: Integers

    def take(self, keep_M: NDArray[np.bool_] | Integers) -> Entries:
        """Some of the entries."""
        true = {name: x[keep_M] for name, x in self.true.items()}
        return Entries(self.key_M[keep_M], self.second_M[keep_M], self.part_M[keep_M], true, self.row_M[keep_M])

    def counted(self, log: str, label: str | None) -> NDArray[np.bool_]:
        """Which entries are events of ``log`` (with ``label`` true), [M]."""
        in_log_M = self.part_M <= LAST_PART[log]
        return in_log_M if label is None else in_log_M & self.true[label]


@dataclass
class Carried:
    """What earlier buckets left: per key of ``key_G`` (ascending) a sum or a last second for each (term, log)."""

    key_G: Integers = field(default_factory=lambda: np.empty(0, np.int64))
    values: dict[tuple[str, str | None, str], Integers] = field(default_factory=dict)

    def at(self, name: tuple[str, str | None, str], key_Q: Integers) -> Integers:
        """The value of each key, [Q]: 0, or ``NEVER`` of a last second, where the key has none."""
        none = NEVER if name[0] == "age" else 0
        if name not in self.values:
            return np.full(len(key_Q), none, np.int64)
        place_Q, there_Q = self._places(key_Q)
        return np.where(there_Q, self.values[name][place_Q], none)

    def add(self, key_Q: Integers, new: Mapping[tuple[str, str | None, str], Integers]) -> None:
        """Take in the values of keys (ascending, distinct)."""
        place_Q, there_Q = self._places(key_Q)
        before_Q = np.searchsorted(self.key_G, key_Q[~there_Q])
        self.key_G = np.insert(self.key_G, before_Q, key_Q[~there_Q])
        place_Q = np.searchsorted(self.key_G, key_Q)
        for name, value_Q in new.items():
            none = NEVER if name[0] == "age" else 0
            old_G = self.values.pop(name, np.empty(0, np.int64))
            value_G = np.insert(old_G, before_Q, none)
            combine = np.maximum if name[0] == "age" else np.add
            value_G[place_Q] = combine(value_G[place_Q], value_Q)
            self.values[name] = value_G

    def _places(self, key_Q: Integers) -> tuple[Integers, NDArray[np.bool_]]:
        if len(self.key_G) == 0:
            return np.zeros(len(key_Q), np.int64), np.zeros(len(key_Q), np.bool_)
        place_Q = np.minimum(np.searchsorted(self.key_G, key_Q), len(self.key_G) - 1)
        return place_Q, self.key_G[place_Q] == key_Q


class KeySet:
    """The statistics that share ``keys``, and what they carry from bucket to bucket."""

    def __init__(self, keys: Sequence[str], sizes: Sequence[int], statistics: Sequence[Statistic], split: str) -> None:
        self.keys, self.statistics, self._sizes = keys, statistics, sizes
        self._terms = list(dict.fromkeys(term for s in statistics for term in terms_of(s)))
        self.labels = list(dict.fromkeys(term.value for term in self._terms if term.value is not None))
        self._log_of_part = [log_of(split, part) for part in PARTS]
        self._logs = list(dict.fromkeys(self._log_of_part))
        self._window = max((term.window or 0 for term in self._terms if term.of != "age"), default=0)
        self._carried = Carried()
        self._recent: Entries | None = None  # the entries of the bucket before, not carried until another comes
        capacity = float(np.prod([float(size) for size in sizes]))
        if capacity >= 1 << 62:
            raise DataError(
                f"the keys of a statistic have {capacity:.1e} combinations, at most 4.6e18 are possible: use fewer keys"
            )
        self._packs = capacity < 1 << (63 - TIME_BITS)

    def totals(
        self,
        codes: Sequence[Integers],
        second_N: Integers,
        part_N: NDArray[np.uint8],
        labels: Mapping[str, NDArray[np.bool_]],
    ) -> dict[Term, Floats]:
        """Every term of the statistics for every row of the bucket, [N]."""
        if len(second_N) == 0:
            return {term: np.empty(0) for term in self._terms}
        raw_NT, known_NT = _combinations(codes, self._sizes)
        place_M = np.flatnonzero(known_NT)
        event_M = place_M // raw_NT.shape[1]
        fresh = Entries(
            raw_NT.reshape(-1)[place_M],
            second_N[event_M],
            part_N[event_M],
            {name: x[event_M] for name, x in labels.items()},
            np.arange(len(place_M)),
        )
        if self._recent is not None:
            fresh = self._with_tail(self._recent, fresh, int(second_N.min()))
        entries = fresh.take(self._order(fresh))
        self._recent = entries
        runs = _Runs.of(entries)
        found: dict[Term, Floats] = {}
        for term in self._terms:
            by_log = {log: self._total(entries, runs, term, log) for log in self._logs}
            value_M = by_log[self._log_of_part[0]][runs.run_M]
            if len(by_log) > 1:
                value_M = np.where(entries.part_M == 2, by_log[self._log_of_part[2]][runs.run_M], value_M)
            found[term] = _by_row(term, entries.row_M, value_M, event_M, len(second_N))
        return found

    def _order(self, entries: Entries) -> Integers:
        """The order of the entries by key, then second."""
        if self._packs:
            return pl.Series(entries.key_M << TIME_BITS | entries.second_M).arg_sort().cast(pl.Int64).to_numpy()
        frame = pl.DataFrame({"key": entries.key_M, "second": entries.second_M})
        return frame.select(pl.arg_sort_by("key", "second").cast(pl.Int64)).to_series().to_numpy()

    def _with_tail(self, recent: Entries, fresh: Entries, first: int) -> Entries:
        """``fresh`` and the recent entries that a window can still reach; what is older goes into the totals."""
        reached_M = recent.second_M >= first - self._window
        self._absorb(recent.take(~reached_M))
        tail = recent.take(reached_M)
        return Entries(
            np.concatenate([tail.key_M, fresh.key_M]),
            np.concatenate([tail.second_M, fresh.second_M]),
            np.concatenate([tail.part_M, fresh.part_M]),
            {name: np.concatenate([tail.true[name], x]) for name, x in fresh.true.items()},
            np.concatenate([np.full(len(tail.key_M), -1), fresh.row_M]),
        )

    def _absorb(self, old: Entries) -> None:
        """Add the entries to the totals."""
        if len(old.key_M) == 0:
            return
        first_G = np.flatnonzero(np.diff(old.key_M, prepend=-1))
        new: dict[tuple[str, str | None, str], Integers] = {}
        for term in self._terms:
            for log in self._logs:
                counted_M = old.counted(log, term.value)
                if term.of == "age":
                    value_G = np.maximum.reduceat(np.where(counted_M, old.second_M, NEVER), first_G)
                else:
                    value_G = np.add.reduceat(counted_M.astype(np.int64), first_G)
                new[term.of, term.value, log] = value_G
        self._carried.add(old.key_M[first_G], new)

    def _total(self, entries: Entries, runs: _Runs, term: Term, log: str) -> Floats:
        """The term over the events of ``log`` before each run, [U]."""
        counted_M = entries.counted(log, term.value)
        carried_U = self._carried.at((term.of, term.value, log), runs.key_G)[runs.group_U]
        if term.of == "age":
            last_M1 = np.zeros(len(counted_M) + 1, np.int64)
            np.maximum.accumulate(counted_M * np.arange(1, len(counted_M) + 1), out=last_M1[1:])
            last_U = last_M1[runs.first_U]
            inside_U = last_U > runs.start_U
            latest_U = np.where(inside_U, entries.second_M[np.maximum(last_U - 1, 0)], carried_U)
            age_U = (runs.second_U - latest_U).astype(np.float64)
            gone_U = latest_U == NEVER
            return np.where(gone_U | (age_U > term.window) if term.window is not None else gone_U, np.inf, age_U)
        running_M1 = np.zeros(len(counted_M) + 1, np.int64)
        np.cumsum(counted_M, out=running_M1[1:])
        if term.window is None:
            total_U = carried_U + running_M1[runs.first_U] - running_M1[runs.start_U]
        else:
            total_U = running_M1[runs.first_U] - running_M1[runs.window_start(term.window)]
        return np.asarray(total_U, np.float64)


@dataclass(frozen=True)
class _Runs:
    """Sorted entries as runs of one key and second: events of a run are not before one another."""

    run_M: Integers  # the run of every entry
    first_U: Integers  # its first entry
    second_U: Integers
    group_U: Integers  # which key
    start_U: Integers  # the first entry of the key
    key_G: Integers

    @staticmethod
    def of(entries: Entries) -> _Runs:
        """The runs of sorted entries."""
        new_key_M = np.ones(len(entries.key_M), np.bool_)
        np.not_equal(entries.key_M[1:], entries.key_M[:-1], out=new_key_M[1:])
        new_run_M = new_key_M.copy()
        new_run_M[1:] |= entries.second_M[1:] != entries.second_M[:-1]
        first_U, first_G = np.flatnonzero(new_run_M), np.flatnonzero(new_key_M)
        group_U = np.cumsum(new_key_M[first_U]) - 1
        return _Runs(
            np.cumsum(new_run_M) - 1,
            first_U,
            entries.second_M[first_U],
            group_U,
            first_G[group_U],
            entries.key_M[first_G],
        )

    def window_start(self, window: int) -> Integers:
        """The first entry of each run's key that is no older than ``window`` seconds, [U]."""
        packed_U = self.group_U << TIME_BITS | self.second_U
        from_U = np.searchsorted(packed_U, self.group_U << TIME_BITS | np.maximum(self.second_U - window, 0))
        return self.first_U[from_U]


def _combinations(codes: Sequence[Integers], sizes: Sequence[int]) -> tuple[Integers, NDArray[np.bool_]]:
    """One id for every combination of the codes of a row, and whether it holds no code 0; each [N, T].

    As :func:`~cascade_kd.data.log_index.mixed_radix`.
    """
    raw_NT, known_NT = np.zeros((1, 1), np.int64), np.ones((1, 1), np.bool_)
    for code, size in zip(codes, sizes, strict=True):
        code_NT = code if code.ndim == 2 else code[:, None]
        shape = len(code_NT), raw_NT.shape[1] * code_NT.shape[1]
        raw_NT = (raw_NT[:, :, None] * size + code_NT[:, None, :]).reshape(shape)
        known_NT = (known_NT[:, :, None] & (code_NT > 0)[:, None, :]).reshape(shape)
    return raw_NT, known_NT


def _by_row(term: Term, row_M: Integers, value_M: Floats, event_M: Integers, rows: int) -> Floats:
    """Values of sorted entries as one value a row, [N]: the sum of its entries, the youngest of their ages."""
    asked_M = row_M >= 0
    entry_M = np.empty(len(event_M))
    entry_M[row_M[asked_M]] = value_M[asked_M]
    if term.of != "age":
        return np.bincount(event_M, entry_M, rows).astype(np.float64, copy=False)
    age_N = np.full(rows, np.inf)
    if len(event_M):
        first = np.flatnonzero(np.diff(event_M, prepend=-1))
        age_N[event_M[first]] = np.minimum.reduceat(entry_M, first)
    return age_N

"""Which features read what comes after their row (floor 6). N rows of the log, R rows compared.

The log is encoded again, once without its later events, once with the labels of its later rows shuffled. A feature that
is computed from what was known at its row has the same values in all three; users and items keep their codes. A column
of a user or item table is taken as it is: whether it was computed later, no log can tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from cascade_kd.data import Dataset, DatasetDefinition, load
from cascade_kd.data.checks import evaluated
from cascade_kd.data.encode import raw_values
from cascade_kd.data.log import HOLDERS, Log, Tables, build_log
from cascade_kd.data.meta import SCHEMA
from cascade_kd.data.prepare import encode_log, source_frames, write_prepared
from cascade_kd.evaluate.alone import column_of

COMPARED = 20_000  # rows on which histories and statistics are compared; stored values are compared on all
TOLERANCE = 1e-5  # of the value, for float32 sums in another order
SHOWN = 40  # characters of a value in an example

Rows = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]
Values = Mapping[str, pl.Series]


@dataclass(frozen=True)
class Change:
    """How many of the compared rows have another value, and one of them in words."""

    rows: int
    compared: int
    example: str


@dataclass(frozen=True)
class Leaks:
    """Feature -> what changes in earlier rows when the future changes; features that do not change are not there."""

    cut: Mapping[str, Change]  # without the later events
    shuffled: Mapping[str, Change]  # with the labels of later rows shuffled
    missing: Mapping[str, float]  # share of the test rows without a value, of stored features


@dataclass(frozen=True)
class _Audited:
    """The data set as it is: what the versions of its log are compared with."""

    definition: DatasetDefinition
    tables: Tables
    dataset: Dataset
    log: Log
    stored: Values
    seed: int


def find_leaks(definition: DatasetDefinition, tables: Tables, dataset: Dataset, *, seed: int = 0) -> Leaks:
    """Compare every feature of earlier rows with and without the future. ``dataset`` is what ``tables`` became.

    Later events are those at or after the first test event where the split is a time, else the test rows; for labels,
    those after training. Rows on which histories and statistics are compared are drawn by ``seed``.
    """
    log = build_log(definition, tables)
    part_N, time_N = log.events["part"].to_numpy(), log.events["time"].to_numpy()
    early_N, train_N = part_N < 2, part_N == 0
    if definition.split.kind == "time":  # a request of an earlier part may reach beyond the cut
        early_N = time_N < time_N[part_N == 2].min()
        train_N &= time_N <= time_N[part_N > 0].min()
    test = np.flatnonzero(part_N == 2)
    nearly_N = early_N.copy()
    nearly_N[test[-1]] = True  # a data set has no empty part; nobody may look at this row anyway
    stored = _stored(definition, log, tables)
    audited = _Audited(definition, tables, dataset, log, stored, seed)
    early, train = np.flatnonzero(early_N), np.flatnonzero(train_N)
    shuffled = _shuffled(audited)
    return Leaks(
        cut=_stored_changes(audited, _without(audited, early_N), early, _moved(early, early_N))
        | _looked_up_changes(audited, _without(audited, nearly_N), early, _moved(early, nearly_N)),
        shuffled=_stored_changes(audited, shuffled, train, train) | _looked_up_changes(audited, shuffled, train, train),
        missing={name: values.gather(test).null_count() / len(test) for name, values in stored.items()},
    )


def _moved(rows: Rows, kept_N: Mask) -> Rows:
    """Where ``rows`` stand in a log that holds the rows ``kept_N`` only."""
    return np.asarray(np.cumsum(kept_N) - 1)[rows]


def _stored_changes(audited: _Audited, other: Log, rows: Rows, moved: Rows) -> dict[str, Change]:
    """Of the events ``rows``, which stand at ``moved`` in the other log: values that are read from tables."""
    after = _stored(audited.definition, other, audited.tables)
    pairs = {name: (values.gather(rows), after[name].gather(moved)) for name, values in audited.stored.items()}
    return _changes(audited.log, rows, pairs)


def _looked_up_changes(audited: _Audited, other: Log, rows: Rows, moved: Rows) -> dict[str, Change]:
    """The same of ``COMPARED`` of the rows: histories and statistics."""
    names = [feature.name for feature in audited.definition.feature if not feature.is_stored]
    if not names:
        return {}
    some = np.sort(np.random.default_rng(audited.seed).permutation(len(rows))[:COMPARED])
    before = _looked_up(audited.dataset, names, rows[some])
    after = _looked_up(_dataset_of(audited.definition, other, audited.tables), names, moved[some])
    return _changes(audited.log, rows[some], {name: (before[name], after[name]) for name in names})


def _without(audited: _Audited, kept_N: Mask) -> Log:
    """The log with the rows ``kept_N`` only."""
    kept, log = pl.Series(kept_N), audited.log
    return _labelled(audited, replace(log, events=log.events.filter(kept), row=log.row.filter(kept)))


def _shuffled(audited: _Audited) -> Log:
    """The columns that labels are computed from, and the labels, permuted together among the rows after training."""
    definition, log = audited.definition, audited.log
    roles = set(definition.roles.model_dump(exclude={"time_unit"}, exclude_none=True).values())
    roots = {name for text in definition.labels.values() for name in pl.sql_expr(text).meta.root_names()} - roles
    later = np.flatnonzero(log.events["part"].to_numpy() > 0)
    order = np.arange(len(log.events))
    order[later] = np.random.default_rng(audited.seed).permutation(later)
    labels = [f"label:{name}" for name in definition.labels]
    events = log.events.with_columns(log.events[name].gather(order) for name in labels)
    raw = log.raw.with_columns(log.raw[name].gather(order) for name in sorted(roots))
    row = pl.int_range(len(raw), eager=True)
    return _labelled(audited, replace(log, events=events, table=raw, row=row))


def _labelled(audited: _Audited, other: Log) -> Log:
    """``other`` with the labels that its own rows give, where the log's rows give the log's labels.

    A label that looks ahead ("bought within the hour") is another one without the future, and so are its statistics.
    """
    fresh = []
    for name, expression in audited.definition.labels.items():
        column = f"label:{name}"
        have, made = (
            evaluated(expression, version.raw, table="events", who=f"label {name}").cast(pl.Float32).alias(column)
            for version in (audited.log, other)
        )
        if have.equals(audited.log.events[column]):
            fresh.append(made)
    return replace(other, events=other.events.with_columns(fresh))


def _stored(definition: DatasetDefinition, log: Log, tables: Tables) -> dict[str, pl.Series]:
    """The value before encoding, one a row of the log, of every feature that is read from a table."""
    frames = source_frames(definition, log, tables)
    values = {}
    for feature in definition.feature:
        if feature.is_stored:
            column = raw_values(feature, frames[feature.side, feature.source_table])
            if feature.side in HOLDERS:
                column = column.gather(log.events[feature.side] - 1)
            values[feature.name] = column
    return values


def _dataset_of(definition: DatasetDefinition, log: Log, tables: Tables) -> Dataset:
    meta, frames = encode_log(definition, log, tables)
    with TemporaryDirectory() as folder:
        write_prepared(Path(folder), {"schema": SCHEMA, "name": definition.name, "sha256": "", **meta}, frames)
        return load(Path(folder))


def _looked_up(dataset: Dataset, names: Sequence[str], rows: Rows) -> dict[str, pl.Series]:
    """Histories (item codes) and statistics of earlier rows, as training asks for them."""
    row_R = torch.from_numpy(rows)
    return {name: pl.Series(name, column_of(dataset, name, row_R, part="train").numpy()) for name in names}


def _changes(log: Log, rows: Rows, pairs: Mapping[str, tuple[pl.Series, pl.Series]]) -> dict[str, Change]:
    """The features whose values before and after differ somewhere; row r of a pair is event ``rows[r]``."""
    changes: dict[str, Change] = {}
    for name, (before, after) in pairs.items():
        places = _differs(before, after).arg_true()
        if len(places):
            place = int(places[0])
            event = log.events.row(int(rows[place]), named=True)
            who = f"user {log.user_ids[event['user'] - 1]}, item {log.item_ids[event['item'] - 1]}"
            example = f"{who}: {_short(before[place])} becomes {_short(after[place])}"
            changes[name] = Change(len(places), len(before), example)
    return changes


def _differs(one: pl.Series, two: pl.Series) -> pl.Series:
    """Where two columns hold different values; a missing value is a value, and floats may differ by rounding."""
    if one.dtype.is_nested():
        return _text(one).ne_missing(_text(two))
    two = two.cast(one.dtype, strict=False)
    if not one.dtype.is_float():
        return one.ne_missing(two)
    near = (one - two).abs() <= TOLERANCE * (1 + one.abs())
    return ~(one.eq_missing(two) | near.fill_null(False))


def _text(lists: pl.Series) -> pl.Series:
    lists = lists.arr.to_list() if isinstance(lists.dtype, pl.Array) else lists
    return lists.cast(pl.List(pl.String)).list.join(" ", ignore_nulls=True)


def _short(value: object) -> str:
    """A value as an example shows it."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = " ".join(str(x) for x in value) if isinstance(value, pl.Series) else str(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"

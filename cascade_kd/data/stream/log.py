"""The raw events to the log: columns sorted by (user, time, request, row), made one range of users at a time (floor 2).

A range has about ``bucket_rows`` events, or those of one user who has more. All that a user's events alone decide
(their order, requests, every kind of split but ``time``) is decided inside a range, by the code of a log in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cascade_kd.data.checks import check_no_nan, check_span, checked_ids
from cascade_kd.data.definition import DatasetDefinition
from cascade_kd.data.draws import text_hashes
from cascade_kd.data.encode import codes_of
from cascade_kd.data.log import dense_requests, draws, event_columns
from cascade_kd.data.readers import PART
from cascade_kd.data.split import later_counts, parts_by_user
from cascade_kd.data.stream.columns import column_path, create, order_statistic, read_rows, spans, write_at
from cascade_kd.data.stream.first import FirstRows
from cascade_kd.data.stream.ids import Known, coded
from cascade_kd.data.stream.pieces import Buckets
from cascade_kd.data.stream.raw import TABLE, RawEvents
from cascade_kd.data.stream.values import RawValues

START = "__start"  # of the row's request, where a split by time needs it


@dataclass(frozen=True)
class UserRanges:
    """The events, coded and dealt by ranges of users."""

    buckets: Buckets
    range_of: NDArray[np.int64]  # of the user of code c at c - 1
    has_valid: bool  # split "files": whether the data set brings a validation part


def deal_by_user(
    definition: DatasetDefinition,
    raw: RawEvents,
    *,
    known: Known,
    values: RawValues,
    first: FirstRows,
    folder: Path,
    done: Callable[[int], None],
) -> UserRanges:
    """Check, label and code the raw rows and deal them by ranges of users. Raises ``DataError``; see ``checks``.

    ``values`` and ``first`` take in what features need of the rows.
    """
    before = known.events_of.cum_sum() - known.events_of
    range_of = (before // definition.storage.bucket_rows).to_numpy()
    ranges = Buckets(folder)
    ends: list[tuple[int, int]] = []
    has_valid, rows = False, 0
    for batch in raw.batches():
        check_no_nan(batch, table=TABLE)
        users, items = (
            codes_of(coded(checked_ids(batch, column, table=TABLE), ids), ids)
            for column, ids in ((definition.roles.user, known.user_ids), (definition.roles.item, known.item_ids))
        )
        events = pl.DataFrame([users.alias("user"), items.alias("item")])
        events = events.with_columns(event_columns(definition, batch, first=rows))
        first.add(batch, events, rows)
        ranges.add(events.with_columns(values.columns(batch)), range_of[users.to_numpy() - 1])
        ends.append((int(events["time"].min()), int(events["time"].max())))  # type: ignore[arg-type]  # integers
        has_valid = has_valid or (PART in events.columns and bool((events[PART] == 1).any()))
        rows += len(batch)
        done(rows)
    if definition.roles.time is not None:
        check_span(min(low for low, _ in ends), max(high for _, high in ends), column=definition.roles.time)
    return UserRanges(ranges, range_of, has_valid)


def write_log(
    definition: DatasetDefinition,
    ranges: UserRanges,
    *,
    known: Known,
    folder: Path,
    raw_folder: Path,
    done: Callable[[int], None],
) -> int | None:
    """Write the columns of the log into ``folder``, those of features as they came into ``raw_folder``.

    The number of requests, None where the set has none.
    """
    hold_out = definition.split.kind == "files" and not ranges.has_valid
    hashes = None
    if hold_out and definition.hold_out == "random":
        hashes = text_hashes(known.user_ids), text_hashes(known.item_ids)
    rows = requests = 0
    has_requests = definition.roles.request is not None
    for number in range(int(ranges.range_of[-1]) + 1):
        events = ranges.buckets.take(number)
        if events is None:
            continue
        events = events.sort("user", "time", *(["request"] if has_requests else []), maintain_order=True)
        if has_requests:
            events = events.with_columns(dense_requests(events) + requests)
            requests += events["request"].n_unique()
        if hashes is not None:
            events = events.with_columns(draws(events, *hashes))
        if definition.split.kind != "time":
            events = events.with_columns(parts_by_user(events, definition.split, hold_out=hold_out))
        elif has_requests:
            events = events.with_columns(pl.col("time").min().over("request").alias(START))
        events = events.select(pl.exclude("^__(part|draw)$"))
        for column in events:
            path = column_path(raw_folder if column.name.startswith("feature:") else folder, column.name)
            if rows == 0:
                create(path, column.to_numpy().dtype, known.rows)
            write_at(path, rows, column.to_numpy())
        rows += len(events)
        done(rows)
    assert rows == known.rows, (rows, known.rows)
    if definition.split.kind == "time":
        _write_parts_by_time(definition, folder, rows)
    return requests if has_requests else None


def _write_parts_by_time(definition: DatasetDefinition, folder: Path, rows: int) -> None:
    """Split ``time``: two cuts of the whole log by the time of the row's request, else of the row."""
    start = column_path(folder, START if definition.roles.request is not None else "time")
    cuts = [order_statistic(start, rows - count) if count else None for count in later_counts(rows, definition.split)]
    parts = column_path(folder, "part")
    create(parts, np.uint8, rows)
    for span in spans(rows):
        start_N = read_rows(start, *span)
        part_N = np.zeros(len(start_N), np.uint8)
        for code, cut in enumerate(cuts, start=1):
            if cut is not None:
                part_N[start_N >= cut] = code
        write_at(parts, span[0], part_N)
    if definition.roles.request is not None:
        start.unlink()

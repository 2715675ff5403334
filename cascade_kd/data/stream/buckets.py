"""The log in the order of time, one bucket after the other: statistics, and the files that training reads (floor 2).

A bucket has about ``bucket_rows`` events (cut by a sample of the times) and whole seconds, so where times are coarse it
has those of one second. Statistics are carried from bucket to bucket.

    events/part=train/00000.parquet, ...    one file a bucket and part, rows by time, then row of the log (``row``)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cascade_kd.data.statistics import StatisticPass
from cascade_kd.data.stream.columns import (
    CHUNK,
    column_names,
    column_path,
    create,
    num_rows,
    read_rows,
    spans,
    write_at,
)
from cascade_kd.data.stream.pieces import Buckets
from cascade_kd.types import PARTS

ROW_GROUP = 65_536
SAMPLE = 1 << 20  # times that the cuts are taken from
ROW = "row"


def deal_by_time(log: Path, folder: Path, *, bucket_rows: int, done: Callable[[int], None]) -> tuple[Buckets, int]:
    """Deal the rows of the log, with their number ``row``, by time; the buckets and how many there are."""
    rows = num_rows(column_path(log, "time"))
    edges = _edges(column_path(log, "time"), rows, bucket_rows)
    buckets = Buckets(folder)
    names = column_names(log)
    for start, stop in spans(rows, min(bucket_rows, CHUNK)):
        columns = {name: read_rows(column_path(log, name), start, stop) for name in names}
        frame = pl.DataFrame({ROW: np.arange(start, stop), **columns})
        buckets.add(frame, np.searchsorted(edges, columns["time"], side="right"))
        done(stop)
    return buckets, len(edges) + 1


def write_stream(
    buckets: Buckets,
    count: int,
    *,
    log: Path,
    events: Path,
    statistics: StatisticPass | None,
    spare: Path,
    done: Callable[[int], None],
) -> None:
    """Write the files of every part, and ``statistic:NAME`` into the log as well, by way of the folder ``spare``."""
    written = dict.fromkeys(range(len(PARTS)), 0)
    by_row = Buckets(spare)
    rows = 0
    for number in range(count):
        bucket = buckets.take(number)
        if bucket is None:
            continue
        bucket = bucket.sort("time", ROW)
        if statistics is not None:
            columns = statistics.columns(bucket)
            bucket = bucket.with_columns(columns)
            by_row.add(pl.DataFrame([bucket[ROW], *columns]), bucket[ROW].to_numpy() // CHUNK)
        for (code,), part in bucket.partition_by("part", as_dict=True, include_key=False, maintain_order=True).items():
            folder = events / f"part={PARTS[code]}"
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{written[code]:05d}.parquet"
            part.write_parquet(path, compression="lz4", row_group_size=ROW_GROUP, statistics=False)
            written[code] += 1
        rows += len(bucket)
        done(rows)
    if statistics is not None:
        _write_statistics(by_row, log, rows)


def _edges(times: Path, rows: int, bucket_rows: int) -> NDArray[np.int64]:
    """The first second of every bucket but the first."""
    step = -(-rows // SAMPLE)
    sample = np.sort(np.concatenate([read_rows(times, *span)[::step] for span in spans(rows)]))
    places = np.arange(bucket_rows, rows, bucket_rows) // step
    later = sample[places[places < len(sample)]]
    return np.unique(later[later > sample[0]]).astype(np.int64)


def _write_statistics(by_row: Buckets, log: Path, rows: int) -> None:
    """The columns of statistics, dealt by ``row // CHUNK``, into the log."""
    for number, (start, stop) in enumerate(spans(rows)):
        columns = by_row.take(number)
        assert columns is not None
        assert len(columns) == stop - start
        columns = columns.sort(ROW).drop(ROW)
        for column in columns:
            path = column_path(log, column.name)
            if start == 0:
                create(path, np.float32, rows)
            write_at(path, start, column.to_numpy())

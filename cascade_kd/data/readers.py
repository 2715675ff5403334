"""Files to frames: csv with any separator, parquet, ndjson, arrow, libsvm, lines (floor 2).

A frame holds the wanted columns, ``ROW`` (1-based row, headers excluded, counted through the files of a part) and, for
a source of files by part, ``PART`` (0 train, 1 valid, 2 test). Text is typed by the whole column, not by its first
rows: whole numbers without leading zeros become Int64, other numbers Float64, anything else stays text (so a zip code
keeps its zeros). An empty field is missing. ``key=value`` folders give columns, which are typed likewise.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl

from cascade_kd.data.delimited import (
    ROW,
    check_columns,
    first_line,
    positions,
    read_csv,
    read_libsvm,
    read_lines,
    typed,
)
from cascade_kd.data.files import SourceFile, source_files
from cascade_kd.data.source import TableSource
from cascade_kd.errors import DataError

PART = "__part"
LINE_COLUMNS = ["line", "number"]
SCANNED: dict[str, Callable[[Path], pl.LazyFrame]] = {"parquet": pl.scan_parquet, "arrow": pl.scan_ipc}

Wanted = Mapping[str, str]  # column -> who wants it


def read_table(table: str, source: TableSource, folder: Path, wanted: Wanted | None = None) -> pl.DataFrame:
    """The ``wanted`` columns (None: all) of a table read from files, with ``ROW`` and, for ``files``, ``PART``.

    Raises ``DataError`` for a missing file, a table without rows, a missing column, a wrong separator or encoding, a
    row of wrong width.
    """
    files = source_files(table, source, folder)
    partition = partition_columns(files)
    inside = None if wanted is None else {name: user for name, user in wanted.items() if name not in partition}
    parts: dict[int | None, list[pl.DataFrame]] = {}
    for place, file in enumerate(files):
        frame = _read_file(table, source, file.path, inside).with_columns(_literals(partition, place))
        parts.setdefault(file.part, []).append(frame if wanted is None else frame.select(list(wanted)))
    frames = [
        _stacked(table, of_part).with_row_index(ROW, offset=1).with_columns(_part_literal(part))
        for part, of_part in parts.items()
    ]
    frame = _stacked(table, frames)
    if frame.height == 0:
        raise DataError(f"the table is empty ({named(files)} no rows)", table=table)
    if source.format == "libsvm":
        frame = positions(table, source, frame)
    if source.is_text:
        with ThreadPoolExecutor() as pool:  # Polars casts one column with one thread
            frame = frame.with_columns(*pool.map(typed, frame.select(pl.col(pl.String))))
    return frame


def scan_table(table: str, source: TableSource, folder: Path) -> pl.LazyFrame:
    """All columns of a table read from files, with ``PART`` for ``files``; parquet and arrow are read when asked.

    Raises ``DataError`` as :func:`read_table`, but for what the rows of parquet and arrow files show later.
    """
    if source.format not in SCANNED:
        return read_table(table, source, folder).lazy().drop(ROW)
    files = source_files(table, source, folder)
    partition = partition_columns(files)
    scans = [
        _scanned(table, source.format, file.path).with_columns(*_literals(partition, place), *_part_literal(file.part))
        for place, file in enumerate(files)
    ]
    return pl.concat(scans, how="vertical_relaxed")


def partition_columns(files: list[SourceFile]) -> dict[str, pl.Series]:
    """The columns that the folders' names give, one row a file, typed by the whole column."""
    rows = [dict(file.partition) for file in files]
    return {key: typed(pl.Series(key, [row[key] for row in rows], pl.String)) for key in rows[0]}


def _literals(partition: Mapping[str, pl.Series], place: int) -> list[pl.Expr]:
    """The partition columns of one file."""
    return [pl.lit(column[place], column.dtype).alias(name) for name, column in partition.items()]


def _part_literal(part: int | None) -> list[pl.Expr]:
    return [] if part is None else [pl.lit(part, pl.UInt8).alias(PART)]


def _stacked(table: str, frames: list[pl.DataFrame]) -> pl.DataFrame:
    """The rows of several files of the same columns."""
    if len(frames) == 1:
        return frames[0]
    filled = [frame for frame in frames if frame.height] or frames[:1]
    for frame in filled[1:]:
        if set(frame.columns) != set(filled[0].columns):
            other = ", ".join(sorted(set(frame.columns) ^ set(filled[0].columns)))
            raise DataError(f"its files differ in the columns {other}", table=table)
    try:
        return pl.concat([frame.select(filled[0].columns) for frame in filled], how="vertical_relaxed")
    except pl.exceptions.PolarsError as error:
        raise DataError(f"its files differ in the types of their columns: {first_line(error)}", table=table) from error


def named(files: list[SourceFile]) -> str:
    """The files, for a message."""
    return f"{files[0].path} has" if len(files) == 1 else f"{files[0].path} and {len(files) - 1} more have"


def _read_file(table: str, source: TableSource, path: Path, wanted: Wanted | None) -> pl.DataFrame:
    """The wanted columns of one file; no rows where it has none."""
    if path.stat().st_size == 0:
        return pl.DataFrame(schema=dict.fromkeys(wanted or LINE_COLUMNS, pl.String))
    if source.format == "csv":
        return read_csv(table, source, path, wanted)
    if source.format == "libsvm":
        return read_libsvm(table, source, path, wanted)
    if source.format == "lines":
        check_columns(table, LINE_COLUMNS, wanted or {})
        return read_lines(table, source, path).select(list(wanted or LINE_COLUMNS))
    return _read_typed_file(table, source.format, path, wanted)


def _read_typed_file(table: str, format_: str, path: Path, wanted: Wanted | None) -> pl.DataFrame:
    """Parquet, arrow and ndjson bring their own types."""
    lazy = _scanned(table, format_, path)
    names = lazy.collect_schema().names()
    check_columns(table, names, wanted or {})
    try:
        return lazy.select(names if wanted is None else list(wanted)).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path} is not readable as {format_}: {first_line(error)}", table=table) from error


def _scanned(table: str, format_: str, path: Path) -> pl.LazyFrame:
    """A file of its own types, its columns known."""
    try:
        if format_ == "ndjson":
            return pl.read_ndjson(path, infer_schema_length=None).lazy()
        lazy = SCANNED[format_](path)
        lazy.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        row = _bad_json_row(path) if format_ == "ndjson" else None
        raise DataError(f"{path} is not readable as {format_}: {first_line(error)}", table=table, row=row) from error
    return lazy


def _bad_json_row(path: Path) -> int | None:
    """The first line that is not a JSON object."""
    with path.open("rb") as lines:
        for row, line in enumerate(lines, start=1):
            try:
                if not isinstance(json.loads(line), dict):
                    return row
            except ValueError:
                return row
    return None

"""Files to frames: csv with any separator, parquet, ndjson, libsvm (floor 2).

A frame holds the wanted columns, ``ROW`` (1-based row of its file, header excluded) and, for a source of three files,
``PART`` (0 train, 1 valid, 2 test). Text is typed by the whole column, not by its first rows: whole numbers without
leading zeros become Int64, other numbers Float64, anything else stays text (so a zip code keeps its zeros). An empty
field is missing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from cascade_kd.data.delimited import ROW, check_columns, first_line, read_csv, read_libsvm
from cascade_kd.data.problems import did_you_mean
from cascade_kd.data.schema import TableSource
from cascade_kd.errors import DataError

PART = "__part"


def read_table(table: str, source: TableSource, folder: Path, wanted: Mapping[str, str]) -> pl.DataFrame:
    """The ``wanted`` columns (name -> who wants it) of a table, with ``ROW`` and, for ``files``, ``PART``.

    Raises ``DataError`` for a missing or empty file, a missing column, a wrong separator or encoding, a row of wrong
    width.
    """
    frames = [_read_file(table, source, path, wanted) for path in source_files(table, source, folder)]
    if source.files is None:
        return frames[0]
    parts = [frame.with_columns(pl.lit(part, pl.UInt8).alias(PART)) for part, frame in enumerate(frames)]
    return pl.concat(parts, how="vertical_relaxed")


def source_files(table: str, source: TableSource, folder: Path) -> list[Path]:
    """The files of a table. Raises ``DataError`` for one that is missing, with what the folder holds."""
    paths = [folder / name for name in source.paths]
    for path in paths:
        if not path.is_file():
            there = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
            listing = f"; the folder holds: {', '.join(there[:20])}" if there else ""
            raise DataError(f"no file {path}{listing}{did_you_mean(path.name, there)}", table=table)
        if not os.access(path, os.R_OK):
            raise DataError(f"no permission to read {path}", table=table)
    return paths


def _read_file(table: str, source: TableSource, path: Path, wanted: Mapping[str, str]) -> pl.DataFrame:
    if path.stat().st_size == 0:
        raise DataError(f"the table is empty ({path} has no bytes)", table=table)
    if source.format == "csv":
        frame = read_csv(table, source, path, wanted)
    elif source.format == "libsvm":
        frame = read_libsvm(table, source, path, wanted)
    else:
        frame = _read_typed_file(table, source.format, path, wanted)
    if frame.height == 0:
        raise DataError(f"the table is empty ({path} has no rows)", table=table)
    return frame


def _read_typed_file(table: str, format_: str, path: Path, wanted: Mapping[str, str]) -> pl.DataFrame:
    """Parquet and ndjson bring their own types."""
    try:
        if format_ == "parquet":
            check_columns(table, list(pl.read_parquet_schema(path)), wanted)
            frame = pl.read_parquet(path, columns=list(wanted))
        else:
            frame = pl.read_ndjson(path, infer_schema_length=None)
            check_columns(table, frame.columns, wanted)
            frame = frame.select(list(wanted))
    except pl.exceptions.PolarsError as error:
        row = _bad_json_row(path) if format_ == "ndjson" else None
        raise DataError(f"{path} is not readable as {format_}: {first_line(error)}", table=table, row=row) from error
    return frame.with_row_index(ROW, offset=1)


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

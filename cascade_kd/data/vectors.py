"""Precomputed vectors of users and items: a list column, or a .npy beside the tables (floor 2). N rows, W width."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from cascade_kd.data.checks import refuse_rows
from cascade_kd.data.definition import DatasetDefinition
from cascade_kd.data.delimited import ROW
from cascade_kd.data.features import FeatureDefinition
from cascade_kd.data.files import source_files
from cascade_kd.data.source import TableSource
from cascade_kd.errors import DataError


def vector_files(definition: DatasetDefinition, folder: Path) -> dict[str, Path]:
    """Column -> the .npy that it comes from. Raises ``DataError`` for one that is missing."""
    return {f.source_column: _file(f, folder) for f in definition.feature if f.file is not None}


def with_vectors(
    definition: DatasetDefinition, tables: Mapping[str, pl.DataFrame], folder: Path
) -> dict[str, pl.DataFrame]:
    """The tables with a column for each .npy: row i of the file belongs to row i of the table.

    Raises ``DataError`` for a file that is no matrix of numbers or has another number of rows.
    """
    tables = dict(tables)
    for feature in definition.feature:
        if feature.file is not None:
            table = tables[feature.source_table]
            matrix = _matrix(feature, folder, table.height)
            column = pl.Series(feature.source_column, matrix, dtype=pl.Array(pl.Float32, matrix.shape[1]))
            tables[feature.source_table] = table.with_columns(column)
    return tables


def checked_vectors(values: pl.Series, frame: pl.DataFrame, *, table: str, column: str) -> tuple[pl.Series, int]:
    """Array[Float32, W], zeros where there is none, and how many there are not.

    An empty list is a missing vector. Raises ``DataError`` for anything but lists of finite numbers of one width.
    """
    inner = values.dtype.inner if isinstance(values.dtype, (pl.List, pl.Array)) else None
    if inner is None or not inner.is_numeric():
        raise DataError(f"a vector is a list of numbers, got {values.dtype}", table=table, column=column)
    values = values.cast(pl.List(pl.Float32), strict=False)
    width_N = values.list.len().fill_null(0)
    known_N = width_N > 0
    if not known_N.any():
        raise DataError("no row has a vector", table=table, column=column)
    first = int(known_N.arg_max() or 0)
    width = int(width_N[first])
    other = known_N & (width_N != width)
    example = width_N.filter(other)[0] if other.any() else 0
    message = f"a vector of {example} numbers, where row {frame[ROW][first]} has {width} ({{count}} rows differ)"
    refuse_rows(other, message, frame, table=table, column=column)
    numbers = values.filter(known_N).explode().to_numpy().reshape(-1, width)  # a missing number is NaN here
    broken = np.zeros(len(values), np.bool_)
    broken[known_N.to_numpy()] = ~np.isfinite(numbers).all(axis=1)
    message = "a number is missing, NaN or infinite ({count} rows); leave the whole vector empty, or mend it"
    refuse_rows(pl.Series(broken), message, frame, table=table, column=column)
    vector_NW = np.zeros((len(values), width), np.float32)
    vector_NW[known_N.to_numpy()] = numbers
    return pl.Series(values.name, vector_NW, dtype=pl.Array(pl.Float32, width)), int((~known_N).sum())


def _file(feature: FeatureDefinition, folder: Path) -> Path:
    return source_files(feature.source_table, TableSource(file=feature.file), folder)[0].path


def _matrix(feature: FeatureDefinition, folder: Path, height: int) -> np.ndarray:
    """[N, W], float32."""
    path = _file(feature, folder)
    table = feature.source_table
    try:
        matrix = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} is not readable as .npy: {error}", table=table, column=feature.name) from error
    if matrix.ndim != 2 or matrix.shape[1] == 0 or matrix.dtype.kind not in "iuf":
        what = f"{matrix.dtype} of shape {list(matrix.shape)}"
        raise DataError(
            f"vectors are numbers of shape [rows, width], {path} holds {what}", table=table, column=feature.name
        )
    if len(matrix) != height:
        raise DataError(
            f"{path} has {len(matrix)} rows, the table {height}; row i of the one belongs to row i of the other",
            table=table,
            column=feature.name,
        )
    return np.ascontiguousarray(matrix, dtype=np.float32)

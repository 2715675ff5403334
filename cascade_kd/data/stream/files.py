"""The Parquet files of one part of a stream, as one sequence of rows (floor 2).

    events/part=train/00000.parquet, 00001.parquet, ...    sorted by time, in row groups of ``ROW_GROUP`` rows

Column by column into tensors that the caller made: no frame outlives a read. N rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from cascade_kd.data.problems import did_you_mean
from cascade_kd.data.stream.buckets import ROW_GROUP
from cascade_kd.errors import DataError, UserError

DTYPES: dict[type[pl.DataType], torch.dtype] = {
    pl.Int64: torch.int64,
    pl.Int32: torch.int32,
    pl.UInt8: torch.uint8,
    pl.Float32: torch.float32,
    pl.Float64: torch.float64,
}


class StreamFiles:
    """Rows 0 .. M-1 of a folder of Parquet files in the order of their names. Raises ``DataError`` if it has none."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.parquet"))
        if not self.paths:
            raise DataError(f"{folder} holds no Parquet file of a stream; prepare the data set again")
        self.schema = pl.read_parquet_schema(self.paths[0])
        rows = [int(pl.scan_parquet(path).select(pl.len()).collect().item()) for path in self.paths]
        self.rows_F = np.array(rows, np.int64)
        self.first_F = np.cumsum(self.rows_F) - self.rows_F

    @property
    def num_rows(self) -> int:
        """M."""
        return int(self.rows_F.sum())

    def group_sizes(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Rows of every row group, in order: ``ROW_GROUP``, but for the last of a file."""
        sizes = [np.diff(np.append(np.arange(0, rows, ROW_GROUP), rows)) for rows in self.rows_F.tolist()]
        return np.concatenate(sizes)

    def true_in_groups(self, column: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """How many rows of every row group have a ``column`` above 0; one file's column in memory at a time."""
        counts = []
        for path, rows in zip(self.paths, self.rows_F.tolist(), strict=True):
            true_N = pl.read_parquet(path, columns=[column])[column].to_numpy() > 0
            counts.append(np.add.reduceat(true_N, np.arange(0, rows, ROW_GROUP), dtype=np.int64))
        return np.concatenate(counts)

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raise ``UserError`` for a column that the files lack."""
        for name in columns:
            if name not in self.schema:
                have = ", ".join(self.schema)
                raise UserError(
                    f"the stream has no column '{name}'; it has: {have}{did_you_mean(name, list(self.schema))}"
                )

    def empty(self, columns: Sequence[str], rows: int) -> dict[str, Tensor]:
        """Tensors [rows] of the columns' types, not filled."""
        return {name: torch.empty(rows, dtype=DTYPES[self.schema[name].base_type()]) for name in columns}

    def read_into(self, out: Mapping[str, Tensor], at: int, first: int, count: int) -> None:
        """Fill ``out[name][at : at + count]`` with the stream's rows ``first .. first + count``."""
        while count:
            number = int(np.searchsorted(self.first_F, first, side="right")) - 1
            offset = first - int(self.first_F[number])
            take = min(count, int(self.rows_F[number]) - offset)
            frame = pl.scan_parquet(self.paths[number]).select(list(out)).slice(offset, take).collect()
            for name, tensor in out.items():
                place = at
                for chunk in frame[name].get_chunks():
                    tensor.numpy()[place : place + len(chunk)] = chunk.to_numpy()
                    place += len(chunk)
            at, first, count = at + take, first + take, count - take

"""Rows dealt into numbered buckets on disk, each read once and removed (floor 2)."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

BUCKET = "__bucket"


class Buckets:
    """A folder with a folder for each bucket, which holds its rows as one file for each frame they came in."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._frames = 0
        folder.mkdir()

    def add(self, frame: pl.DataFrame, bucket_N: NDArray[np.integer]) -> None:
        """Deal the rows of a frame; a bucket keeps the order in which its rows came."""
        numbered = frame.with_columns(pl.Series(BUCKET, bucket_N))
        for (bucket,), rows in numbered.partition_by(BUCKET, as_dict=True, include_key=False).items():
            folder = self._bucket(int(bucket))
            folder.mkdir(exist_ok=True)
            rows.write_ipc(folder / f"{self._frames:06d}.arrow", compression="lz4")
        self._frames += 1

    def take(self, bucket: int) -> pl.DataFrame | None:
        """All rows of a bucket, which is removed; None where it has none."""
        folder = self._bucket(bucket)
        if not folder.is_dir():
            return None
        frame = pl.concat([pl.read_ipc(path) for path in sorted(folder.iterdir())], rechunk=True)
        shutil.rmtree(folder)
        return frame

    def _bucket(self, bucket: int) -> Path:
        return self._folder / f"{bucket:06d}"

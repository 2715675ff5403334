"""Columns of the log on disk, one ``.npy`` each, written and read in pieces (floor 2).

    log/user.npy, log/label.click.npy (the column ``label:click`` of the log), ...

Reads copy, so that what is resident is what was asked for. N rows of a column.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

CHUNK = 1 << 21  # rows of one read
BINS = 16  # bits of the histogram of an order statistic


def column_path(folder: Path, name: str) -> Path:
    """The file of a column: no colon, which some file systems refuse."""
    return folder / f"{name.replace(':', '.', 1)}.npy"


def column_names(folder: Path) -> list[str]:
    """The columns of a folder. Only the prefixes of the log's own columns hold a colon, and no other name a dot."""
    return [path.name.removesuffix(".npy").replace(".", ":", 1) for path in sorted(folder.glob("*.npy"))]


def create(path: Path, dtype: DTypeLike, rows: int) -> None:
    """A column of zeros."""
    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": (rows,)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + rows * np.dtype(dtype).itemsize)


def write_at(path: Path, start: int, value_N: NDArray[Any]) -> None:
    """Set the rows from ``start`` on."""
    with path.open("r+b") as file:
        rows, dtype = _header(file)
        assert start + len(value_N) <= rows, (start, len(value_N), rows)
        file.seek(file.tell() + start * dtype.itemsize)
        np.ascontiguousarray(value_N, dtype).tofile(file)


def num_rows(path: Path) -> int:
    """The length of a column."""
    with path.open("rb") as file:
        return _header(file)[0]


def read_rows(path: Path, start: int, stop: int) -> NDArray[Any]:
    """The rows ``start .. stop``."""
    with path.open("rb") as file:
        _, dtype = _header(file)
        return np.fromfile(file, dtype, stop - start, offset=start * dtype.itemsize)


def spans(rows: int, size: int = CHUNK) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive pieces of ``rows`` rows."""
    for start in range(0, rows, size):
        yield start, min(start + size, rows)


def order_statistic(path: Path, rank: int) -> int:
    """The value that would stand at ``rank`` (from 0) if the whole numbers of the column were sorted.

    By histograms of the leading bits: one pass for the ends, one for each 16 bits of what lies between them.
    """
    rows = num_rows(path)
    ends = [(int(x.min()), int(x.max())) for x in (read_rows(path, *span) for span in spans(rows))]
    low, bits = min(first for first, _ in ends), (max(last for _, last in ends) - min(first for first, _ in ends))
    bits = max(bits.bit_length(), 1)
    while bits:
        shift = max(bits - BINS, 0)
        count_V = np.zeros(1 << (bits - shift), np.int64)
        for span in spans(rows):
            above_N = read_rows(path, *span) - low
            inside_N = above_N[(above_N >= 0) & (above_N >> bits == 0)]
            count_V += np.bincount(inside_N >> shift, minlength=len(count_V))
        total_V = count_V.cumsum()
        place = int(np.searchsorted(total_V, rank, side="right"))
        rank -= int(total_V[place - 1]) if place else 0
        low, bits = low + (place << shift), shift
    return low


def _header(file: BinaryIO) -> tuple[int, np.dtype[Any]]:
    """Rows and type; the file is left at its first row."""
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return int(shape[0]), dtype

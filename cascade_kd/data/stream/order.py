"""In which order an epoch reads the rows of a stream: a function of (seed, epoch, shard) alone (floor 2).

The row groups of the stream are permuted; the permuted sequence is cut into one stretch of rows a shard (a row group
that a cut runs through is read by both sides, each taking its own rows), and a stretch into windows of row groups.

Axes: G row groups of the stream, P pieces (row groups, or parts of one) of a window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cascade_kd.streams import generator_at, stream

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """Consecutive pieces of an epoch, stream rows ``first_P[p] .. first_P[p] + count_P[p]``, shuffled together.

    ``start`` is the place of the window's first row in its shard.
    """

    start: int
    first_P: Integers
    count_P: Integers
    seed: int

    @property
    def rows(self) -> int:
        """How many rows the window holds."""
        return int(self.count_P.sum())

    def permutation(self) -> torch.Tensor:
        """The shuffled order of the window's rows, [rows] int64."""
        return torch.randperm(self.rows, generator=generator_at(self.seed))


def shard_bounds(rows: int, shard: tuple[int, int]) -> tuple[int, int]:
    """The stretch of an epoch of ``rows`` that belongs to ``shard`` (rank, world); sizes differ by one row at most."""
    rank, world = shard
    return rows * rank // world, rows * (rank + 1) // world


def epoch_windows(
    size_G: Integers, *, window_rows: int, seed: int, epoch: int, shard: tuple[int, int] = (0, 1)
) -> list[Window]:
    """The windows of one shard and epoch, each of whole row groups: the groups that begin in its ``window_rows``."""
    start, stop = shard_bounds(int(size_G.sum()), shard)
    first_G = np.cumsum(size_G) - size_G
    order_G = torch.randperm(len(size_G), generator=generator_at(stream(seed, "row-groups"), epoch)).numpy()
    size_P, first_P = size_G[order_G], first_G[order_G]
    place_P = np.cumsum(size_P) - size_P
    low_P = np.clip(start - place_P, 0, size_P)  # what lies before the shard
    count_P = np.clip(stop - place_P, 0, size_P) - low_P
    inside = count_P > 0
    first_P, count_P = (first_P + low_P)[inside], count_P[inside]
    place_P = np.cumsum(count_P) - count_P
    number_P = place_P // window_rows
    cuts = np.flatnonzero(np.diff(number_P)) + 1
    starts = [0, *cuts.tolist()]
    purpose = stream(seed, "window", *shard, epoch)
    return [
        Window(int(place_P[begin]), first, count, stream(purpose, number))
        for number, (begin, first, count) in enumerate(
            zip(starts, np.split(first_P, cuts), np.split(count_P, cuts), strict=True)
        )
    ]

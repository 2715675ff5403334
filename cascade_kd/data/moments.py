"""Mean and standard deviation of a column that comes in pieces: the same bits however it is cut (floor 2).

Numbers are gathered into blocks of a fixed size, and a block's count, mean and sum of squared differences are merged
into the totals (Chan, Golub, LeVeque 1979), so the result depends on the order of the numbers alone.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

BLOCK = 65_536


class Moments:
    """Running mean and standard deviation (of the population) of float64 numbers."""

    def __init__(self) -> None:
        self._merged = 0
        self._mean = self._squares = 0.0
        self._rest = np.empty(0)

    @property
    def count(self) -> int:
        """How many numbers came in."""
        return self._merged + len(self._rest)

    def add(self, numbers: NDArray[np.float64]) -> None:
        """Take in the next numbers."""
        numbers = np.concatenate([self._rest, numbers])
        whole = len(numbers) // BLOCK * BLOCK
        for start in range(0, whole, BLOCK):
            self._merge(numbers[start : start + BLOCK])
        self._rest = numbers[whole:].copy()

    def mean_and_std(self) -> tuple[float, float]:
        """Of all numbers, of which there is at least one; takes no more afterwards."""
        if len(self._rest):
            self._merge(self._rest)
            self._rest = np.empty(0)
        return self._mean, math.sqrt(self._squares / self._merged)

    def _merge(self, block: NDArray[np.float64]) -> None:
        new, before = len(block), self._merged
        total = before + new
        mean = float(block.mean())
        apart = mean - self._mean
        self._squares += float(np.square(block - mean).sum()) + apart * apart * (before * new / total)
        self._mean += apart * (new / total)
        self._merged = total

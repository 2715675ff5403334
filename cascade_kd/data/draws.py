"""Random numbers that follow from the raw ids alone: no seed, no order of rows, no other row decides them (floor 2).

N rows, V distinct values, W bytes of the longest.
"""

from __future__ import annotations

import numpy as np
import polars as pl

_PRIME = np.uint64(0x100000001B3)
_OFFSET = np.uint64(0xCBF29CE484222325)


def text_hashes(values: pl.Series) -> np.ndarray:
    """[V] uint64: FNV-1a (Fowler, Noll, Vo) over the UTF-8 bytes of each value as text."""
    text = values.cast(pl.String)
    length_V = text.str.len_bytes().to_numpy()
    width = int(length_V.max()) if len(length_V) else 0
    flat = np.frombuffer("".join(text.to_list()).encode(), np.uint8)
    start_V = np.concatenate([[0], length_V.astype(np.int64).cumsum()])[:-1]
    hash_V = np.full(len(text), _OFFSET, np.uint64)
    for place in range(width):
        has_V = length_V > place
        hash_V[has_V] = (hash_V[has_V] ^ flat[start_V[has_V] + place]) * _PRIME
    return hash_V


def mixed(*parts_N: np.ndarray) -> np.ndarray:
    """[N] uint64 of several uint64 of each row, by SplitMix64's finaliser (Steele et al. 2014) after each."""
    z_N = np.zeros(len(parts_N[0]), np.uint64)
    for part_N in parts_N:
        z_N = (z_N ^ part_N) + np.uint64(0x9E3779B97F4A7C15)
        z_N = (z_N ^ (z_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z_N = (z_N ^ (z_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z_N = z_N ^ (z_N >> np.uint64(31))
    return z_N


def times_before(key_N: np.ndarray) -> np.ndarray:
    """[N] uint64: how many earlier rows have the key of this row."""
    order_N = np.argsort(key_N, kind="stable")
    sorted_N = key_N[order_N]
    place_N = np.arange(len(key_N))
    starts_N = np.concatenate([[True], sorted_N[1:] != sorted_N[:-1]])[: len(key_N)]
    before_N = np.empty(len(key_N), np.uint64)
    before_N[order_N] = place_N - np.maximum.accumulate(np.where(starts_N, place_N, 0))
    return before_N

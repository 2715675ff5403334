"""Which events are for training, validation and test (floor 2).

The unit of a split is a request where the set has requests, so that none is torn apart, else an event. Shares become
counts by rounding, one half upwards. Without a time column, time is the row order.

- ``per-user-time``: of each user's units in time order, the last ``test`` share is test, the ``valid`` share before
  it validation. A user whom that leaves no training unit stays wholly in train.
- ``leave-last-out``: each user's last unit is test, the one before it validation. A user with fewer than three units
  stays wholly in train.
- ``time``: two cuts of the whole log; units that begin in the same second go together to the later part, so the later
  part may be larger than its share.
- ``files``: as the data set says, by a file for each part or by a column. Where it brings no validation part, the
  ``valid`` share of each user's training units is held out: the last ones (``hold_out = "last"``, the default where the
  log has a time), or random ones, drawn by a hash of user, item and how often the pair came before in training (a
  request: by the smallest hash of its rows). A user whom that leaves no training unit keeps all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cascade_kd.data.readers import PART
from cascade_kd.data.schema import SplitDefinition
from cascade_kd.errors import DataError
from cascade_kd.types import PARTS

DRAW = "__draw"
Integers = NDArray[np.int64]
SLACK = 1e-9  # 0.1 * 15 is 1.5 to the reader, whatever the float says


def assign_parts(events: pl.DataFrame, split: SplitDefinition) -> pl.Series:
    """UInt8 per row: 0 train, 1 valid, 2 test. ``events``: user, time and, if any, request, sorted by them.

    A split of kind ``files`` reads the column ``PART`` and, where training units are held out at random, ``DRAW``: the
    smallest are. Raises ``DataError`` if a part is left empty.
    """
    if split.kind == "time":
        part = _by_time(events, split)
    else:
        part = parts_by_user(events, split, hold_out=split.kind == "files" and not (events[PART] == 1).any())
    check_parts([int((part == code).sum()) for code in range(len(PARTS))], events["user"].n_unique(), split)
    return part


def parts_by_user(events: pl.DataFrame, split: SplitDefinition, *, hold_out: bool) -> pl.Series:
    """The parts of all events of some users, for every kind but ``time``; none is refused for being empty.

    ``hold_out``: of kind ``files``, whether validation is to be taken from the training units.
    """
    if split.kind == "files":
        part = _held_out(events, split) if hold_out else events[PART]
    else:
        part = _by_user(events, split)
    return part.cast(pl.UInt8).alias("part")


def later_counts(height: int, split: SplitDefinition) -> tuple[int, int]:
    """Split ``time``: how many of ``height`` events come after training, and how many of them are test."""
    test, valid = (int(height * share + 0.5 + SLACK) for share in (split.test, split.valid))
    return test + valid, test


def check_parts(rows: Sequence[int], users: int, split: SplitDefinition) -> None:
    """Raise ``DataError`` if one of the parts, of so many rows, is empty."""
    for name, count in zip(PARTS, rows, strict=True):
        if count == 0:
            raise DataError(
                f"split '{split.kind}' leaves the {name} part empty ({sum(rows)} events of {users} users); "
                "bring more events, or choose another kind or other shares under [split]",
                table="events",
            )


def _by_user(events: pl.DataFrame, split: SplitDefinition) -> pl.Series:
    unit_N, count_N = _units(events)
    test_N, valid_N = (
        np.ones_like(count_N) if split.kind == "leave-last-out" else _rounded(count_N, share)
        for share in (split.test, split.valid)
    )
    enough_N = count_N > test_N + valid_N
    left_N = count_N - unit_N  # units from this one to the user's last, itself included
    return pl.Series((enough_N & (left_N <= test_N + valid_N)).astype(np.uint8) + (enough_N & (left_N <= test_N)))


def _units(events: pl.DataFrame) -> tuple[Integers, Integers]:
    """Of each row the place of its unit among the user's by first appearance, and how many the user has."""
    if "request" in events.columns:  # in steps: a window inside a window would count within a request
        new = events.select("user", "request", first=pl.col("request").is_first_distinct())
        new = new.with_columns(unit=pl.col("first").cum_sum().over("user") - 1)
        units = new.select(unit=pl.col("unit").first().over("request"), count=pl.col("first").sum().over("user"))
        return units["unit"].cast(pl.Int64).to_numpy(), units["count"].cast(pl.Int64).to_numpy()
    user_N = events["user"].to_numpy()
    first_U = np.flatnonzero(np.diff(user_N, prepend=-1))
    count_U = np.diff(first_U, append=len(user_N))
    return np.arange(len(user_N)) - np.repeat(first_U, count_U), np.repeat(count_U, count_U)


def _held_out(events: pl.DataFrame, split: SplitDefinition) -> pl.Series:
    """The parts of ``events``, with validation taken from the training units."""
    train = events.with_row_index("__at").filter(pl.col(PART) == 0)
    if DRAW in train.columns:
        draw = pl.col(DRAW).min().over("request") if "request" in train.columns else pl.col(DRAW)
        train = train.with_columns(draw.alias(DRAW)).sort("user", DRAW, descending=[False, True], maintain_order=True)
    unit_N, count_N = _units(train)
    valid_N = _rounded(count_N, split.valid)
    held = train["__at"].filter((count_N > valid_N) & (count_N - unit_N <= valid_N))
    return events[PART].scatter(held, 1) if len(held) else events[PART]


def _by_time(events: pl.DataFrame, split: SplitDefinition) -> pl.Series:
    start = events.select(pl.col("time").min().over("request") if "request" in events.columns else "time").to_series()
    ordered, height = start.sort(), len(start)
    part = pl.Series("part", [0], pl.UInt8).new_from_index(0, height)
    for code, count in enumerate(later_counts(height, split), start=1):
        if count:
            part = part.set(start >= ordered[height - count], code)
    return part


def _rounded(count_N: Integers, share: float) -> Integers:
    # Of every count there may be, since rows outnumber the counts of users.
    rounded_C = np.floor(np.arange(count_N.max(initial=0) + 1) * share + 0.5 + SLACK).astype(np.int64)
    rounded_N: Integers = rounded_C[count_N]
    return rounded_N

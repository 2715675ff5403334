"""Which events are for training, validation and test (floor 2).

The unit of a split is a request where the set has requests, so that none is torn apart, else an event. Shares become
counts by rounding, one half upwards. Without a time column, time is the row order.

- ``per-user-time``: of each user's units in time order, the last ``test`` share is test, the ``valid`` share before
  it validation. A user whom that leaves no training unit stays wholly in train.
- ``leave-last-out``: each user's last unit is test, the one before it validation. A user with fewer than three units
  stays wholly in train.
- ``time``: two cuts of the whole log; units that begin in the same second go together to the later part, so the later
  part may be larger than its share.
- ``files``: as the files say.
"""

from __future__ import annotations

import polars as pl

from cascade_kd.data.readers import PART
from cascade_kd.data.schema import SplitDefinition
from cascade_kd.errors import DataError
from cascade_kd.types import PARTS

SLACK = 1e-9  # 0.1 * 15 is 1.5 to the reader, whatever the float says


def assign_parts(events: pl.DataFrame, split: SplitDefinition) -> pl.Series:
    """UInt8 per row: 0 train, 1 valid, 2 test. ``events``: user, time and, if any, request, sorted by them.

    A split of kind ``files`` reads the column ``PART``. Raises ``DataError`` if a part is left empty.
    """
    if split.kind == "files":
        part = events[PART]
    elif split.kind == "time":
        part = _by_time(events, split)
    else:
        part = _by_user(events, split)
    part = part.cast(pl.UInt8).alias("part")
    for code, name in enumerate(PARTS):
        if not (part == code).any():
            raise DataError(
                f"split '{split.kind}' leaves the {name} part empty ({len(part)} events of {events['user'].n_unique()} "
                "users); bring more events, or choose another kind or other shares under [split]",
                table="events",
            )
    return part


def _by_user(events: pl.DataFrame, split: SplitDefinition) -> pl.Series:
    if "request" in events.columns:  # in steps: a window inside a window would count within a request
        new = events.select("user", "request", first=pl.col("request").is_first_distinct())
        new = new.with_columns(unit=pl.col("first").cum_sum().over("user") - 1)
        units = new.select(unit=pl.col("unit").first().over("request"), count=pl.col("first").sum().over("user"))
    else:
        units = events.select(unit=pl.int_range(pl.len()).over("user"), count=pl.len().over("user"))
    units = units.cast(pl.Int64)
    if split.kind == "leave-last-out":
        test = valid = pl.lit(1)
        enough = pl.col("count") >= 3
    else:
        test, valid = (_rounded(pl.col("count"), share) for share in (split.test, split.valid))
        enough = pl.col("count") > test + valid
    left = pl.col("count") - pl.col("unit")  # units from this one to the user's last, itself included
    part = pl.when(~enough | (left > test + valid)).then(0).when(left > test).then(1).otherwise(2)
    return units.select(part.alias("part")).to_series()


def _by_time(events: pl.DataFrame, split: SplitDefinition) -> pl.Series:
    start = events.select(pl.col("time").min().over("request") if "request" in events.columns else "time").to_series()
    ordered, height = start.sort(), len(start)
    test, valid = (int(height * share + 0.5 + SLACK) for share in (split.test, split.valid))
    part = pl.Series("part", [0], pl.UInt8).new_from_index(0, height)
    for code, count in ((1, test + valid), (2, test)):
        if count:
            part = part.set(start >= ordered[height - count], code)
    return part


def _rounded(count: pl.Expr, share: float) -> pl.Expr:
    return (count * share + 0.5 + SLACK).floor().cast(pl.Int64)

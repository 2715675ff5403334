"""What is wrong with the values of a table, said with table, column and row (floor 2)."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from cascade_kd.data.delimited import ROW, first_line
from cascade_kd.data.readers import PART
from cascade_kd.errors import DataError
from cascade_kd.types import PARTS

UNIT_SECONDS = {"s": 1, "ms": 1_000, "us": 1_000_000}
TIME_BITS = 34  # look-ups pack a user and a time into 63 bits: a log may span 544 years
KIND_OF_TYPE = {"i": "whole numbers", "u": "whole numbers", "f": "numbers", "s": "text"}


def refuse_rows(bad: pl.Series, message: str, frame: pl.DataFrame, *, table: str, column: str) -> None:
    """Raise ``DataError`` at the first row of ``frame`` where ``bad`` holds; ``{count}`` in ``message`` is how many."""
    rows = bad.fill_null(False).arg_true()
    if len(rows) == 0:
        return
    first = int(rows[0])
    if PART in frame.columns:
        table = f"{table}.{PARTS[frame[PART][first]]}"
    raise DataError(message.replace("{count}", str(len(rows))), table=table, column=column, row=frame[ROW][first])


def check_no_nan(frame: pl.DataFrame, *, table: str) -> None:
    """Refuse NaN in any column: it would pass a comparison such as ``rating >= 4``. A missing value is no NaN."""
    for name in frame.columns:
        if frame[name].dtype.is_float():
            message = "NaN ({count} rows); leave the field empty, or mend it"
            refuse_rows(frame[name].is_nan(), message, frame, table=table, column=name)


def checked_ids(frame: pl.DataFrame, column: str, *, table: str, distinct: bool = False) -> pl.Series:
    """The ids of a column as Int64 or String: none missing, none negative and, on demand, none twice."""
    ids = frame[column]
    where = {"table": table, "column": column}
    refuse_rows(ids.is_null(), "an id is missing ({count} rows)", frame, **where)
    if ids.dtype.is_float():
        refuse_rows(~ids.is_finite(), "an id is infinite ({count} rows)", frame, **where)
        refuse_rows(ids != ids.round(), "an id is not a whole number ({count} rows)", frame, **where)
    if ids.dtype.is_numeric():
        refuse_rows(ids < 0, "an id is negative ({count} rows); ids are whole numbers from 0, or text", frame, **where)
        ids = as_ids(ids, pl.String() if ids.dtype == pl.UInt64 and (ids >= 1 << 63).any() else pl.Int64())
    elif ids.dtype in (pl.String, pl.Categorical, pl.Enum):
        ids = ids.cast(pl.String)
    else:
        raise DataError(f"ids are whole numbers or text, got {ids.dtype}", table=table, column=column)
    if distinct:
        again = ~ids.is_first_distinct()
        value = ids.filter(again)[0] if again.any() else ""
        refuse_rows(again, f"id '{value}' is there twice ({{count}} rows repeat an id)", frame, **where)
    return ids


def as_ids(values: pl.Series, dtype: pl.DataType) -> pl.Series:
    """Ids in the type that the tables of a role agree on; 7.0 is 7, also as text."""
    return (values.cast(pl.Int64) if values.dtype.is_float() else values).cast(dtype)


def evaluated(expression: str, frame: pl.DataFrame, *, table: str, who: str) -> pl.Series:
    """A Polars SQL expression over a table. Raises ``DataError`` with the expression and the columns there are."""
    try:
        return frame.with_columns(pl.sql_expr(expression).alias("__value"))["__value"]
    except pl.exceptions.PolarsError as error:
        columns = {name: frame[name] for name in frame.columns if name not in (ROW, PART)}
        listing = ", ".join(f"{name} ({_kind(column)})" for name, column in columns.items())
        raise DataError(f"{who} = {expression!r}: {first_line(error)}; columns: {listing}", table=table) from error


def checked_label(values: pl.Series, frame: pl.DataFrame, *, label: str, expression: str) -> pl.Series:
    """0 and 1 as Float32. Raises ``DataError`` at the first other value."""
    what = f"label {label} = {expression!r}"
    if not (values.dtype == pl.Boolean or values.dtype.is_numeric()):
        raise DataError(f"{what} gives {_kind(values)}; wanted true and false, or 1 and 0", table="events")
    where = {"table": "events", "column": label}
    values = values.cast(pl.Float64)
    refuse_rows(values.is_null() | values.is_nan(), f"{what} has no value or NaN ({{count}} rows)", frame, **where)
    refuse_rows(~values.is_in([0.0, 1.0]), f"{what} is neither 0 nor 1 ({{count}} rows)", frame, **where)
    return values.cast(pl.Float32)


def checked_numbers(values: pl.Series, frame: pl.DataFrame, *, table: str, column: str) -> pl.Series:
    """Float64, missing values kept. Raises ``DataError`` at the first text, NaN or infinity."""
    if values.dtype == pl.String:
        numbers = values.cast(pl.Float64, strict=False)
        bad = numbers.is_null() & values.is_not_null()
        example = values.filter(bad)[0] if bad.any() else ""
        refuse_rows(bad, f"{example!r} is not a number ({{count}} rows)", frame, table=table, column=column)
    elif values.dtype == pl.Boolean or values.dtype.is_numeric():
        numbers = values.cast(pl.Float64)
    else:
        raise DataError(f"numbers are wanted, got {_kind(values)}", table=table, column=column)
    message = "a number is NaN or infinite ({count} rows); leave the field empty, or mend it"
    refuse_rows(~numbers.is_finite(), message, frame, table=table, column=column)
    return numbers


def checked_times(frame: pl.DataFrame, column: str, *, unit: str) -> pl.Series:
    """Unix seconds, Int64, of a column of numbers (in ``unit``) or dates."""
    times = frame[column]
    where = {"table": "events", "column": column}
    if times.dtype == pl.String:
        times = _parsed_dates(times)
    refuse_rows(times.is_null(), "a time is missing, or is no date ({count} rows)", frame, **where)
    if times.dtype.is_temporal():
        if times.dtype not in (pl.Date, pl.Datetime):
            raise DataError(f"times are numbers or dates, got {times.dtype}", table="events", column=column)
        seconds = times.dt.epoch("s").cast(pl.Int64)
    else:
        numbers = checked_numbers(times, frame, **where)
        if not times.dtype.is_integer():
            times = numbers.floor().cast(pl.Int64)
        seconds = times.cast(pl.Int64) // UNIT_SECONDS[unit]
    check_span(int(seconds.min()), int(seconds.max()), column=column)  # type: ignore[arg-type]  # integers, none missing
    return seconds


def check_span(first: int, last: int, *, column: str) -> None:
    """Refuse times, in seconds, that lie too far apart: those of another unit."""
    if last - first >= 1 << TIME_BITS:
        years = (last - first) // 31_557_600
        message = f'the log spans {years} years of seconds; set [roles] time_unit = "ms" or "us"'
        raise DataError(message, table="events", column=column)


def check_positives(positives: Mapping[str, int], rows: int) -> None:
    """Refuse a label without a positive among the training ``rows``; true in every row is implicit feedback."""
    for name, count in positives.items():
        if count == 0:
            raise DataError(
                f"label '{name}' is false in all {rows} training rows; nothing can be "
                "learned without a positive: check its expression under [labels]",
                table="events",
            )


def checked_parts(frame: pl.DataFrame, column: str) -> pl.Series:
    """UInt8 codes of a column of train, valid and test. Raises ``DataError`` at the first other value."""
    text = frame[column].cast(pl.String)
    codes = text.replace_strict({name: code for code, name in enumerate(PARTS)}, default=None, return_dtype=pl.UInt8)
    bad = codes.is_null()
    example = text.filter(bad)[0] if bad.any() else ""
    message = f"a part is {', '.join(PARTS[:-1])} or {PARTS[-1]}, got {example!r} ({{count}} rows)"
    refuse_rows(bad, message, frame, table="events", column=column)
    return codes.alias(PART)


def _parsed_dates(text: pl.Series) -> pl.Series:
    """ISO-like dates; missing where they are none."""
    try:
        return text.str.to_datetime(strict=False, time_zone="UTC")
    except pl.exceptions.PolarsError:
        return pl.Series(text.name, [None], pl.Datetime("us")).new_from_index(0, len(text))


def _kind(values: pl.Series) -> str:
    """A column's type in plain words."""
    return (
        KIND_OF_TYPE.get(str(values.dtype)[0].lower(), str(values.dtype)) if not values.dtype.is_nested() else "lists"
    )

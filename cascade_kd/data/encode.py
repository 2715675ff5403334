"""Raw columns to codes and numbers (floor 2). N rows, T tags.

Vocabularies are sorted by raw value (numbers by size, text by its bytes) and coded from 1, so a code depends on the
set of values alone; 0 is unknown, missing and padding. What is learned from a column (values and their counts, mean,
standard deviation) is learned from its ``fit`` rows: all rows of a user or item table, the train rows of the log.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from cascade_kd.data.checks import checked_numbers, evaluated
from cascade_kd.data.features import FeatureDefinition
from cascade_kd.errors import DataError
from cascade_kd.types import Feature


@dataclass(frozen=True)
class Encoded:
    """One stored feature: its rows, what models need to know of it, and how it was made."""

    column: pl.Series  # Int64 codes, Float32 numbers or Array[Int64, T]
    feature: Feature
    missing: int  # rows without a value
    vocabulary: pl.Series | None = None  # code - 1 -> raw value as text
    scale: dict[str, Any] = field(default_factory=dict)  # numeric: mean, std, transform, fill


def encode(definition: FeatureDefinition, frame: pl.DataFrame, fit: pl.Series) -> Encoded:
    """Encode a categorical, numeric or tags feature of ``frame``; ``fit`` (bool, [N]) are the rows it learns from.

    Raises ``DataError`` for an expression that fails and for values of the wrong kind.
    """
    table = definition.source_table
    if definition.expression is None:
        values = frame[definition.source_column]
    else:
        values = evaluated(definition.expression, frame, table=table, who=f"feature {definition.name}")
    values = values.alias(definition.name)
    if definition.kind == "numeric":
        return _numeric(definition, values, frame, fit)
    if definition.kind == "tags":
        return _tags(definition, values, fit)
    if values.dtype.is_nested():
        raise DataError("a categorical value is a number or text; for lists use kind = \"tags\"", table=table,
                        column=definition.source_column)  # fmt: skip
    values = _plain(values)
    vocabulary = known_values(values.filter(fit), definition.min_count)
    feature = _feature(definition, size=len(vocabulary) + 1)
    codes = codes_of(values, vocabulary)
    return Encoded(codes, feature, values.null_count(), vocabulary.cast(pl.String))


def known_values(values: pl.Series, min_count: int = 1) -> pl.Series:
    """The distinct values that occur at least ``min_count`` times, sorted; code = place + 1."""
    counted = values.drop_nulls().alias("value").value_counts()
    return counted.filter(pl.col("count") >= min_count)["value"].sort()


def codes_of(values: pl.Series, vocabulary: pl.Series) -> pl.Series:
    """Int64 codes of raw values, 0 where the vocabulary (same type) lacks them."""
    known = pl.DataFrame({"value": vocabulary}).with_row_index("code", offset=1)
    joined = pl.DataFrame({"value": values}).join(known, on="value", how="left", maintain_order="left")
    return joined["code"].cast(pl.Int64).fill_null(0).alias(values.name)


def with_unknown(column: pl.Series) -> pl.Series:
    """The same column with a row of zeros before it: the attributes of code 0."""
    zero = np.zeros((1, *column.dtype.shape), np.int64) if isinstance(column.dtype, pl.Array) else [0]
    return pl.concat([pl.Series(column.name, zero, dtype=column.dtype), column])


def _feature(definition: FeatureDefinition, *, size: int = 0, length: int = 1) -> Feature:
    vocabulary = definition.name if size else ""
    return Feature(
        definition.name, definition.kind, definition.side, definition.available, size, length, vocabulary=vocabulary
    )


def _plain(values: pl.Series) -> pl.Series:
    """Numbers as they are (NaN as missing), anything else as text."""
    if values.dtype.is_float():
        return values.fill_nan(None)
    return values if values.dtype.is_integer() else values.cast(pl.String)


def _numeric(definition: FeatureDefinition, values: pl.Series, frame: pl.DataFrame, fit: pl.Series) -> Encoded:
    """A missing number becomes ``fill``, else 0 after the transform: the mean, where it is standardised."""
    table, column = definition.source_table, definition.expression or definition.source_column
    numbers = checked_numbers(values, frame, table=table, column=column)
    missing = numbers.null_count()
    if definition.fill is not None:
        numbers = numbers.fill_null(definition.fill)
    if definition.transform == "log1p":
        if (numbers <= -1).any():
            raise DataError(f"log1p needs numbers above -1, got {numbers.min()!r}", table=table, column=column)
        numbers = numbers.log1p()
    scale: dict[str, Any] = {"mean": 0.0, "std": 1.0, "transform": definition.transform, "fill": definition.fill}
    if definition.transform != "none":
        known = numbers.filter(fit).drop_nulls().to_numpy()
        if len(known) == 0:
            raise DataError("no training row has a number", table=table, column=column)
        scale["mean"], scale["std"] = float(known.mean()), float(known.std()) or 1.0
    numbers = ((numbers - scale["mean"]) / scale["std"]).fill_null(0.0).cast(pl.Float32)
    return Encoded(numbers, _feature(definition), missing, scale=scale)


def _tags(definition: FeatureDefinition, values: pl.Series, fit: pl.Series) -> Encoded:
    """Distinct known tags in their order, cut to ``length``, padded with 0."""
    missing = values.null_count()
    if not isinstance(values.dtype, (pl.List, pl.Array)):
        values = values.cast(pl.String).str.split(definition.separator)
    tags = pl.DataFrame({"tag": values, "fit": fit}).with_row_index("row").explode("tag")
    tags = tags.with_columns(pl.col("tag").cast(pl.String).str.strip_chars()).filter(pl.col("tag") != "")
    tags = tags.unique(["row", "tag"], keep="first", maintain_order=True)
    vocabulary = known_values(tags.filter("fit")["tag"], definition.min_count)
    tags = tags.with_columns(codes_of(tags["tag"], vocabulary).alias("code")).filter(pl.col("code") > 0)
    tags = tags.with_columns(pl.int_range(pl.len()).over("row").alias("place"))
    longest = tags["place"].max()
    width = definition.length or (int(longest) + 1 if isinstance(longest, int) else 1)
    tags = tags.filter(pl.col("place") < width)
    codes_NT = np.zeros((len(values), width), np.int64)
    codes_NT[tags["row"].to_numpy(), tags["place"].to_numpy()] = tags["code"].to_numpy()
    feature = _feature(definition, size=len(vocabulary) + 1, length=width)
    column = pl.Series(definition.name, codes_NT, dtype=pl.Array(pl.Int64, width))
    return Encoded(column, feature, missing, vocabulary)

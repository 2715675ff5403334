"""Raw columns to codes and numbers (floor 2). N rows, T tags.

Vocabularies are sorted by raw value (numbers by size, text by its bytes) and coded from 1, so a code depends on the
set of values alone; 0 is unknown, missing and padding. What is learned from a column (values and their counts, mean,
standard deviation, edges of buckets) is learned from its ``fit`` rows: all rows of a user or item table, the train rows
of the log.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cascade_kd.data.checks import checked_numbers, evaluated
from cascade_kd.data.features import FeatureDefinition
from cascade_kd.data.moments import Moments
from cascade_kd.data.vectors import checked_vectors
from cascade_kd.errors import DataError
from cascade_kd.types import Feature, Kind


@dataclass(frozen=True)
class Encoded:
    """One stored feature: its rows, what models need to know of it, and how it was made."""

    column: pl.Series  # Int64 codes, Float32 numbers or Array[Int64, T], Array[Float32, T]
    feature: Feature
    missing: int  # rows without a value
    vocabulary: pl.Series | None = None  # code - 1 -> raw value as text
    scale: dict[str, Any] = field(default_factory=dict)  # numeric: transform, fill, and mean, std or edges


def encode(definition: FeatureDefinition, frame: pl.DataFrame, fit: pl.Series) -> Encoded:
    """Encode a categorical, numeric, tags or vector feature of ``frame``; ``fit`` (bool, [N]): the rows it learns from.

    Raises ``DataError`` for an expression that fails and for values of the wrong kind.
    """
    table = definition.source_table
    values = raw_values(definition, frame)
    if definition.kind == "numeric":
        return _numeric(definition, values, frame, fit)
    if definition.kind == "tags":
        return _tags(definition, values, fit)
    if definition.kind == "vector":
        vectors, missing = checked_vectors(values, frame, table=table, column=definition.source_column)
        return Encoded(vectors, feature_of(definition, length=vectors.dtype.shape[0]), missing)  # type: ignore[attr-defined]
    values = plain_values(definition, values)
    vocabulary = known_values(values.filter(fit), definition.min_count)
    codes = codes_of(values, vocabulary)
    return Encoded(codes, categorical_feature(definition, vocabulary), values.null_count(), vocabulary.cast(pl.String))


def raw_values(definition: FeatureDefinition, frame: pl.DataFrame) -> pl.Series:
    """The values of a stored feature before they are encoded: its column, or its expression over ``frame``."""
    if definition.expression is None:
        return frame[definition.source_column].alias(definition.name)
    who = f"feature {definition.name}"
    return evaluated(definition.expression, frame, table=definition.source_table, who=who).alias(definition.name)


def known_values(values: pl.Series, min_count: int = 1) -> pl.Series:
    """The distinct values that occur at least ``min_count`` times, sorted; code = place + 1."""
    counted = values.drop_nulls().alias("value").value_counts()
    return counted.filter(pl.col("count") >= min_count)["value"].sort()


def codes_of(values: pl.Series, vocabulary: pl.Series) -> pl.Series:
    """Int64 codes of raw values, 0 where the vocabulary (same type) lacks them."""
    if values.dtype == pl.Int64 and vocabulary.is_between(0, len(values)).all() and len(vocabulary):
        return _codes_by_table(values, vocabulary)
    known = pl.DataFrame({"value": vocabulary}).with_row_index("code", offset=1)
    joined = pl.DataFrame({"value": values}).join(known, on="value", how="left", maintain_order="left")
    return joined["code"].cast(pl.Int64).fill_null(0).alias(values.name)


def _codes_by_table(values: pl.Series, vocabulary: pl.Series) -> pl.Series:
    """The same where a table of all numbers up to the largest of the vocabulary is short; V is that number + 2."""
    code_V = np.zeros(int(vocabulary.max()) + 2, np.int64)  # type: ignore[arg-type]  # an integer
    code_V[vocabulary.to_numpy()] = np.arange(1, len(vocabulary) + 1)
    place_N = values.fill_null(-1).clip(-1, len(code_V) - 1).to_numpy()  # -1 is the last as well: none of them
    return pl.Series(values.name, code_V[place_N])


def with_unknown(column: pl.Series) -> pl.Series:
    """The same column with a row of zeros before it: the attributes of code 0."""
    zero = np.zeros((1, *column.dtype.shape)) if isinstance(column.dtype, pl.Array) else [0]
    return pl.concat([pl.Series(column.name, zero, dtype=column.dtype), column])


def categorical_feature(definition: FeatureDefinition, vocabulary: pl.Series) -> Feature:
    """The categorical feature of that vocabulary."""
    return feature_of(definition, size=len(vocabulary) + 1)


def feature_of(definition: FeatureDefinition, *, size: int = 0, length: int = 1) -> Feature:
    """The feature as models know it."""
    kind: Kind = "categorical" if definition.transform == "quantile" else definition.kind
    vocabulary = definition.name if size else ""
    return Feature(definition.name, kind, definition.side, definition.available, size, length, vocabulary)


def plain_values(definition: FeatureDefinition, values: pl.Series) -> pl.Series:
    """Numbers as they are (NaN as missing), anything else as text. Raises ``DataError`` for lists."""
    if values.dtype.is_nested():
        raise DataError("a categorical value is a number or text; for lists use kind = \"tags\"",
                        table=definition.source_table, column=definition.source_column)  # fmt: skip
    if values.dtype.is_float():
        return values.fill_nan(None)
    return values if values.dtype.is_integer() else values.cast(pl.String)


def _numeric(definition: FeatureDefinition, values: pl.Series, frame: pl.DataFrame, fit: pl.Series) -> Encoded:
    column = definition.expression or definition.source_column
    numbers = checked_numbers(values, frame, table=definition.source_table, column=column)
    transformed = transformed_numbers(definition, numbers)
    learned = learned_scale(definition, [transformed.filter(fit).drop_nulls().to_numpy()])
    return encoded_numbers(definition, scaled_numbers(transformed, learned), learned, numbers.null_count())


def transformed_numbers(definition: FeatureDefinition, numbers: pl.Series) -> pl.Series:
    """Missing numbers filled where the definition says how, log1p where it asks for it."""
    if definition.fill is not None:
        numbers = numbers.fill_null(definition.fill)
    if definition.transform != "log1p":
        return numbers
    if (numbers <= -1).any():
        column = definition.expression or definition.source_column
        message = f"log1p needs numbers above -1, got {numbers.min()!r}"
        raise DataError(message, table=definition.source_table, column=column)
    logs: pl.Series = numbers.log1p()
    return logs


def learned_scale(definition: FeatureDefinition, known: Iterable[NDArray[np.float64]]) -> dict[str, Any]:
    """Transform, fill, and mean and standard deviation or edges of the transformed ``known`` numbers, given in pieces.

    Raises ``DataError`` if there are none.
    """
    scale: dict[str, Any] = {"transform": definition.transform, "fill": definition.fill}
    if definition.transform == "none":
        return scale | {"mean": 0.0, "std": 1.0}
    if definition.transform == "quantile":
        assert definition.buckets is not None  # FeatureDefinition._check
        everything = np.concatenate(list(known))
        _check_known(definition, len(everything))
        shares = np.arange(1, definition.buckets) / definition.buckets
        return scale | {"edges": np.quantile(everything, shares, overwrite_input=True).tolist()}
    moments = Moments()
    for numbers in known:
        moments.add(numbers)
    _check_known(definition, moments.count)
    mean, std = moments.mean_and_std()
    return scale | {"mean": mean, "std": std or 1.0}


def _check_known(definition: FeatureDefinition, count: int) -> None:
    if count == 0:
        column = definition.expression or definition.source_column
        raise DataError("no training row has a number", table=definition.source_table, column=column)


def scaled_numbers(numbers: pl.Series, scale: Mapping[str, Any]) -> pl.Series:
    """Float32 of transformed numbers, or Int64 codes of equally full buckets ``(edge, next edge]``, 0 where missing.

    Equal numbers share a bucket, so a number that fills more than one leaves the next ones empty.
    """
    if "edges" not in scale:
        standardised: pl.Series = (numbers - scale["mean"]) / scale["std"]
        return standardised.fill_null(0.0).cast(pl.Float32)
    codes = np.searchsorted(scale["edges"], numbers.fill_null(0.0).to_numpy(), side="left") + 1
    return pl.Series(numbers.name, np.where(numbers.is_null().to_numpy(), 0, codes), dtype=pl.Int64)


def encoded_numbers(definition: FeatureDefinition, column: pl.Series, scale: dict[str, Any], missing: int) -> Encoded:
    """The numeric feature whose scaled ``column`` is given."""
    if definition.buckets is None:
        return Encoded(column, feature_of(definition), missing, scale=scale)
    vocabulary = pl.Series([str(code) for code in range(1, definition.buckets + 1)])
    return Encoded(column, feature_of(definition, size=definition.buckets + 1), missing, vocabulary, scale)


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
    feature = feature_of(definition, size=len(vocabulary) + 1, length=width)
    column = pl.Series(definition.name, codes_NT, dtype=pl.Array(pl.Int64, width))
    return Encoded(column, feature, missing, vocabulary)

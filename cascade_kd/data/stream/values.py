"""Features that stand in the log, on their way from raw values to codes and numbers (floor 2).

A categorical value is first given a provisional number in the order of appearance, -1 where it is missing; a number
stays a number, NaN where it is missing. When all parts are known, what is learned from the training rows is learned,
and the final columns are written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cascade_kd.data.checks import checked_numbers
from cascade_kd.data.definition import DatasetDefinition, FeatureDefinition
from cascade_kd.data.encode import (
    Encoded,
    categorical_feature,
    encoded_numbers,
    learned_scale,
    plain_values,
    raw_values,
    scaled_numbers,
    transformed_numbers,
)
from cascade_kd.data.stream.columns import column_path, create, num_rows, read_rows, spans, write_at
from cascade_kd.data.stream.raw import TABLE


class RawValues:
    """The stored features of the sides context and pair while the raw rows come in."""

    def __init__(self, definition: DatasetDefinition) -> None:
        self.features = [f for f in definition.feature if f.is_stored and f.side in ("context", "pair")]
        self._known: dict[str, pl.DataFrame] = {}  # feature -> value, number

    def columns(self, raw: pl.DataFrame) -> list[pl.Series]:
        """``feature:NAME`` of raw rows: provisional numbers (Int32) or numbers (Float64)."""
        return [self._column(feature, raw).alias(f"feature:{feature.name}") for feature in self.features]

    def learn(self, folder: Path, raw_folder: Path) -> list[Encoded]:
        """Write the final columns into ``folder`` from those of :meth:`columns` in ``raw_folder``, which are removed.

        ``folder`` has the column ``part`` already. The columns of what is returned are empty.
        """
        encoded: list[Encoded] = []
        for feature in self.features:
            raw, final = (column_path(place, f"feature:{feature.name}") for place in (raw_folder, folder))
            parts = column_path(folder, "part")
            learn = _numeric if feature.kind == "numeric" else self._categorical
            encoded.append(learn(feature, raw, final, parts))
            raw.unlink()
        return encoded

    def _column(self, feature: FeatureDefinition, raw: pl.DataFrame) -> pl.Series:
        values = raw_values(feature, raw)
        if feature.kind == "numeric":
            column = feature.expression or feature.source_column
            return checked_numbers(values, raw, table=TABLE, column=column).fill_null(float("nan"))
        plain = plain_values(feature, values).alias("value")
        empty = pl.DataFrame(schema={"value": plain.dtype, "number": pl.Int32})
        known = self._known.get(feature.name, empty)
        fresh = plain.drop_nulls().unique().to_frame().join(known, on="value", how="anti")
        numbers = pl.int_range(len(known), len(known) + len(fresh), dtype=pl.Int32, eager=True)
        known = pl.concat([known, fresh.with_columns(numbers.alias("number"))])
        self._known[feature.name] = known
        joined = plain.to_frame().join(known, on="value", how="left", maintain_order="left")
        return joined["number"].fill_null(-1)

    def _categorical(self, feature: FeatureDefinition, raw: Path, final: Path, parts: Path) -> Encoded:
        known = self._known[feature.name]
        count_V = np.zeros(len(known), np.int64)
        missing = 0
        for number_N, part_N in _pairs(raw, parts):
            missing += int((number_N < 0).sum())
            count_V += np.bincount(number_N[(part_N == 0) & (number_N >= 0)], minlength=len(known))
        kept = known.with_columns(count=count_V).filter(pl.col("count") >= max(feature.min_count, 1)).sort("value")
        code_V1 = np.zeros(len(known) + 1, np.int64)  # the last is that of -1, missing
        code_V1[kept["number"].to_numpy()] = np.arange(1, len(kept) + 1)
        _write(final, np.int64, (code_V1[number_N] for number_N, _ in _pairs(raw, parts)), num_rows(raw))
        vocabulary = kept["value"]
        column = pl.Series(feature.name, [], pl.Int64)
        return Encoded(column, categorical_feature(feature, vocabulary), missing, vocabulary.cast(pl.String))


def _numeric(feature: FeatureDefinition, raw: Path, final: Path, parts: Path) -> Encoded:
    def transformed() -> Iterator[tuple[pl.Series, NDArray[np.uint8]]]:
        for number_N, part_N in _pairs(raw, parts):
            yield transformed_numbers(feature, pl.Series(feature.name, number_N).fill_nan(None)), part_N

    missing = sum(int(np.isnan(number_N).sum()) for number_N, _ in _pairs(raw, parts))
    known = (numbers.filter(pl.Series(part_N == 0)).drop_nulls().to_numpy() for numbers, part_N in transformed())
    scale = learned_scale(feature, known)
    pieces = (scaled_numbers(numbers, scale).to_numpy() for numbers, _ in transformed())
    _write(final, np.int64 if "edges" in scale else np.float32, pieces, num_rows(raw))
    return encoded_numbers(feature, pl.Series(feature.name, [], pl.Float32), scale, missing)


def _pairs(raw: Path, parts: Path) -> Iterator[tuple[NDArray[np.float64] | NDArray[np.int32], NDArray[np.uint8]]]:
    """The raw values and the parts, in pieces."""
    for span in spans(num_rows(raw)):
        yield read_rows(raw, *span), read_rows(parts, *span)


def _write(
    path: Path, dtype: type, pieces: Iterator[NDArray[np.int64]] | Sequence[NDArray[np.int64]], rows: int
) -> None:
    create(path, dtype, rows)
    start = 0
    for piece in pieces:
        write_at(path, start, piece)
        start += len(piece)

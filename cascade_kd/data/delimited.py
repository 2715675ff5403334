"""Delimited text: csv with any separator, and libsvm; read as text, then typed by whole columns (floor 2)."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import polars as pl

from cascade_kd.data.problems import did_you_mean, repeated
from cascade_kd.data.schema import TableSource
from cascade_kd.errors import DataError

ROW = "__row"
SEPARATORS = ("::", "\t", ",", ";", "|", " ")  # guesses for a wrong one, the longest first
CONTROL = [bytes([code]) for code in (0x1F, 0x1E, 0x1D, 0x1C, *range(1, 9))]  # stand-ins for a long separator


def check_columns(table: str, have: list[str], wanted: Mapping[str, str]) -> None:
    """Refuse the first wanted column that is not there."""
    for name, user in wanted.items():
        if name not in have:
            raise DataError(
                f"no such column, wanted by {user}; there are: {', '.join(have)}{did_you_mean(name, have)}",
                table=table,
                column=name,
            )


def first_line(error: Exception) -> str:
    """The first line of a message."""
    return str(error).strip().split("\n")[0]


@dataclass(frozen=True)
class _Text:
    """A delimited file as it was found: what to parse, and what to say when it cannot be."""

    table: str
    path: Path
    encoding: str
    separator: str
    quote: str
    header: bool
    names: list[str]

    def error(self, message: str, row: int | None = None) -> DataError:
        return DataError(f"{message} (file {self.path})", table=self.table, row=row)

    def content(self) -> bytes:
        """The file as UTF-8."""
        raw = self.path.read_bytes()
        try:
            return raw if self.encoding == "utf-8" and raw.isascii() else raw.decode(self.encoding).encode()
        except UnicodeDecodeError as error:
            row = raw.count(b"\n", 0, error.start) + 1 - self.header
            other = "iso-8859-1" if self.encoding == "utf-8" else "utf-8"
            raise self.error(f'not {self.encoding} text; try encoding = "{other}"', max(row, 1)) from error

    def check_widths(self) -> None:
        """Refuse the first row with another number of fields than there are columns."""
        lines = pl.Series(self.content().decode().rstrip("\r\n").split("\n"), dtype=pl.String)[int(self.header) :]
        if self.quote:
            if (lines.str.count_matches(self.quote, literal=True) % 2 == 1).any():
                return  # a field runs over several lines: lines are not rows
            lines = lines.str.replace_all(f"{self.quote}[^{self.quote}]*{self.quote}", "")
        widths = lines.str.count_matches(self.separator, literal=True) + 1
        bad = (widths != len(self.names)).arg_true()
        if len(bad):
            row, want = int(bad[0]), len(self.names)
            fields = f"{widths[row]} field{'s' * (widths[row] != 1)}"
            raise self.error(f"the row has {fields} where there are {want} columns", row + 1)


def read_csv(table: str, source: TableSource, path: Path, wanted: Mapping[str, str]) -> pl.DataFrame:
    """The wanted columns, typed, with ``ROW``; what the first line shows to be wrong is said before parsing."""
    quote = source.quote if len(source.separator) == 1 else ""
    text = _Text(table, path, source.encoding, source.separator, quote, source.has_header, [])
    with path.open("rb") as file:
        first = file.readline().decode(source.encoding, errors="replace").lstrip("\ufeff").rstrip("\r\n")
    fields = first.split(text.separator)
    if quote and quote in first:
        with suppress(csv.Error):  # a stray control character: leave the fields as they are
            fields = next(csv.reader([first], delimiter=text.separator, quotechar=quote))
    names = fields if source.columns is None else list(source.columns)
    if len(fields) != len(names) or repeated(names) or (len(fields) == 1 and len(wanted) > 1):
        _refuse_first_line(text, first, fields, source.columns, len(wanted))
    check_columns(table, names, wanted)
    return _typed(_parse(replace(text, names=names), wanted))


def _refuse_first_line(
    text: _Text, first: str, fields: list[str], columns: tuple[str, ...] | None, wanted: int
) -> None:
    """The first line does not fit: say what was found, and which separator would fit."""
    count = f"{len(fields)} field{'s' * (len(fields) != 1)}"
    found = f"separator = {json.dumps(text.separator)} finds {count} in the first line"
    want = f"`columns` names {len(columns)}" if columns else f"{wanted} columns are wanted"
    fits = [
        separator
        for separator in SEPARATORS
        if separator != text.separator
        and (width := first.count(separator) + 1) > 1
        and (width == len(columns) if columns else width >= wanted)
    ]
    if fits:
        raise text.error(f"{found}, {want}: {first[:200]!r}; try separator = {json.dumps(fits[0])}")
    if columns is None and repeated(fields):
        raise text.error(f"the header names column {repeated(fields)[0]!r} twice: {first[:200]!r}")
    raise text.error(f"{found}, {want}: {first[:200]!r}", None if text.header else 1)


def _parse(text: _Text, wanted: Mapping[str, str]) -> pl.DataFrame:
    """The wanted columns as text, with ``ROW``."""
    source: Path | BytesIO = text.path
    separator = text.separator
    if text.encoding != "utf-8" or len(separator.encode()) > 1:
        content = text.content()
        if len(separator.encode()) > 1:
            free = next((byte for byte in CONTROL if byte not in content), None)
            if free is None:
                raise text.error(f"the text holds every control character; change its separator {separator!r}")
            content, separator = content.replace(separator.encode(), free), free.decode()
        source = BytesIO(content)
    last = text.names[-1]
    try:
        frame = (
            pl.scan_csv(
                source,
                has_header=False,
                skip_rows=int(text.header),
                separator=separator,
                quote_char=text.quote or None,
                schema=dict.fromkeys(text.names, pl.String),
            )
            .select(list(dict.fromkeys([*wanted, last])))
            .collect()
        )
    except pl.exceptions.NoDataError:
        raise text.error("the table is empty") from None
    except pl.exceptions.PolarsError as error:
        text.content()
        text.check_widths()
        hint = '; where quotes are plain characters, set quote = ""' if text.quote else ""
        raise text.error(f"not readable as csv: {first_line(error)}{hint}") from error
    filled = frame.select(~pl.all_horizontal(pl.all().is_null())).to_series().arg_true()
    frame = frame.head(int(filled[-1]) + 1 if len(filled) else 0)  # blank lines at the end are no rows
    if frame[last].null_count():  # a short row leaves its last columns missing
        text.check_widths()
    return frame.select(list(wanted)).with_row_index(ROW, offset=1)


def _typed(frame: pl.DataFrame) -> pl.DataFrame:
    """Text columns as the narrowest of Int64, Float64, String that keeps every value."""
    return frame.with_columns([_typed_column(frame[name]) for name in frame.columns if name != ROW])


def _typed_column(text: pl.Series) -> pl.Series:
    present = text.drop_nulls()
    if present.is_empty() or present.str.contains("^[+-]?0[0-9]").any():
        return text
    whole = text.cast(pl.Int64, strict=False)
    if whole.null_count() == text.null_count():
        return whole
    numbers = text.cast(pl.Float64, strict=False)
    too_long = present.str.contains("^[+-]?[0-9]{16}").any()  # for a float: distinct ids would become equal
    return text if too_long or numbers.null_count() > text.null_count() else numbers


def read_libsvm(table: str, source: TableSource, path: Path, wanted: Mapping[str, str]) -> pl.DataFrame:
    """``label index:value index:value …``, as many pairs in every row; columns ``label``, ``f1``, ``f2``, ….

    A position with one index throughout holds its values (a number); one whose values are all 1 holds its indices
    (a one-hot field, as in libFM files).
    """
    with path.open("rb") as file:
        width = len(file.readline().split())
    names = list(source.columns or ["label", *(f"f{position}" for position in range(1, width))])
    text = _Text(table, path, "utf-8", " ", "", False, names)
    if len(names) != width:
        raise text.error(f"the first row has {width} fields, `columns` names {len(names)}", 1)
    check_columns(table, names, wanted)
    frame = _parse(text, wanted)
    columns = [frame[name] if name == names[0] else _position(text, frame[name]) for name in wanted]
    return _typed(frame.select(ROW).with_columns(columns))


def _position(text: _Text, pairs: pl.Series) -> pl.Series:
    """One ``index:value`` column as its values or its indices, as text."""
    split = pairs.str.split_exact(":", 1).struct.rename_fields(["index", "value"]).struct.unnest()
    numbers = split.with_columns(
        pl.col("index").cast(pl.Int64, strict=False), pl.col("value").cast(pl.Float64, strict=False)
    )
    bad = numbers.select(pl.any_horizontal(pl.all().is_null())).to_series().arg_true()
    if len(bad):
        raise text.error(f"{pairs[int(bad[0])]!r} is not index:value", int(bad[0]) + 1)
    if numbers["index"].n_unique() == 1:
        return split["value"].alias(pairs.name)
    if (numbers["value"] == 1).all():
        return split["index"].alias(pairs.name)
    raise DataError("varies in index and in value; such libsvm files are not read", table=text.table, column=pairs.name)

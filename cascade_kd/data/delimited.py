"""Text files: csv with any separator, libsvm, and lines as they are (floor 2).

Fields of csv and libsvm are read as text; ``typed`` and ``positions`` then see the whole column, of all files.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import polars as pl

from cascade_kd.data.problems import did_you_mean, repeated
from cascade_kd.data.source import TableSource
from cascade_kd.errors import DataError

ROW = "__row"
SEPARATORS = ("::", "\t", ",", ";", "|", " ")  # guesses for a wrong one, the longest first
PADDED = "^[+-]?0[0-9]"  # leading zeros: no number
LONG = "^[+-]?[0-9]{16}"  # too long for a float: distinct ids would become equal
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
class Text:
    """A delimited file as it was found: what to parse, and what to say when it cannot be."""

    table: str
    path: Path
    encoding: str
    separator: str
    quote: str
    header: bool
    names: list[str]

    def error(self, message: str, row: int | None = None) -> DataError:
        """A message at a row of this file."""
        return DataError(f"{message} (file {self.path})", table=self.table, row=row)

    def unreadable(self, error: Exception) -> DataError:
        """What Polars said of it."""
        hint = '; where quotes are plain characters, set quote = ""' if self.quote else ""
        return self.error(f"not readable as csv: {first_line(error)}{hint}")

    def content(self) -> bytes:
        """The file as UTF-8."""
        raw = self.path.read_bytes()
        try:
            return raw if self.encoding == "utf-8" and raw.isascii() else raw.decode(self.encoding).encode()
        except UnicodeDecodeError as error:
            row = raw.count(b"\n", 0, error.start) + 1 - self.header
            other = "iso-8859-1" if self.encoding == "utf-8" else "utf-8"
            raise self.error(f'not {self.encoding} text; try encoding = "{other}"', max(row, 1)) from error

    def has_plain_widths(self) -> bool:
        """Whether as many separators are there as rows of the right width have, none of them quoted."""
        raw = self.path.read_bytes().rstrip(b"\r\n")
        found = raw.count(self.separator.encode(self.encoding))
        quoted = bool(self.quote) and self.quote.encode(self.encoding) in raw
        return not quoted and found == (raw.count(b"\n") + 1) * (len(self.names) - 1)

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
            raise self.wrong_width(widths[int(bad[0])], int(bad[0]) + 1)

    def wrong_width(self, width: int, row: int) -> DataError:
        """A row with another number of fields than there are columns."""
        fields = f"{width} field{'s' * (width != 1)}"
        return self.error(f"the row has {fields} where there are {len(self.names)} columns", row)


def read_csv(table: str, source: TableSource, path: Path, wanted: Mapping[str, str] | None) -> pl.DataFrame:
    """The wanted columns (None: all) as text; what the first line shows to be wrong is said before parsing."""
    text = open_text(table, source, path, wanted)
    return _parse(text, text.names if wanted is None else list(wanted))


def open_text(table: str, source: TableSource, path: Path, wanted: Mapping[str, str] | None) -> Text:
    """A csv before it is parsed. Raises ``DataError`` where its first line does not fit."""
    quote = source.quote if len(source.separator) == 1 else ""
    text = Text(table, path, source.encoding, source.separator, quote, source.has_header, [])
    with path.open("rb") as file:
        first = file.readline().decode(source.encoding, errors="replace").lstrip("\ufeff").rstrip("\r\n")
    fields = first.split(text.separator)
    if quote and quote in first:
        with suppress(csv.Error):  # a stray control character: leave the fields as they are
            fields = next(csv.reader([first], delimiter=text.separator, quotechar=quote))
    names = fields if source.columns is None else list(source.columns)
    columns = names if wanted is None else list(wanted)
    if len(fields) != len(names) or repeated(names) or (len(fields) == 1 and len(columns) > 1):
        _refuse_first_line(text, first, fields, source.columns, len(columns))
    check_columns(table, names, wanted or {})
    return replace(text, names=names)


def _refuse_first_line(text: Text, first: str, fields: list[str], columns: tuple[str, ...] | None, wanted: int) -> None:
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


def _parse(text: Text, wanted: Collection[str]) -> pl.DataFrame:
    """The wanted columns as text."""
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
    columns = list(dict.fromkeys([*wanted, last]))
    if len(columns) < len(text.names) and not text.has_plain_widths():
        columns = text.names  # Polars refuses a long row only where it reads all of its columns
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
            .select(columns)
            .collect()
        )
    except pl.exceptions.NoDataError:
        return pl.DataFrame(schema=dict.fromkeys(wanted, pl.String))
    except pl.exceptions.PolarsError as error:
        text.content()
        text.check_widths()
        raise text.unreadable(error) from error
    filled = frame.select(~pl.all_horizontal(pl.all().is_null())).to_series().arg_true()
    frame = frame.head(int(filled[-1]) + 1 if len(filled) else 0)  # blank lines at the end are no rows
    if frame[last].null_count():  # a short row leaves its last columns missing
        text.check_widths()
    return frame.select(list(wanted))


def typed(text: pl.Series) -> pl.Series:
    """A text column as the narrowest of Int64, Float64, String that keeps every value."""
    present = text.drop_nulls()
    padded = present.filter(present < "1").str.contains(PADDED)  # in the order of bytes, +, - and 0 come before 1
    if present.is_empty() or padded.any():
        return text
    whole = text.cast(pl.Int64, strict=False)
    if whole.null_count() == text.null_count():
        return whole
    numbers = text.cast(pl.Float64, strict=False)
    too_long = present.str.contains(LONG).any()
    return text if too_long or numbers.null_count() > text.null_count() else numbers


def read_libsvm(table: str, source: TableSource, path: Path, wanted: Mapping[str, str] | None) -> pl.DataFrame:
    """``label index:value index:value …``, as many pairs in every row; text columns ``label``, ``f1``, ``f2``, …."""
    with path.open("rb") as file:
        width = len(file.readline().split())
    names = list(source.columns or ["label", *(f"f{position}" for position in range(1, width))])
    text = Text(table, path, "utf-8", " ", "", False, names)
    if len(names) != width:
        raise text.error(f"the first row has {width} fields, `columns` names {len(names)}", 1)
    check_columns(table, names, wanted or {})
    return _parse(text, names if wanted is None else list(wanted))


def positions(table: str, source: TableSource, frame: pl.DataFrame) -> pl.DataFrame:
    """The ``index:value`` columns of a libsvm table as values or indices, as text.

    A position with one index throughout holds its values (a number); one whose values are all 1 holds its indices
    (a one-hot field, as in libFM files).
    """
    label = source.columns[0] if source.columns else "label"
    pairs = [name for name in frame.columns if name != label and frame[name].dtype == pl.String]
    return frame.with_columns([_position(table, frame[name], frame[ROW]) for name in pairs])


def _position(table: str, pairs: pl.Series, rows: pl.Series) -> pl.Series:
    split = pairs.str.split_exact(":", 1).struct.rename_fields(["index", "value"]).struct.unnest()
    numbers = split.with_columns(
        pl.col("index").cast(pl.Int64, strict=False), pl.col("value").cast(pl.Float64, strict=False)
    )
    bad = numbers.select(pl.any_horizontal(pl.all().is_null())).to_series().arg_true()
    if len(bad):
        first = int(bad[0])
        raise DataError(f"{pairs[first]!r} is not index:value", table=table, column=pairs.name, row=rows[first])
    if numbers["index"].n_unique() == 1:
        return split["value"].alias(pairs.name)
    if (numbers["value"] == 1).all():
        return split["index"].alias(pairs.name)
    raise DataError("varies in index and in value; such libsvm files are not read", table=table, column=pairs.name)


def read_lines(table: str, source: TableSource, path: Path) -> pl.DataFrame:
    """The lines as they are: ``line`` (text) and ``number`` (Int64, from 1); blank lines at the end are none."""
    content = Text(table, path, source.encoding, "\n", "", False, ["line"]).content().decode()
    content = content.removeprefix("\ufeff").rstrip("\r\n")
    lines = pl.Series("line", [content] if content else [], pl.String).str.split("\n").explode()
    return pl.DataFrame({"line": lines.str.strip_suffix("\r"), "number": pl.int_range(1, len(lines) + 1, eager=True)})

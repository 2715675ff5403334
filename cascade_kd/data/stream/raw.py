"""The raw events in batches, typed as the whole table would be (floor 2).

Text is read twice: once to find the narrowest type that keeps every value of a column, as ``delimited.typed`` does for
a table in memory, once to use it. Parquet, arrow and ndjson bring their types.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from cascade_kd.data.delimited import LONG, PADDED, ROW, Text, check_columns, first_line, open_text
from cascade_kd.data.files import SourceFile, source_files
from cascade_kd.data.readers import PART, named, partition_columns
from cascade_kd.data.source import TableSource
from cascade_kd.errors import DataError

TABLE = "events"
SCANS: dict[str, Callable[[Path], pl.LazyFrame]] = {
    "parquet": lambda path: pl.scan_parquet(path, hive_partitioning=False),
    "arrow": lambda path: pl.scan_ipc(path, hive_partitioning=False),
    "ndjson": lambda path: pl.scan_ndjson(path, infer_schema_length=None),
}


@dataclass(frozen=True)
class TextTraits:
    """What decides the type of a text column, of any of its pieces; pieces merge."""

    present: bool = False  # any value
    padded: bool = False
    whole: bool = True
    numbers: bool = True
    long: bool = False

    @staticmethod
    def of(text: pl.Series) -> TextTraits:
        """Those of one piece."""
        known = text.drop_nulls()
        whole = known.cast(pl.Int64, strict=False).null_count() == 0
        numbers = whole or known.cast(pl.Float64, strict=False).null_count() == 0
        padded, long = (bool(known.str.contains(pattern).any()) for pattern in (PADDED, LONG))
        return TextTraits(len(known) > 0, padded, whole, numbers, long)

    def merged(self, other: TextTraits) -> TextTraits:
        """Those of both pieces."""
        return TextTraits(
            self.present or other.present,
            self.padded or other.padded,
            self.whole and other.whole,
            self.numbers and other.numbers,
            self.long or other.long,
        )

    @property
    def dtype(self) -> pl.DataType:
        """The type of the whole column; see ``delimited.typed``."""
        if not self.present or self.padded:
            return pl.String()
        if self.whole:
            return pl.Int64()
        return pl.Float64() if self.numbers and not self.long else pl.String()


class RawEvents:
    """The events table of a layout ``stream``: wanted columns (name -> who wants it), ``ROW`` and maybe ``PART``.

    Raises ``DataError`` as ``readers.read_table``, at the latest when a batch is read.
    """

    def __init__(self, source: TableSource, folder: Path, wanted: Mapping[str, str], *, batch_rows: int) -> None:
        self._source, self._wanted, self._batch_rows = source, wanted, batch_rows
        files = source_files(TABLE, source, folder)
        self._files = [file for file in files if file.path.stat().st_size]
        self.empty = DataError(f"the table is empty ({named(files)} no rows)", table=TABLE)
        if not self._files:
            raise self.empty
        self._partition = partition_columns(self._files)
        self._inside = {name: user for name, user in wanted.items() if name not in self._partition}
        self._types = {name: column.dtype for name, column in self._partition.items()}
        if not source.is_text:
            self._types |= self._stored_types()

    @property
    def needs_types(self) -> bool:
        """Whether the types are to be found by a first pass over ``plain``."""
        return self._source.is_text

    def plain(self, columns: Iterable[str]) -> Iterator[pl.DataFrame]:
        """The columns in batches, before text is typed."""
        names = list(columns)
        for place in range(len(self._files)):
            for batch in self._read(place, [name for name in names if name in self._inside]):
                yield batch.with_columns(self._literals(place, names)).select(names)

    def set_types(self, traits: Mapping[str, TextTraits]) -> None:
        """What the first pass found of text columns."""
        self._types |= {name: found.dtype for name, found in traits.items() if name not in self._partition}

    def typed(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The columns in the types of the whole table."""
        return frame.cast({name: self._types[name] for name in frame.columns})

    def batches(self) -> Iterator[pl.DataFrame]:
        """All of it, typed, with ``ROW`` (from 1, counted through the files of a part) and, by part, ``PART``."""
        rows: dict[int | None, int] = {}
        for place, file in enumerate(self._files):
            for batch in self._read(place, list(self._inside)):
                first = rows.get(file.part, 0) + 1
                rows[file.part] = first + len(batch) - 1
                typed = self.typed(batch.with_columns(self._literals(place, self._wanted)).select(list(self._wanted)))
                part = [] if file.part is None else [pl.lit(file.part, pl.UInt8).alias(PART)]
                yield typed.with_columns(pl.int_range(first, first + len(batch)).alias(ROW), *part)

    def _literals(self, place: int, names: Iterable[str]) -> list[pl.Expr]:
        """The partition columns of one file."""
        wanted = {name: self._partition[name] for name in names if name in self._partition}
        return [pl.lit(column[place], column.dtype).alias(name) for name, column in wanted.items()]

    def _stored_types(self) -> dict[str, pl.DataType]:
        """The types that hold the values of every file."""
        empty: list[pl.DataFrame] = []
        for file in self._files:
            try:
                schema = SCANS[self._source.format](file.path).collect_schema()
            except (pl.exceptions.PolarsError, OSError) as error:
                raise self._unreadable(file, error) from error
            check_columns(TABLE, schema.names(), self._inside)
            empty.append(pl.DataFrame(schema={name: schema[name] for name in self._inside}))
        try:
            return dict(pl.concat(empty, how="vertical_relaxed").schema)
        except pl.exceptions.PolarsError as error:
            message = f"its files differ in the types of their columns: {first_line(error)}"
            raise DataError(message, table=TABLE) from error

    def _read(self, place: int, names: list[str]) -> Iterator[pl.DataFrame]:
        """Batches of the columns of one file; at least its row count where only partition columns are wanted."""
        file = self._files[place]
        if self._source.format == "csv":
            yield from _csv_batches(open_text(TABLE, self._source, file.path, self._inside), names, self._batch_rows)
            return
        inside = names or list(self._inside)[:1]
        try:
            scan = SCANS[self._source.format](file.path).select(inside)
            yield from scan.collect_batches(chunk_size=self._batch_rows, maintain_order=True, engine="streaming")
        except (pl.exceptions.PolarsError, OSError) as error:
            raise self._unreadable(file, error) from error

    def _unreadable(self, file: SourceFile, error: Exception) -> DataError:
        return DataError(f"{file.path} is not readable as {self._source.format}: {first_line(error)}", table=TABLE)


def _csv_batches(text: Text, names: list[str], batch_rows: int) -> Iterator[pl.DataFrame]:
    """The columns as text; blank lines at the end are no rows, a short row is refused."""
    last = text.names[-1]
    scan = pl.scan_csv(
        text.path,
        has_header=False,
        skip_rows=int(text.header),
        separator=text.separator,
        quote_char=text.quote or None,
        schema=dict.fromkeys(text.names, pl.String),
    ).select(list(dict.fromkeys([*names, last])))
    pending: list[pl.DataFrame] = []  # rows without a value: none, if no other row comes
    checked = False
    try:
        for batch in scan.collect_batches(chunk_size=batch_rows, maintain_order=True, engine="streaming"):
            filled = batch.select(~pl.all_horizontal(pl.all().is_null())).to_series().arg_true()
            rows = int(filled[-1]) + 1 if len(filled) else 0
            if rows:
                frame = pl.concat([*pending, batch.head(rows)])
                pending = []
                if not checked and frame[last].null_count():
                    _check_widths(text)
                    checked = True
                yield frame.select(names)
            pending.append(batch.slice(rows))
    except pl.exceptions.NoDataError:
        return
    except pl.exceptions.PolarsError as error:
        _check_widths(text)
        raise text.unreadable(error) from error


def _check_widths(text: Text) -> None:
    """``Text.check_widths`` of a file that does not fit in memory."""
    line = pl.col("line").str.strip_chars_end("\r").fill_null("")
    bare = line
    if text.quote:
        bare = line.str.replace_all(f"{text.quote}[^{text.quote}]*{text.quote}", "")
    lines = pl.scan_csv(
        text.path,
        has_header=False,
        skip_rows=int(text.header),
        separator="\x1f",
        quote_char=None,
        schema={"line": pl.String},
    )
    lines = lines.with_row_index("row", offset=1).select(
        "row",
        torn=line.str.count_matches(text.quote, literal=True) % 2 == 1 if text.quote else pl.lit(False),
        blank=line == "",
        width=bare.str.count_matches(text.separator, literal=True) + 1,
    )
    wrong = pl.col("width") != len(text.names)
    found = lines.select(
        torn=pl.col("torn").any(),
        last=pl.col("row").filter(~pl.col("blank")).max(),
        row=pl.col("row").filter(wrong).min(),
        width=pl.col("width").filter(wrong).first(),
    ).collect(engine="streaming")
    torn, last, row, width = found.row(0)
    if not torn and row is not None and row < last + 1:  # torn: a field runs over several lines, lines are not rows
        raise text.wrong_width(width, row)

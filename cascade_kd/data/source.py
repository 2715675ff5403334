"""Where the rows of a table come from, as its TOML says: files of some format, or SQL over other tables (floor 2).

Every refusal keeps the ``loc`` of its key, so that a caller can name the line.
"""

from __future__ import annotations

import codecs
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from cascade_kd.data.problems import Loc, refuse, repeated
from cascade_kd.data.query import query_problems
from cascade_kd.data.schema import StrictModel
from cascade_kd.types import PARTS, Part

Format = Literal["csv", "parquet", "ndjson", "arrow", "libsvm", "lines"]

FORMAT_KEYS: dict[Format, set[str]] = {
    "csv": {"separator", "header", "columns", "encoding", "quote"},
    "libsvm": {"columns"},
    "lines": {"encoding"},
    "parquet": set(),
    "ndjson": set(),
    "arrow": set(),
}


class TableSource(StrictModel):
    """The rows of a table: a ``file``, ``files`` by part where the data set brings its own split, or ``sql``."""

    file: str | None = None
    """A file; a folder with all files in it (`"events/"`, as Spark writes it); or a pattern (`"log/part-*.csv"`).

    Files come in the order of their names. A part of the path may be a zip or tar archive (`"log.zip/log/a.csv"`), and
    folders named `key=value` give a column `key`.
    """
    files: dict[Part, str] | None = None
    """The files of the parts: train, test and, if there is one, valid."""
    sql: str | None = None
    """A Polars SQL query over `[sources.*]` and the tables that are read from files, instead of a file."""
    format: Format = "csv"
    """What the files are; `arrow` is Feather too, and `lines` gives the columns `line` (text) and `number` (from 1)."""
    separator: Annotated[str, Field(min_length=1)] = ","
    """What stands between the fields of a csv, of any length: `"::"`."""
    header: bool | None = None
    """Whether the first line of a csv holds column names; true unless `columns` are given."""
    columns: tuple[str, ...] | None = None
    """The names of the columns, in the order of the file."""
    encoding: str = "utf-8"
    """The encoding of the text."""
    quote: Literal['"', "'", ""] = '"'
    """The quote character of a csv; "" where quotes are plain characters, as always with a separator like "::"."""

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        try:
            return codecs.lookup(value).name
        except LookupError:
            raise ValueError(f"unknown encoding '{value}'; the usual ones are utf8 and iso-8859-1") from None

    @model_validator(mode="after")
    def _check(self) -> TableSource:
        problems: list[tuple[Loc, str]] = []
        given = [key for key in ("file", "files", "sql") if getattr(self, key) is not None]
        if len(given) != 1:
            got = f", got {' and '.join(given)}" if given else ""
            place = given[-1] if given else "file"
            problems.append(((place,), f"give one of `file`, `files` (by part) and `sql`{got}"))
        if self.files is not None and not {"train", "test"} <= set(self.files):
            problems.append((("files",), f"wants train and test, and may have valid, got {sorted(self.files)}"))
        if self.sql is not None:
            for key in sorted(self.model_fields_set - {"file", "files", "sql"}):
                problems.append(((key,), f"`{key}` says how a file is read; it belongs to the source that sql reads"))
            problems += [(("sql",), problem) for problem in query_problems(self.sql)]
            return refuse(self, problems)
        for key in sorted(self.model_fields_set - {"file", "files", "format"} - FORMAT_KEYS[self.format]):
            problems.append(((key,), f"format '{self.format}' takes no `{key}`"))
        if self.format == "csv" and self.header is False and self.columns is None:
            problems.append((("columns",), "a csv without header needs the names of its columns"))
        problems += [(("columns",), f"column '{name}' is named twice") for name in repeated(self.columns or ())]
        return refuse(self, problems)

    @property
    def has_header(self) -> bool:
        """Whether the first line holds column names."""
        return self.columns is None if self.header is None else self.header

    @property
    def is_text(self) -> bool:
        """True where the values are text that is typed by whole columns."""
        return self.format in ("csv", "libsvm")

    @property
    def paths(self) -> list[tuple[int | None, str]]:
        """(code of the part or None, file, folder or pattern) in the order of the rows; none for sql."""
        if self.files is not None:
            return [(code, self.files[part]) for code, part in enumerate(PARTS) if part in self.files]
        return [] if self.file is None else [(None, self.file)]

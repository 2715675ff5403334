"""The sections of a data-set TOML, each checked by itself (floor 2); ``features`` has the features, ``definition``
puts them together.

Every refusal keeps the ``loc`` of its key, so that a caller can name the line.
"""

from __future__ import annotations

import codecs
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from cascade_kd.data.problems import Loc, refuse, repeated
from cascade_kd.types import Side

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$")]
Share = Annotated[float, Field(gt=0, lt=1)]
PartFiles = dict[Literal["train", "valid", "test"], str]

TABLES = ("events", "users", "items")
TABLE_OF_SIDE: dict[Side, str] = {"user": "users", "item": "items", "context": "events", "pair": "events"}
FORMAT_KEYS = {
    "csv": {"separator", "header", "columns", "encoding", "quote"},
    "libsvm": {"columns"},
    "parquet": set[str](),
    "ndjson": set[str](),
}


class StrictModel(BaseModel):
    """Unknown keys are refused, values cannot be set again."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TableSource(StrictModel):
    """One file of rows, or three (``files``) where the data set brings its own split."""

    file: str | None = None
    files: PartFiles | None = None
    format: Literal["csv", "parquet", "ndjson", "libsvm"] = "csv"
    separator: Annotated[str, Field(min_length=1)] = ","  # any length: "::"
    header: bool | None = None  # default: True unless `columns` are given
    columns: tuple[str, ...] | None = None
    encoding: str = "utf-8"
    quote: Literal['"', "'", ""] = '"'  # "" where quotes are plain characters, as always with a separator like "::"

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
        if (self.file is None) == (self.files is None):
            problems.append((("file",), "give one of `file` and `files` (train, valid, test)"))
        if self.files is not None and len(self.files) != 3:
            problems.append((("files",), f"wants train, valid and test, got {sorted(self.files)}"))
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
    def paths(self) -> list[str]:
        """The files in the order of their rows."""
        if self.files is not None:
            return [self.files["train"], self.files["valid"], self.files["test"]]
        assert self.file is not None  # _check
        return [self.file]


class Roles(StrictModel):
    """Which columns of the tables play which part."""

    user: str
    item: str
    time: str | None = None  # unix time or a date; without it rows are in time order
    time_unit: Literal["s", "ms", "us"] = "s"  # of a numeric time column
    request: str | None = None
    position: str | None = None
    oracle: str | None = None  # the true probability of the label; known of generated worlds only


class FilterDefinition(StrictModel):
    """Users and items with fewer events leave, again and again until both bounds hold (k-core)."""

    min_user_events: Annotated[int, Field(ge=0)] = 0
    min_item_events: Annotated[int, Field(ge=0)] = 0


class SplitDefinition(StrictModel):
    """How events become train, valid and test; ``cascade_kd.data.split`` defines the kinds."""

    kind: Literal["per-user-time", "time", "leave-last-out", "files"] = "per-user-time"
    valid: Share = 0.1
    test: Share = 0.1

    @model_validator(mode="after")
    def _check(self) -> SplitDefinition:
        problems: list[tuple[Loc, str]] = []
        if self.kind in ("leave-last-out", "files"):
            for key in sorted(self.model_fields_set & {"valid", "test"}):
                problems.append(((key,), f"split '{self.kind}' takes no shares"))
        elif self.valid + self.test >= 1:
            problems.append((("test",), f"valid + test must leave rows for training, got {self.valid} + {self.test}"))
        return refuse(self, problems)

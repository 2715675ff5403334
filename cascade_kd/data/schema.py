"""The sections of a data-set TOML, each checked by itself (floor 2); ``features`` has the features, ``definition``
puts them together.

Every refusal keeps the ``loc`` of its key, so that a caller can name the line.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from cascade_kd.data.problems import Loc, refuse
from cascade_kd.types import Side

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$")]
Share = Annotated[float, Field(gt=0, lt=1)]
Rate = Annotated[float, Field(ge=0, le=1)]

TABLES = ("events", "users", "items")
TABLE_OF_SIDE: dict[Side, str] = {"user": "users", "item": "items", "context": "events", "pair": "events"}


class StrictModel(BaseModel):
    """Unknown keys are refused, values cannot be set again."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Roles(StrictModel):
    """Which columns of the tables play which part."""

    user: str
    """The column with the user's id, in the events and in the users table."""
    item: str
    """The column with the item's id, in the events and in the items table."""
    time: str | None = None
    """The column with unix times or dates; without it the rows are in time order."""
    time_unit: Literal["s", "ms", "us"] = "s"
    """The unit of a numeric time column."""
    request: str | None = None
    """The column that says which rows were shown together."""
    position: str | None = None
    """The column with the place of a row in what was shown."""
    oracle: str | None = None
    """The column with the true probability of the label, known of generated worlds only."""
    part: str | None = None
    """The column that says train, valid or test, for split kind `files`."""


class FilterDefinition(StrictModel):
    """Users and items with fewer events leave, again and again until both bounds hold (k-core)."""

    min_user_events: Annotated[int, Field(ge=0)] = 0
    """The fewest events of a user; from 1, users of the users table without an event leave too."""
    min_item_events: Annotated[int, Field(ge=0)] = 0
    """The fewest events of an item; from 1, items of the items table without an event leave too."""


class SplitDefinition(StrictModel):
    """How events become train, valid and test; ``cascade_kd.data.split`` defines the kinds."""

    kind: Literal["per-user-time", "time", "leave-last-out", "files"] = "per-user-time"
    """`files`: as `files` of the events table or the column of `[roles] part` say."""
    valid: Share = 0.1
    """The share of validation; with kind `files`, of each user's training events, where the set brings no such part."""
    test: Share = 0.1
    """The share of test."""
    hold_out: Literal["last", "random"] | None = None
    """Which training events become validation where kind `files` brings none; last, or random without times."""

    @model_validator(mode="after")
    def _check(self) -> SplitDefinition:
        problems: list[tuple[Loc, str]] = []
        refused = {"leave-last-out": {"valid", "test", "hold_out"}, "files": {"test"}}.get(self.kind, {"hold_out"})
        for key in sorted(self.model_fields_set & refused):
            problems.append(((key,), f"split '{self.kind}' takes no `{key}`"))
        if self.kind in ("per-user-time", "time") and self.valid + self.test >= 1:
            problems.append((("test",), f"valid + test must leave rows for training, got {self.valid} + {self.test}"))
        return refuse(self, problems)


class StorageDefinition(StrictModel):
    """How the prepared log lies on disk, and how much of it is in memory while it is made."""

    layout: Literal["memory", "stream"] = "memory"
    """`stream` prepares a log larger than memory, and training reads it from disk."""
    bucket_rows: Annotated[int, Field(ge=1)] = 2_000_000
    """With layout `stream`, how many rows are sorted at once; memory and speed grow with it."""

    @model_validator(mode="after")
    def _check(self) -> StorageDefinition:
        alone = self.layout == "memory" and "bucket_rows" in self.model_fields_set
        return refuse(self, [(("bucket_rows",), '`bucket_rows` belongs to layout "stream"')] if alone else [])


class ExpectDefinition(StrictModel):
    """What the data must come to, after the filter; verified when it is prepared."""

    events: Annotated[int, Field(ge=1)] | None = None
    """The number of events."""
    users: Annotated[int, Field(ge=1)] | None = None
    """The number of users."""
    items: Annotated[int, Field(ge=1)] | None = None
    """The number of items: those of the events and of the items table."""
    label_rate: dict[Name, Rate] = Field(default_factory=dict)
    """The share of the events for which a label is true, rounded to as many digits as are given."""

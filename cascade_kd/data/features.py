"""``[[feature]]`` of a data-set TOML, checked by itself (floor 2). Every refusal keeps the ``loc`` of its key."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from cascade_kd.data.problems import Loc, refuse, repeated, sql_problems
from cascade_kd.data.schema import TABLE_OF_SIDE, Name, StrictModel
from cascade_kd.types import ITEM_ID, USER_ID, Kind, Level, Side

KIND_KEYS: dict[Kind, set[str]] = {  # beside name, kind, side and available
    "categorical": {"table", "column", "expression", "min_count"},
    "numeric": {"table", "column", "expression", "transform", "fill"},
    "tags": {"table", "column", "expression", "separator", "min_count", "length"},
    "history": {"events", "length"},
    "statistic": {"keys", "value", "aggregate", "smoothing", "window"},
}


def statistic_side(keys: tuple[str, ...]) -> Side:
    """``user`` or ``context`` where all keys belong to the request, ``item`` where all are the item's, or ``pair``."""
    owners = {key.split(".")[0] for key in keys}
    if owners == {"item"}:
        return "item"
    if "item" in owners:
        return "pair"
    return "user" if "user" in owners else "context"


class FeatureDefinition(StrictModel):
    """One ``[[feature]]``; which keys it takes depends on ``kind`` (``KIND_KEYS``)."""

    name: Name
    kind: Kind
    side: Side
    available: Level
    table: Literal["events", "users", "items"] | None = None
    column: str | None = None  # default: name
    expression: str | None = None  # Polars SQL over the table, instead of `column`
    separator: Annotated[str, Field(min_length=1)] = "|"
    min_count: Annotated[int, Field(ge=1)] = 1  # rarer values get code 0
    transform: Literal["standardise", "log1p", "none"] = "standardise"  # log1p: then standardised
    fill: float | None = None  # of a missing number, before the transform; default: the mean (0 with "none")
    length: Annotated[int, Field(ge=1)] | None = None
    events: str | None = None
    keys: tuple[str, ...] = ()
    value: str | None = None
    aggregate: Literal["count", "sum", "mean"] = "count"
    smoothing: Annotated[float, Field(ge=0)] = 10.0
    window: Literal["all"] = "all"

    @field_validator("aggregate", mode="before")
    @classmethod
    def _landed_aggregate(cls, value: object) -> object:
        if value == "recency":
            raise ValueError("aggregate 'recency' has not landed yet; use count, sum or mean")
        return value

    @field_validator("window", mode="before")
    @classmethod
    def _landed_window(cls, value: object) -> object:
        if value != "all":
            raise ValueError(f'window {value!r} has not landed yet; use "all" (every earlier event)')
        return value

    @model_validator(mode="after")
    def _check(self) -> FeatureDefinition:
        allowed = KIND_KEYS[self.kind]
        given = self.model_fields_set - {"name", "kind", "side", "available"}
        problems: list[tuple[Loc, str]] = [
            ((key,), f"kind '{self.kind}' takes no `{key}`; it takes {', '.join(sorted(allowed))}")
            for key in sorted(given - allowed)
        ]
        if self.name in (USER_ID, ITEM_ID):
            problems.append((("name",), f"'{self.name}' exists in every data set; choose another name"))
        if self.column is not None and self.expression is not None:
            problems.append((("expression",), "give `column` or `expression`, not both"))
        if self.expression is not None:
            problems += [(("expression",), problem) for problem in sql_problems(self.expression)]
        if self.is_stored and self.source_table not in ("events", TABLE_OF_SIDE[self.side]):
            problems.append((("table",), f"a feature of side '{self.side}' cannot come from table '{self.table}'"))
        if self.kind == "tags" and self.side not in ("user", "item"):
            problems.append((("side",), "tags belong to the side user or item"))
        if self.kind == "history" and self.side != "user":
            problems.append((("side",), f"a history belongs to the side user, got '{self.side}'"))
        if self.kind == "statistic":
            problems += self._statistic_problems()
        return refuse(self, problems)

    def _statistic_problems(self) -> list[tuple[Loc, str]]:
        problems: list[tuple[Loc, str]] = []
        unknown = [key for key in self.keys if not re.fullmatch(r"user|item|(user|item|context)\..+", key)]
        for key in unknown:
            problems.append(
                (("keys",), f"key '{key}' is not one of user, item, user.X, item.X, context.X (X a feature)")
            )
        if not self.keys:
            problems.append((("keys",), 'a statistic needs keys, for example ["user", "item.genres"]'))
        elif not unknown and self.side != (side := statistic_side(self.keys)):
            problems.append((("side",), f"a statistic keyed by {list(self.keys)} has side '{side}', got '{self.side}'"))
        problems += [(("keys",), f"key '{key}' is given twice") for key in repeated(self.keys)]
        if self.aggregate == "count" and self.value is not None:
            problems.append((("value",), "aggregate 'count' takes no value; leave it out, or use sum or mean"))
        if self.aggregate != "count" and self.value is None:
            problems.append((("value",), f"aggregate '{self.aggregate}' needs a value: the name of a label"))
        if self.aggregate != "mean" and "smoothing" in self.model_fields_set:
            problems.append((("smoothing",), "smoothing belongs to aggregate 'mean'"))
        return problems

    @property
    def is_stored(self) -> bool:
        """True where values come from a table; histories and statistics are answered by look-up."""
        return self.kind in ("categorical", "numeric", "tags")

    @property
    def source_table(self) -> str:
        """The table of a stored feature: ``table``, else by side."""
        return self.table or TABLE_OF_SIDE[self.side]

    @property
    def source_column(self) -> str:
        """The column of a stored feature: ``column``, else the name."""
        return self.column or self.name

    @property
    def history_length(self) -> int:
        """The most events that a history holds."""
        return self.length or 50

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
    "numeric": {"table", "column", "expression", "transform", "fill", "buckets"},
    "tags": {"table", "column", "expression", "separator", "min_count", "length"},
    "history": {"events", "length"},
    "statistic": {"keys", "value", "aggregate", "smoothing", "window"},
    "vector": {"column", "file"},
}
VECTOR = "vector:"  # before the name of a feature: the column that its file becomes
UNIT_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}  # of a window


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
    """What stages, reports and other features call it."""
    kind: Kind
    """What its values are, and how they become a model's input."""
    side: Side
    """What the value belongs to: the user, the item, the context of a request, or the pair of user and item."""
    available: Level
    """The first level that has the value online; `never`: it is known only after the event."""
    table: Literal["events", "users", "items"] | None = None
    """The table of a stored value: that of its side, unless the log holds it."""
    column: str | None = None
    """The column of a stored value; the feature's name unless given."""
    expression: str | None = None
    """A Polars SQL expression over the table, instead of a column."""
    separator: Annotated[str, Field(min_length=1)] = "|"
    """What stands between tags that are text."""
    min_count: Annotated[int, Field(ge=1)] = 1
    """Values that are rarer in training count as unknown (code 0)."""
    transform: Literal["standardise", "log1p", "quantile", "none"] = "standardise"
    """Of a number: `log1p` is standardised afterwards; `quantile` makes it the code of one of `buckets`."""
    buckets: Annotated[int, Field(ge=2, le=1000)] | None = None
    """How many equally full buckets, by the training rows; with transform `quantile` only."""
    fill: float | None = None
    """Stands for a missing number, before the transform; default: the mean, 0 with `none`, code 0 with `quantile`."""
    file: str | None = None
    """A .npy of vectors, [rows, width]; row i belongs to row i of the side's table."""
    length: Annotated[int, Field(ge=1)] | None = None
    """The most tags of a value (default: all), or events of a history (default: 50)."""
    events: str | None = None
    """A label: the history holds only events with it true."""
    keys: tuple[str, ...] = ()
    """What an event of a statistic shares with the row: `user`, `item`, features as `user.X`, `item.X`, `context.X`."""
    value: str | None = None
    """A label: what is summed or averaged; a count or a recency is of the events with it true."""
    aggregate: Literal["count", "sum", "mean", "recency"] = "count"
    """What becomes of the events: log1p of their count, sum or seconds since the last of them, or a smoothed mean."""
    smoothing: Annotated[float, Field(ge=0)] = 10.0
    """How many events at the training mean are added to a mean."""
    window: str = "all"
    """How far back events count: `all`, or a whole number and its unit (s, m, h, d, w) as in `30d`."""

    @field_validator("window")
    @classmethod
    def _known_window(cls, value: str) -> str:
        if value != "all" and not re.fullmatch(r"0*[1-9][0-9]{0,8}[smhdw]", value):
            raise ValueError(
                f'a window is "all", or a whole number from 1 and its unit s, m, h, d or w, as in "24h"; got {value!r}'
            )
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
        if self.kind == "numeric" and (self.transform == "quantile") != (self.buckets is not None):
            problems.append((("buckets",), '`buckets` (2 to 1000) and transform "quantile" belong together'))
        if self.kind == "vector":
            problems += self._vector_problems()
        if self.kind == "statistic":
            problems += self._statistic_problems()
        return refuse(self, problems)

    def _vector_problems(self) -> list[tuple[Loc, str]]:
        problems: list[tuple[Loc, str]] = []
        if self.side not in ("user", "item"):
            problems.append((("side",), f"a vector belongs to the side user or item, got '{self.side}'"))
        if self.file is not None and self.column is not None:
            problems.append((("file",), "give `column` or `file`, not both"))
        if self.file is not None and not self.file.endswith(".npy"):
            problems.append((("file",), f"a file of vectors is a .npy of [rows, width], got '{self.file}'"))
        return problems

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
        if self.aggregate in ("sum", "mean") and self.value is None:
            problems.append((("value",), f"aggregate '{self.aggregate}' needs a value: the name of a label"))
        if self.aggregate != "mean" and "smoothing" in self.model_fields_set:
            problems.append((("smoothing",), "smoothing belongs to aggregate 'mean'"))
        return problems

    @property
    def is_stored(self) -> bool:
        """True where values come from a table; histories and statistics are answered by look-up."""
        return self.kind in ("categorical", "numeric", "tags", "vector")

    @property
    def is_coded(self) -> bool:
        """True where the stored values are codes, which a statistic can be keyed by."""
        return self.kind in ("categorical", "tags") or self.transform == "quantile"

    @property
    def window_seconds(self) -> int | None:
        """The window of a statistic, None for all earlier events."""
        return None if self.window == "all" else int(self.window[:-1]) * UNIT_SECONDS[self.window[-1]]

    @property
    def source_table(self) -> str:
        """The table of a stored feature: ``table``, else by side."""
        return self.table or TABLE_OF_SIDE[self.side]

    @property
    def source_column(self) -> str:
        """The column of a stored feature: ``column``, else the name; that of a ``file`` is added as it is read."""
        return f"{VECTOR}{self.name}" if self.file is not None else self.column or self.name

    @property
    def history_length(self) -> int:
        """The most events that a history holds."""
        return self.length or 50

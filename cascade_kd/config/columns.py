"""What the columns of a log without a role are: the label, attributes of users and items, of the moment, outcomes.

Each guess comes with its reason. N rows.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import polars as pl

from cascade_kd.config.roles import ID_WORDS, WORDS_OF, Roles, tokens
from cascade_kd.errors import UserError

NUMERIC_FROM = 20  # whole numbers with more distinct values are numbers, with fewer categories
SCALE = 11  # the most steps of a rating, 0 to 10 or 0 to 5 by halves
RATING_FROM = 0.75  # a rating in the upper quarter of its scale counts as liked
FREE_TEXT = 40  # characters
EVIDENCE = 3  # users (items) with two events, at least, before a column counts as constant within them

Kind = Literal["categorical", "numeric", "tags"]


@dataclass(frozen=True)
class Label:
    """A label: its name, the SQL expression over the log, and the column it reads."""

    name: str
    expression: str
    column: str
    why: str


@dataclass(frozen=True)
class Attribute:
    """What one of the other columns is. ``kind`` None: better left out."""

    column: str
    kind: Kind | None
    side: Literal["user", "item", "context", "pair"]
    available: Literal["recall", "never"]
    why: str
    separator: str = ""


def guess_label(frame: pl.DataFrame, names: Collection[str], roles: Roles) -> Label:
    """What tells a good event from another. Raises UserError where no column can.

    Columns with a telling name come first, then any with two values, then any scale of whole or half steps; what is
    the same in all events of a user or of an item is an attribute and no label.
    """
    attributes = set[str]().union(*constant_within(frame, names, roles).values())
    free = [name for name in names if name not in attributes and not tokens(name) & ID_WORDS]
    sizes = {name: frame[name].drop_nulls().n_unique() for name in free}
    named = [name for name in free if tokens(name) & WORDS_OF["label"]]
    binary = [name for name in free if sizes[name] == 2]
    scales = [name for name in free if 2 < sizes[name] <= SCALE and frame[name].dtype.is_numeric()]
    for name in [*named, *binary, *scales]:
        label = _label_of(name, frame[name])
        if label is not None:
            return label
    raise UserError(
        "no column tells a good event from another (a rating, or 0 and 1 for a click); a label needs both kinds of "
        f"rows. Columns without another role: {', '.join(names) or 'none'}"
    )


def describe_columns(frame: pl.DataFrame, names: Collection[str], roles: Roles) -> list[Attribute]:
    """What the columns without a role are: attributes of users or items, of the moment, or known after the event."""
    within = constant_within(frame, names, roles)
    return [_attribute(frame[name], within, roles, frame) for name in names]


def constant_within(frame: pl.DataFrame, names: Collection[str], roles: Roles) -> dict[str, set[str]]:
    """Side (user, item) -> the columns with one value in all events of each user (item)."""
    columns = {"user": roles.user.column, "item": roles.item.column}
    return {side: _constant_within(frame, list(names), column) for side, column in columns.items()}


def sql_name(column: str) -> str:
    """A column as SQL writes it."""
    return '"' + column.replace('"', '""') + '"'


def _label_of(name: str, values: pl.Series) -> Label | None:
    present = values.drop_nulls()
    if values.null_count() or present.n_unique() < 2:
        return None
    column, distinct = sql_name(name), present.unique().sort()
    words = tokens(name)
    if not present.dtype.is_numeric():
        if present.dtype != pl.String or len(distinct) > NUMERIC_FROM:
            return None
        good = _good_value(distinct.to_list())
        quoted = good.replace("'", "''")
        others = ", ".join(value for value in distinct.to_list()[:8] if value != good)
        return Label("positive", f"{column} = '{quoted}'", name, f"the other values: {others}")
    low, high = float(distinct[0]), float(distinct[-1])
    if len(distinct) == 2:
        verb = next((w for w in ("click", "like", "purchase", "conversion") if any(x.startswith(w) for x in words)), "")
        return Label(verb or "positive", f"{column} = {high:g}", name, "the larger of its two values")
    if len(distinct) <= NUMERIC_FROM:
        least = next(float(x) for x in distinct if float(x) >= low + RATING_FROM * (high - low))
        share = (present >= least).sum() / len(present)
        return Label("like", f"{column} >= {least:g}", name, f"a scale from {low:g} to {high:g}; {share:.0%} are good")
    median = float(present.median() or 0.0)  # type: ignore[arg-type]
    if not low <= median < high:
        return None
    return Label("positive", f"{column} > {median!r}", name, "more than its median")


def _good_value(values: list[str]) -> str:
    """The value that says something happened."""
    for wanted in ("purchase", "buy", "bought", "like", "click", "true", "yes", "y", "t", "positive", "view"):
        for value in values:
            if value.lower() == wanted or (len(wanted) > 2 and value.lower().startswith(wanted)):
                return value
    return values[-1]


def _constant_within(frame: pl.DataFrame, names: list[str], key: str) -> set[str]:
    """The columns with one value in all rows of a key; empty where too few keys have two rows to show it."""
    if not names:
        return set()
    groups = frame.group_by(key).agg(pl.len().alias("__rows"), *[pl.col(name).n_unique() for name in names])
    if (groups["__rows"] > 1).sum() < EVIDENCE:
        return set()
    return {name for name in names if groups[name].max() == 1}


def _attribute(values: pl.Series, within: dict[str, set[str]], roles: Roles, frame: pl.DataFrame) -> Attribute:
    name = values.name
    side: Literal["user", "item", "context", "pair"]
    if name in within["user"] or name in within["item"]:
        side = "user" if name in within["user"] else "item"
        holders = frame[roles.user.column if side == "user" else roles.item.column].n_unique()
        kind, separator, why = _kind(values, holders, tags=True)
        return Attribute(name, kind, side, "recall", f"one value a {side}; {why}", separator)
    kind, separator, why = _kind(values, len(values), tags=False)
    if tokens(name) & WORDS_OF["outcome"]:
        why = f"its name says that it is known only after the event; {why}"
        return Attribute(name, kind, "pair", "never", why, separator)
    if tokens(name) & WORDS_OF["context"]:
        return Attribute(name, kind, "context", "recall", f"its name says that the request brings it; {why}", separator)
    why = f'differs from event to event; if the request brings it: side = "context", available = "recall"; {why}'
    return Attribute(name, kind, "pair", "never", why, separator)


def _kind(values: pl.Series, holders: int, *, tags: bool) -> tuple[Kind | None, str, str]:
    """Categorical, numeric, tags, or None with the reason; ``holders`` is how many could each have their own value."""
    present = values.drop_nulls()
    distinct = present.n_unique()
    if distinct < 2:
        return None, "", "it has one value only"
    if present.dtype.is_numeric():
        if present.dtype.is_float() and not present.is_finite().all():
            return None, "", "it holds NaN or infinity"
        if present.dtype.is_integer() and distinct <= NUMERIC_FROM:
            return "categorical", "", f"{distinct} whole numbers; kind numeric if their size matters"
        return "numeric", "", "numbers"
    if tags:
        for separator in ("|", ";", ","):
            if (present.str.contains(separator, literal=True)).mean() > 0.2:  # type: ignore[operator]
                parts = present.unique().str.split(separator).explode().str.strip_chars()
                if parts.n_unique() <= len(parts) / 2:
                    return "tags", separator, "several values a field that come again"
    if present.str.len_chars().mean() > FREE_TEXT:  # type: ignore[operator]
        return None, "", "free text is not read"
    if distinct > holders / 2:
        return None, "", "nearly every value is its own, which says nothing of a new one"
    return "categorical", "", f"{distinct} different values"

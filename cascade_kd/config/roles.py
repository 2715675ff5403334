"""Which column of a log is the user, the item, the time; each guess with its reason.

Names are looked at first, contents where names say nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import polars as pl

from cascade_kd.data.checks import checked_times
from cascade_kd.errors import DataError, UserError

WORDS = {
    "user": "user customer client visitor member account reader viewer buyer person reviewer player uid patron",
    "item": "item product movie film article book song track video asset sku asin isbn document doc news content "
    "listing restaurant business game anime recipe post hotel show ad iid goods offer",
    "time": "time timestamp ts date datetime day created unixtime when at",
    "request": "request impression slate search",
    "position": "position pos slot",
    "label": "rating score stars grade like liked click clicked purchase purchased bought conversion converted watch "
    "watched played label target vote feedback response overall event action",
    "outcome": "dwell duration watchtime seconds revenue amount conversion converted purchase purchased bought click "
    "clicked like liked rating score share shared comment completed skip skipped finished review",
    "context": "device os browser platform hour weekday country city region page placement channel app network "
    "language locale surface module source referrer weather",
}
WORDS_OF = {role: frozenset(words.split()) for role, words in WORDS.items()}
ID_WORDS = frozenset(["id", "ids", "key", "code", "no", "nr", "number", "uuid", "hash"])
_NAMES = frozenset(["name", "title"])

UNIT_OF = (("us", 1e14), ("ms", 1e11), ("s", 1e8))


@dataclass(frozen=True)
class Guess:
    """A column and why it was chosen."""

    column: str
    why: str


@dataclass(frozen=True)
class Roles:
    """The columns that play a role; ``unit`` is that of a numeric time column."""

    user: Guess
    item: Guess
    time: Guess | None
    unit: str
    request: Guess | None
    position: Guess | None

    def columns(self) -> set[str]:
        """All of them."""
        guesses = (self.user, self.item, self.time, self.request, self.position)
        return {guess.column for guess in guesses if guess is not None}


def guess_roles(frame: pl.DataFrame, names: Collection[str]) -> Roles:
    """The roles among the columns ``names``. Raises UserError where there are no two columns of ids."""
    found: dict[str, Guess] = {}
    every = list(names)
    for role in ("user", "item"):
        named = {name: score for name in names if (score := _score(name, role)) and _may_be_id(frame[name])}
        if named:
            best = max(named, key=lambda name: named[name])
            found[role] = Guess(best, "by its name")
            names = [name for name in names if name != best]
    time, unit = _guess_time(frame, names)
    names = [name for name in names if time is None or name != time.column]
    missing = [role for role in ("user", "item") if role not in found]
    if missing:
        ids = _id_columns(frame, [name for name in names if not _score(name, "label")], len(missing))
        if len(ids) < len(missing):
            raise UserError(
                f"no column looks like the ids of {' and '.join(f'{role}s' for role in missing)} (values that come "
                f"again, whole numbers or text); there are: {', '.join(every)}. Name the columns user and item"
            )
        why = "a column with many values that come again; user before item: check this"
        found |= {role: Guess(column, why) for role, column in zip(missing, ids, strict=True)}
        names = [name for name in names if name not in ids]
    return Roles(
        user=found["user"],
        item=found["item"],
        time=time,
        unit=unit,
        request=_guess_request(frame, names, found["user"].column),
        position=next((Guess(n, "by its name") for n in names if _score(n, "position") and _is_whole(frame[n])), None),
    )


def tokens(name: str) -> frozenset[str]:
    """The words of a column name: ``userId``, ``user_id`` and ``UserID`` are user and id; ``movieid`` movie and id."""
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)]
    every = frozenset().union(*WORDS_OF.values())
    split = [part for word in words for part in ([word[:-2], "id"] if word[:-2] in every else [word])]
    return frozenset(split)


def _score(name: str, role: str) -> int:
    """2: the name is the role's word, perhaps with id; 1: with name or title; 0: another name."""
    words = tokens(name) - ID_WORDS
    if words and words <= WORDS_OF[role]:
        return 2
    return 1 if words & WORDS_OF[role] and words - _NAMES <= WORDS_OF[role] else 0


def _is_whole(values: pl.Series) -> bool:
    return values.dtype.is_integer() and values.null_count() == 0


def _may_be_id(values: pl.Series) -> bool:
    return (values.dtype.is_integer() or values.dtype == pl.String) and values.n_unique() > 1


def _id_columns(frame: pl.DataFrame, names: Iterable[str], count: int) -> list[str]:
    """The ``count`` columns with the most distinct values that come again, in the order of the file."""
    sizes = {name: frame[name].n_unique() for name in names if _may_be_id(frame[name])}
    again = [name for name, size in sizes.items() if size < len(frame)]
    most = sorted(again, key=lambda name: -sizes[name])[:count]
    return [name for name in frame.columns if name in most]


def _guess_time(frame: pl.DataFrame, names: Collection[str]) -> tuple[Guess | None, str]:
    for name in sorted(names, key=lambda name: -_score(name, "time")):
        named = bool(tokens(name) & WORDS_OF["time"])
        values, unit = frame[name], "s"
        if values.dtype.is_numeric():
            largest = abs(float(values.max() or 0))  # type: ignore[arg-type]
            unit = next((unit for unit, least in UNIT_OF if largest >= least), "")
            if not unit and not named:
                continue
        elif not named and not _mostly_dates(values):
            continue
        try:
            checked_times(frame, name, unit=unit or "s")
        except DataError:
            continue
        what = "its values are dates" if values.dtype == pl.String else f"its values look like unix time in {unit}"
        if not unit:
            what = "its numbers are no unix time, but order the events"
        return Guess(name, f"by its name; {what}" if named else what), unit or "s"
    return None, "s"


def _mostly_dates(values: pl.Series) -> bool:
    if values.dtype != pl.String:
        return False
    sample = values.drop_nulls().head(1000)
    return len(sample) > 0 and bool(sample.str.contains(r"^\d{4}[-/]\d{1,2}[-/]\d{1,2}([T ]|$)").all())


def _guess_request(frame: pl.DataFrame, names: Iterable[str], user: str) -> Guess | None:
    """A column named so, of which each value belongs to one user and has several rows."""
    for name in names:
        if not _score(name, "request") or frame[name].null_count() or not _may_be_id(frame[name]):
            continue
        groups = frame.group_by(name).agg(pl.col(user).n_unique().alias("users"))
        if len(groups) < len(frame) and (groups["users"] == 1).all():
            return Guess(name, "by its name; every value belongs to one user")
    return None

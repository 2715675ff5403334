"""Finding what is wrong and saying it: pydantic errors at a ``loc``, repeated names, near names (floor 2)."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypeVar

import polars as pl
from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

Model = TypeVar("Model", bound=BaseModel)
Loc = tuple[str | int, ...]


def refuse(model: Model, problems: Sequence[tuple[Loc, str]]) -> Model:
    """``model`` if there are no problems, else one pydantic error that lists them all, each at its ``loc``.

    Pydantic keeps these locs, and puts the place of the model itself before them.
    """
    if not problems:
        return model
    details = [
        InitErrorDetails(type=PydanticCustomError("dataset", "{message}", {"message": message}), loc=loc, input=None)
        for loc, message in problems
    ]
    raise ValidationError.from_exception_data(type(model).__name__, details)


def repeated(names: Iterable[str]) -> list[str]:
    """The names that occur more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` where one of the known words is near, else nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def sql_problems(expression: str) -> list[str]:
    """What is wrong with a Polars SQL expression by its form alone (columns are checked against the table)."""
    try:
        pl.sql_expr(expression)
    except pl.exceptions.PolarsError as error:
        return [f"not a Polars SQL expression: {expression!r} ({error})"]
    return []

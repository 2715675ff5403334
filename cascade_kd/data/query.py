"""The text of a Polars SQL query: what can be said of it without data, and how its rows come in one order (floor 2)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator

import polars as pl

from cascade_kd.data.problems import did_you_mean

_TOKEN = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|--[^\n]*|/\*.*?\*/|\w+|[^\s\w]""", re.DOTALL)
_NOT_FOUND = re.compile(r"relation '(.*?)' was not found")
_READS_FILES = re.compile(r"\b(?:read|scan)_\w+\s*\(", re.IGNORECASE)
_OVER_ROWS = {
    *("AVG", "COUNT", "SUM", "MIN", "MAX", "MEDIAN", "STDDEV", "STDDEV_SAMP", "STDEV", "STDEV_SAMP", "VAR", "VAR_SAMP"),
    *("VARIANCE", "QUANTILE_CONT", "QUANTILE_DISC", "FIRST", "LAST", "FIRST_VALUE", "LAST_VALUE", "ROW_NUMBER", "CORR"),
    *("COVAR", "COVAR_POP", "COVAR_SAMP", "ARRAY_AGG", "STRING_AGG", "GROUP_CONCAT", "LISTAGG", "UNNEST", "DISTINCT"),
}
_AFTER_ORDER = {"LIMIT", "OFFSET", "FETCH", ";"}


def query_problems(query: str) -> list[str]:
    """What is wrong with a query by its form alone."""
    if _READS_FILES.search(query):
        return ["a query reads no files by itself; declare the file as [sources.NAME] and read FROM NAME"]
    try:
        pl.SQLContext().execute(query)
    except (pl.exceptions.SQLSyntaxError, pl.exceptions.SQLInterfaceError) as error:
        if not _NOT_FOUND.search(str(error)):
            return [f"not a Polars SQL query: {said(error)}"]
    except pl.exceptions.PolarsError:
        pass  # what it says of columns, which are not known here
    return []


def table_problems(query: str, known: Collection[str]) -> list[str]:
    """The first table that the query reads and nobody declares, and a function that there is not."""
    try:
        context = pl.SQLContext(frames={name: pl.LazyFrame() for name in known})
        context.execute(query).collect_schema()
    except pl.exceptions.PolarsError as error:
        found = _NOT_FOUND.search(str(error))
        if found:
            there = f"there are: {', '.join(known)}" if known else "there is none to read from: add [sources.NAME]"
            return [f"no source or file table '{found[1]}'; {there}{did_you_mean(found[1], known)}"]
        if "unsupported function" in str(error):
            return [said(error)]
    return []


def said(error: Exception) -> str:
    """The first line of a message of Polars, with a hint where the cause is a word of SQL."""
    first = str(error).strip().split("\n")[0]
    reserved = re.search(r"unsupported function '(user)'", first)
    return f'{first}; as the name of a column write "{reserved[1]}", in double quotes' if reserved else first


def named_in(query: str, names: Collection[str]) -> list[str]:
    """Those of the names that occur in the query as words: the tables that it reads, and maybe more."""
    words = {text.strip('"') for text, _, _ in _tokens(query)}
    return [name for name in names if name in words]


def reads_other_rows(expression: str) -> bool:
    """Whether an SQL expression over a table needs more than the row that it is evaluated for."""
    words = [text.upper() for text, _, _ in _tokens(expression)]
    called = [word for word, following in itertools.pairwise(words) if following == "("]
    return "OVER" in words or any(word in _OVER_ROWS for word in called)


def is_ordered(query: str) -> bool:
    """Whether the outermost query has ORDER BY."""
    return _end_of_order(query) is not None


def totally_ordered(query: str, columns: Collection[str]) -> str:
    """The query with ties of its outermost ORDER BY broken by all its columns; as it is where it has none."""
    end = _end_of_order(query)
    if end is None:
        return query
    ties = "".join(', "{}"'.format(name.replace('"', '""')) for name in columns)
    return query[:end] + ties + query[end:]


def _tokens(query: str) -> Iterator[tuple[str, int, int]]:
    """(text, depth of parentheses, end) of every word, name, string and sign; comments are left out."""
    depth = 0
    for found in _TOKEN.finditer(query):
        text = found[0]
        if text.startswith(("--", "/*")):
            continue
        depth -= text == ")"
        yield text, depth, found.end()
        depth += text == "("


def _end_of_order(query: str) -> int | None:
    """Where the outermost ORDER BY ends; None without one, or with ORDER BY ALL, which needs no more columns."""
    words, ordered, end = ["", ""], False, None
    for text, depth, place in _tokens(query):
        word = text.upper()
        if ordered and depth == 0 and word in _AFTER_ORDER:
            break
        words = [words[1], word if depth == 0 else ""]
        ordered = ordered or words == ["ORDER", "BY"]
        end = place if ordered else None
    return end

"""Tables that Polars SQL makes of other tables (floor 2).

The query sees every ``[sources.*]`` and every table that is read from files, with all its columns; a source of
``files`` has one more, ``part`` (train, valid, test). The order of the rows is a function of their content: that of
the outermost ORDER BY with its ties broken by all columns, else by all columns. So equal times are resolved alike in
every run, although UNION and JOIN keep no order.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from cascade_kd.data.delimited import ROW, check_columns
from cascade_kd.data.query import is_ordered, named_in, said, totally_ordered
from cascade_kd.data.readers import PART, Wanted, scan_table
from cascade_kd.data.source import TableSource
from cascade_kd.errors import DataError
from cascade_kd.types import PARTS


def derived_tables(
    queries: Mapping[str, str], sources: Mapping[str, TableSource], folder: Path, wanted: Mapping[str, Wanted]
) -> dict[str, pl.DataFrame]:
    """Table -> the wanted columns of its query over ``sources``, with ``ROW``. A source is read once.

    Raises ``DataError`` for whatever is wrong with a source, a query that fails, a missing column and no rows.
    """
    read = {name for query in queries.values() for name in named_in(query, sources)}
    frames = {name: _with_part(scan_table(name, sources[name], folder)) for name in sources if name in read}
    return {table: _derived(table, query, frames, wanted[table]) for table, query in queries.items()}


def _derived(table: str, query: str, frames: Mapping[str, pl.LazyFrame], wanted: Wanted) -> pl.DataFrame:
    context = pl.SQLContext(frames=dict(frames))
    try:
        columns = context.execute(query).collect_schema().names()
        check_columns(table, columns, wanted)
        frame = context.execute(totally_ordered(query, columns))
        if not is_ordered(query):
            frame = frame.sort(columns)
        rows = frame.select(list(wanted)).collect()
    except pl.exceptions.PolarsError as error:
        there = "; ".join(f"{name} ({', '.join(of.collect_schema().names())})" for name, of in frames.items())
        raise DataError(f"its sql fails: {said(error)}; it reads: {there or 'no table'}", table=table) from error
    if rows.height == 0:
        raise DataError("the table is empty: its sql gives no rows", table=table)
    return rows.with_row_index(ROW, offset=1)


def _with_part(frame: pl.LazyFrame) -> pl.LazyFrame:
    """The code of the part as the text ``part``."""
    if PART not in frame.collect_schema().names():
        return frame
    part = pl.col(PART).replace_strict(dict(enumerate(PARTS)), return_dtype=pl.String)
    return frame.with_columns(part.alias("part")).drop(PART)

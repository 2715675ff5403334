"""Attributes of users and items that stand in the log: those of the earliest event of each (floor 2)."""

from __future__ import annotations

import polars as pl

from cascade_kd.data.definition import DatasetDefinition
from cascade_kd.data.delimited import ROW
from cascade_kd.data.log import HOLDERS

ORDER = ("time", "user", "request", "row")  # the order of a log in memory that is then sorted by time
MARK = "__first_"


class FirstRows:
    """Of each user and item its earliest raw row, as far as a feature reads it."""

    def __init__(self, definition: DatasetDefinition) -> None:
        self._columns: dict[str, list[str]] = {}  # role -> raw columns
        self._best: dict[str, pl.DataFrame] = {}
        for role in HOLDERS:
            features = [f for f in definition.feature if f.is_stored and (f.side, f.source_table) == (role, "events")]
            if features:
                read = [
                    [f.source_column] if f.expression is None else pl.sql_expr(f.expression).meta.root_names()
                    for f in features
                ]
                key = definition.roles.user if role == "user" else definition.roles.item
                self._columns[role] = list(dict.fromkeys([key, *(name for names in read for name in names)]))

    def add(self, raw: pl.DataFrame, events: pl.DataFrame, first: int) -> None:
        """Take in the rows of a batch, the first of which is the table's row ``first``; ``events`` are its codes."""
        if not self._columns:
            return
        order = [name for name in ORDER if name == "row" or name in events.columns]
        numbered = events.with_columns(row=pl.int_range(first, first + len(events)))
        marks = numbered.select(pl.col(name).alias(MARK + name) for name in dict.fromkeys([*order, *HOLDERS]))
        for role, columns in self._columns.items():
            rows = pl.concat([raw.select(*columns, ROW), marks], how="horizontal")
            known = [self._best[role]] if role in self._best else []
            ordered = pl.concat([*known, rows]).sort([MARK + name for name in order])
            self._best[role] = ordered.unique(MARK + role, keep="first", maintain_order=True)

    def frames(self) -> dict[str, pl.DataFrame]:
        """Role -> the raw columns of the first rows, with ``ROW``."""
        return {role: best.select(pl.exclude(f"^{MARK}.*$")) for role, best in self._best.items()}

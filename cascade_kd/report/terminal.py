"""The tables of a report for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from cascade_kd.report.cells import MISSING, VERDICT_NOTE, Cell, Row, Table
from cascade_kd.report.report import Report
from cascade_kd.report.tables import cascade_table, codistill_table, distill_table, funnel_table, index_table

ROW_STYLES = {"main": "bold", "baseline": "dim", "difference": "", "reference": "dim"}
VERDICT_STYLES = {"better": "green", "worse": "red"}
INDENTED = frozenset({"baseline", "difference"})
ASCII = (("±", "+-"), (MISSING, "-"))  # for consoles whose encoding has neither sign


def funnel_tables(report: Report) -> list[RenderableType]:
    """What ``run`` prints: the funnel, the whole cascade against its references, the distillers if any, the index.

    Each fits the width at hand: errors beside the figures, below them, or one figure a line. Numbers are never cut.
    """
    tables = [funnel_table(report), cascade_table(report), distill_table(report), codistill_table(report)]
    tables.append(index_table(report))
    return [TerminalTable(table) for table in tables if table.rows]


def side_by_side(table: Table, *, ascii_only: bool = False) -> RichTable:
    """The widest layout: ``.8123 ±.0011`` on one line."""
    grid = _empty(table, label_width=28)
    for column in table.columns:
        grid.add_column(Text(column), justify="right", no_wrap=True)
    return _filled(grid, table, " ", ascii_only)


def stacked(table: Table, *, ascii_only: bool = False) -> RichTable:
    """The same columns, with the error under its figure and headers broken into two lines."""
    grid = _empty(table, label_width=16)
    for column in table.columns:
        grid.add_column(Text(column.replace(" ", "\n").replace("@", "\n@")), justify="right", no_wrap=True)
    return _filled(grid, table, "\n", ascii_only)


def one_by_one(table: Table, *, ascii_only: bool = False) -> RichTable:
    """The narrowest layout: a line for every figure."""
    grid = _empty(table, label_width=16)
    grid.add_column(overflow="fold")
    grid.add_column(justify="right", no_wrap=True)
    for row in table.rows:
        label = _label(row)
        for column, cell in zip(table.columns, row.cells, strict=True):
            if cell != "" and cell != MISSING and cell != Cell():
                grid.add_row(label, Text(column), _figure(cell, " ", row, ascii_only))
                label = Text()
        grid.add_section()
    return grid


def _empty(table: Table, label_width: int) -> RichTable:
    grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    grid.add_column(Text(table.title, style="bold"), overflow="fold", max_width=label_width)
    return grid


def _filled(grid: RichTable, table: Table, separator: str, ascii_only: bool) -> RichTable:
    for row in table.rows:
        grid.add_row(_label(row), *(_figure(cell, separator, row, ascii_only) for cell in row.cells))
    return grid


def _label(row: Row) -> Text:
    return Text("  " * (row.kind in INDENTED) + row.label, style=ROW_STYLES[row.kind])


def _figure(cell: Cell | str, separator: str, row: Row, ascii_only: bool) -> Text:
    value, spread = (cell, "") if isinstance(cell, str) else (cell.value, cell.spread)
    verdict = "" if isinstance(cell, str) else cell.verdict
    text = Text(_signs(value, ascii_only), style=VERDICT_STYLES.get(verdict, ROW_STYLES[row.kind]))
    return text.append(_signs(f"{separator}±{spread}", ascii_only), style="dim not bold") if spread else text


def _signs(text: str, ascii_only: bool) -> str:
    for sign, replacement in ASCII if ascii_only else ():
        text = text.replace(sign, replacement)
    return text


@dataclass(frozen=True)
class TerminalTable:
    """A table that chooses its layout by the width that it is given."""

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        layouts = [build(self.table, ascii_only=options.ascii_only) for build in (side_by_side, stacked, one_by_one)]
        unbounded = options.update(max_width=10_000)
        widths = [Measurement.get(console, unbounded, layout).maximum for layout in layouts]
        fitting = [layout for layout, width in zip(layouts, widths, strict=True) if width <= options.max_width]
        yield Text()
        yield fitting[0] if fitting else layouts[-1]
        coloured = console.color_system is not None and any(cell.verdict for cell in self.table.figures)
        for note in (*self.table.notes, *[VERDICT_NOTE] * coloured):
            yield Text(_signs(note, options.ascii_only), style="dim")

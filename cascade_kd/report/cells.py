"""What tables are made of: a figure with its error, a row, a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RowKind = Literal["main", "baseline", "difference", "reference"]
MISSING = "–"  # noqa: RUF001  an en dash marks an empty cell
VERDICT_NOTE = "coloured: differences of at least twice their standard deviation over the seeds"


def format_number(value: float, *, signed: bool = False) -> str:
    """Four decimals without a leading zero (``.8123``, ``-.0021``), fewer for large values; ``signed`` keeps a +."""
    size = abs(value)
    decimals = 4 if size < 100 else 1 if size < 10_000 else 0
    text = f"{size:,.{decimals}f}"
    sign = "-" if value < 0 and float(text.replace(",", "")) else "+" if signed else ""
    return sign + (text[1:] if text.startswith("0.") else text)


@dataclass(frozen=True)
class Cell:
    """One figure. ``stderr`` is the mean standard error of the seeds when ``error`` is the deviation over them."""

    mean: float | None = None
    error: float | None = None
    stderr: float | None = None
    why: str = ""
    marks: tuple[str, ...] = ()
    signed: bool = False
    better: int = 0

    @property
    def value(self) -> str:
        """The mean as text, with a star when marked; a dash when missing."""
        if self.mean is None:
            return MISSING
        if self.unchanged:
            return "0"
        return format_number(self.mean, signed=self.signed) + "*" * bool(self.marks)

    @property
    def spread(self) -> str:
        """The error as text, without its sign; empty when there is none."""
        return "" if self.mean is None or self.error is None or self.unchanged else format_number(self.error)

    @property
    def unchanged(self) -> bool:
        """Whether this is a difference of exactly nothing, in every seed."""
        return self.signed and self.mean == 0 and not self.error

    @property
    def verdict(self) -> Literal["better", "worse", ""]:
        """How a difference reads, when it is twice its deviation over the seeds; empty for less, or one seed."""
        if self.mean is None or not self.error or abs(self.mean) < 2 * self.error or not self.better:
            return ""
        return "better" if self.mean * self.better > 0 else "worse"


@dataclass(frozen=True)
class Row:
    """A labelled row; text cells stand as they are."""

    label: str
    kind: RowKind
    cells: tuple[Cell | str, ...]


@dataclass(frozen=True)
class Table:
    """Rows under ``columns`` (the label's column is not named there), with notes."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def figures(self) -> tuple[Cell, ...]:
        """Every cell that is not plain text."""
        return tuple(cell for row in self.rows for cell in row.cells if isinstance(cell, Cell))

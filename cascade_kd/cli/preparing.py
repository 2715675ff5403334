"""Preparing a data set with bars on the terminal (floor 9)."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from cascade_kd.data import DatasetDefinition, prepare


def shown_progress() -> Progress:
    """Bars on stderr where that is a terminal, nothing elsewhere; gone when the block ends."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def prepare_shown(definition: DatasetDefinition, base: Path) -> Path:
    """:func:`~cascade_kd.data.prepare`; what it is at shows on stderr where that is a terminal."""
    with shown_progress() as bars:
        return prepare(definition, base=base, progress=bars)

"""``data audit``: every feature alone, and what depends on the future, as a table and sentences (floor 9)."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from cascade_kd.cli.preparing import shown_progress
from cascade_kd.config import load_dataset_definition
from cascade_kd.evaluate.audit import Audit, audit_dataset
from cascade_kd.evaluate.leaks import Change

LEGEND = "future, labels: rows that differ without later events, with later labels shuffled; *: flagged."


def audit_shown(dataset: str, *, label: str | None, allow: Sequence[str], limit: float) -> Audit:
    """Audit a data set of the catalogue, or a TOML, and print what was found."""
    definition, file = load_dataset_definition(dataset)
    with shown_progress() as bars:
        found = audit_dataset(definition, base=file.parent, label=label, limit=limit, allow=allow, progress=bars)
    console = Console()
    console.print(audit_table(found))
    for line in audit_lines(found):
        console.print(line, highlight=False, markup=False)
    return found


def audit_table(found: Audit) -> Table:
    """One line a feature, in the order of the TOML."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0), title_justify="left")
    table.title = f"{found.name}: each feature alone, label {found.label}"
    table.add_column("name", overflow="fold")
    table.add_column("online", no_wrap=True)
    for column in ("AUC", "±", "missing", "future", "labels"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for f in found.features:
        auc = ["" if x is None else f"{x:.4f}".removeprefix("0") for x in (f.auc.mean, f.auc.stderr)]
        missing = "" if f.missing is None else f"{f.missing:.1%}"
        table.add_row(
            f.feature.name, f.feature.available, *auc, missing, _rows(f.cut), _rows(f.shuffled), "*" if f.flags else ""
        )
    return table


def audit_lines(found: Audit) -> list[str]:
    """What was looked at, then one sentence a flag."""
    used = [f"{used:,} of {there:,} {part} rows" for part, (used, there) in found.rows.items()]
    lines = [f"AUC on {used[1]}, learned on {used[0]}.", LEGEND]
    whys = dict.fromkeys(f.auc.why for f in found.features if f.auc.mean is None)
    lines += [f"No AUC: {why}." for why in whys]
    for f in found.features:
        lines += [f"{'allowed' if f.allowed else 'flagged'}: {flag}" for flag in f.flags]
    if found.refused:
        lines.append(f"{len(found.refused)} of {len(found.features)} features are flagged; --allow accepts one.")
    return lines


def _rows(change: Change | None) -> str:
    return "0" if change is None else f"{change.rows:,}"

"""The figures behind the pictures, and all the others, as plain tables; the facts of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cascade_kd.report.cells import MISSING, format_number
from cascade_kd.report.markup import details, facts_table, plain_table
from cascade_kd.report.report import Report
from cascade_kd.report.tables import PLAIN_KEYS
from cascade_kd.report.tree import is_leaf, jsonable, leaf_mean, leaves, lookup

FACTS = {
    "name": "name",
    "device": "device",
    "threads": "threads",
    "wall_s": "wall time",
    "peak_rss_bytes": "peak memory",
}
FACTS |= {"commit": "commit", "config_sha256": "config sha256", "data_sha256": "data sha256"}


def duration(seconds: float) -> str:
    """``41.2 s``, ``23 min 03 s``, ``2 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def memory(size: float) -> str:
    """Bytes as MiB or GiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def fact(key: str, value: Any) -> str:
    """One value of ``run`` for a reader: wall time and memory with units, the rest as it is."""
    if isinstance(value, (int, float)) and key in ("wall_s", "peak_rss_bytes"):
        return duration(value) if key == "wall_s" else memory(value)
    return value if isinstance(value, str) else json.dumps(jsonable(value), ensure_ascii=False)


def run_tables(report: Report) -> str:
    """What ran, where, for how long; then the versions."""
    run = {key: value for key, value in report.run.items() if key != "versions" and value is not None}
    facts = {label: fact(key, run.pop(key)) for key, label in FACTS.items() if key in run}
    facts["seeds"] = ", ".join(report.seeds) or "none"
    facts |= {key.replace("_", " "): fact(key, value) for key, value in run.items()}
    versions = report.run.get("versions") or {}
    shown = facts_table("Versions", {name: str(version) for name, version in versions.items()}) if versions else ""
    return f'<div class="facing">{facts_table("This run", facts)}{shown}</div>\n'


def curve_table(report: Report) -> str:
    """Every point of the learning curves."""
    columns = ("stage", "round", "seed", "epoch", "step", "loss", "metric", "value")
    rows = [[_text(point.get(column)) for column in columns] for point in report.curves]
    return details(f"All {len(rows):,} points", plain_table("Learning curves", columns, rows)) if rows else ""


def calibration_tables(report: Report) -> str:
    """The bins of every stage."""
    columns = ("stage", "predicted", "observed", "rows")
    rows = [
        [stage, *(_text(point.get(column)) for column in ("predicted", "observed", "n"))]
        for stage, bins in report.calibration.items()
        for point in bins
    ]
    return details("All bins", plain_table("Calibration", columns, rows)) if rows else ""


def agreement_tables(report: Report) -> str:
    """Per distiller the counts as a matrix: a row per teacher bin, a column per student bin."""
    tables = ""
    for name, bins in report.agreement.items():
        counts = {(point["teacher"], point["student"]): point["n"] for point in bins}
        teachers, students = (sorted({pair[side] for pair in counts}) for side in (0, 1))
        columns = ("teacher \\ student", *(f"{student:.3g}" for student in students))
        rows = [
            [f"{teacher:.3g}", *(f"{counts.get((teacher, student), 0):,}" for student in students)]
            for teacher in teachers
        ]
        tables += details(f"{name}: counts by probability bin", plain_table(name, columns, rows))
    return tables


def all_figures(report: Report) -> str:
    """Every metric of every seed with its standard error, count and remarks."""
    columns = ("metric", "mean", "sd", *(f"seed {seed}" for seed in report.seeds), "remarks")
    rows = []
    for path, summary in leaves(report.summary):
        nodes = [jsonable(lookup(tree, *path)) for tree in report.seeds.values()]
        remarks = dict.fromkeys(text for node in nodes if isinstance(node, Mapping) for text in _remarks(node))
        spread = _text(summary["sd"])
        rows.append([" / ".join(path), _text(summary["mean"]), spread, *map(_leaf, nodes), "; ".join(remarks)])
    return details(f"All {len(rows):,} figures, by seed", plain_table("All figures", columns, rows)) if rows else ""


def _leaf(node: Any) -> str:
    value = leaf_mean(node) if is_leaf(node) else None
    if value is None or not isinstance(node, Mapping):
        return _text(value)
    error = f" ±{format_number(node['stderr'])}" if node.get("stderr") is not None else ""
    return f"{_text(value)}{error}" + (f" (n {node['n']:,})" if node.get("n") is not None else "")


def _remarks(node: Mapping[str, Any]) -> list[str]:
    extra = [f"{key} {_text(value)}" for key, value in node.items() if key not in PLAIN_KEYS and value is not True]
    marks = [key for key, value in node.items() if key not in PLAIN_KEYS and value is True]
    return [text.replace("_", " ") for text in (*extra, *marks)] + ([node["why"]] if "why" in node else [])


def _text(value: Any) -> str:
    if value is None:
        return MISSING
    return format_number(value) if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)

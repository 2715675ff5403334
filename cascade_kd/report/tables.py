"""The tables of a report, before they are drawn: the terminal and the HTML file show the same figures.

A figure is mean +- error; the error is the standard error when there is one seed (over users or rows, as the metric
says), the sample standard deviation over seeds when there are several.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable, Sequence

from cascade_kd.report.cells import MISSING, Cell, Row, Table
from cascade_kd.report.report import Report
from cascade_kd.report.tree import Tree, is_leaf, jsonable, leaf_mean, leaves, lookup, summarise_leaf

Path = tuple[str, ...]
LABELS = {"auc": "AUC", "gauc": "GAUC", "logloss": "log loss", "ece": "ECE"}
REFERENCES = {"oracle": "best possible"}  # what the true probabilities of a generated world reach
INDEX_COSTS = {"build_seconds": "build s", "bytes_per_vector": "bytes per vector"}
LOWER_IS_BETTER = frozenset({"log loss", "ECE", "churn"})
# A better stage before it sends more, so more can be lost here; two orders that agree more are not better for it.
NO_DIRECTION = frozenset({"lost here", "keep", "tau", "overlap@keep"})
PLAIN_KEYS = frozenset({"mean", "stderr", "n", "why"})


def stage_keeps(report: Report) -> dict[str, int]:
    """Stage name -> budget, from the resolved configuration, in funnel order; empty when it cannot be read."""
    try:
        stages = tomllib.loads(report.config_toml).get("stage", [])
    except tomllib.TOMLDecodeError:
        return {}
    return {stage["name"]: stage["keep"] for stage in stages if "name" in stage and "keep" in stage}


def stage_names(report: Report) -> list[str]:
    """The stages in funnel order: as in the survival tree, then as in the stage tree."""
    summary = report.summary
    survival, stages = lookup(summary, "cascade", "survival") or {}, summary.get("stages", {})
    return list(dict.fromkeys([*survival, *stages]))


def is_distilled(report: Report) -> bool:
    """Whether any distiller, objective or peers reported, so that there is an undistilled run to compare with."""
    return any(tree.get(what) for tree in report.seeds.values() for what in ("distill", "objective", "codistill"))


def student_of(distiller: str) -> str:
    """The student's name in ``teacher->student:method``."""
    return distiller.partition("->")[2].rpartition(":")[0]


def students_of(report: Report) -> list[str]:
    """The stages that a distiller or an objective (``method:first+second``) trained again."""
    students = [student_of(name) for tree in report.seeds.values() for name in tree.get("distill", {})]
    objectives = [name for tree in report.seeds.values() for name in tree.get("objective", {})]
    students += [stage for name in objectives for stage in name.partition(":")[2].split("+")]
    return list(dict.fromkeys(students))


def figure(report: Report, path: Path) -> Cell:
    """The metric under ``path`` over the seeds; empty when no seed has it."""
    nodes = [lookup(tree, *path) for tree in report.seeds.values()]
    nodes = [jsonable(node) for node in nodes if node is not None and is_leaf(node)]
    if not nodes:
        return Cell()
    summary = summarise_leaf(nodes)
    dicts = [node for node in nodes if isinstance(node, dict)]
    errors = [node["stderr"] for node in dicts if node.get("stderr") is not None]
    stderr = math.fsum(errors) / len(errors) if errors else None
    return Cell(
        mean=summary["mean"],
        error=stderr if len(report.seeds) == 1 else summary["sd"],
        stderr=stderr if len(report.seeds) > 1 else None,
        why=summary.get("why", ""),
        marks=tuple(dict.fromkeys(mark for node in dicts for mark in _marks(node))),
    )


def difference(report: Report, path: Path, base: Path, *, better: int = 0) -> Cell:
    """Figure under ``path`` minus figure under ``base``, paired by seed; ``better`` is the good sign or 0."""
    pairs = [(leaf_mean(lookup(tree, *path)), leaf_mean(lookup(tree, *base))) for tree in report.seeds.values()]
    summary = summarise_leaf([one - other for one, other in pairs if one is not None and other is not None])
    if summary["mean"] is None:
        return Cell()
    return Cell(mean=summary["mean"], error=summary["sd"], signed=True, better=better)


def funnel_table(report: Report) -> Table:
    """One row a stage in order; under a stage that distillation changed, its undistilled self and the difference.

    Teachers that are not served and references with an AUC, GAUC or log loss (such as the best possible one of a
    generated world) follow.
    """
    keeps, stages = stage_keeps(report), stage_names(report)
    students = students_of(report)
    columns: tuple[str, ...] = ("keep", "AUC", "GAUC", "log loss", "recall@keep", "survival", "lost here")
    has_churn = any("churn" in stage for stage in report.summary.get("stages", {}).values())
    if has_churn:
        columns += ("churn",)
    rows: list[Row] = []
    for stage in stages:
        at_keep = _recall_at_keep(lookup(report.summary, "stages", stage) or {}, keeps.get(stage))
        paths: list[Path] = [("stages", stage, metric) for metric in ("auc", "gauc", "logloss", at_keep)]
        paths += [("cascade", "survival", stage), ("cascade", "lost", stage)]
        paths += [("stages", stage, "churn")] * has_churn
        keep = f"{keeps[stage]:,}" if stage in keeps else MISSING
        group = _group(report, stage, columns[1:], paths, always=stage in students)
        rows += [Row(row.label, row.kind, (keep if row.kind == "main" else "", *row.cells)) for row in group]
    # Served by nobody, so without budget or survival.
    blank = [""] * (len(columns) - 4)
    for title, root in (("teacher ", ("teachers",)), ("", ("baseline", "reference"))):
        for name in lookup(report.summary, *root) or {}:
            cells = tuple(figure(report, (*root, name, metric)) for metric in ("auc", "gauc", "logloss"))
            if any(cell.mean is not None for cell in cells):
                rows.append(Row(f"{title}{REFERENCES.get(name, name)}", "reference", ("", *cells, *blank)))
    return _table(report, "Stages", columns, rows)


def cascade_table(report: Report) -> Table:
    """recall@k, ndcg@k and joint_recall@k@m of the cascade; its undistilled self, the recall stage, references."""
    summary = report.summary
    metrics = [
        key for key in summary.get("cascade", {}) if re.fullmatch(r"(recall|ndcg)@\d+|joint_recall@\w+@\d+", key)
    ]
    rows = _group(report, "cascade", metrics, [("cascade", key) for key in metrics], always=is_distilled(report))
    others: list[tuple[str, Path]] = [(f"{stage} alone", ("stages", stage)) for stage in stage_names(report)[:1]]
    references = lookup(summary, "baseline", "reference") or {}
    others += [(name, ("baseline", "reference", name)) for name in references]
    for label, root in others:
        cells = tuple(figure(report, (*root, key)) for key in metrics)
        if any(cell.mean is not None for cell in cells):
            rows.append(Row(label, "reference", cells))
    return _table(report, "Whole cascade", tuple(metrics), rows)


def index_table(report: Report) -> Table:
    """Per recall stage, how near its index comes to exact search on validation requests, and what it costs."""
    rows: list[Row] = []
    for stage in stage_names(report):
        index = next(filter(None, (lookup(tree, "stages", stage, "index") for tree in report.seeds.values())), None)
        if index is not None:
            recall = next(key for key in index if re.fullmatch(r"recall@\d+", key))
            cells = (figure(report, ("stages", stage, "index", key)) for key in (recall, *INDEX_COSTS))
            rows.append(Row(f"{stage}: {index['kind']}", "main", tuple(cells)))
    return _table(report, "Index", ("share of exact", *INDEX_COSTS.values()), rows)


def popularity_table(report: Report) -> Table:
    """Recall of what every stage hands on, by groups of items of equal popularity mass."""
    rows: list[Row] = []
    groups: tuple[str, ...] = ()
    for stage in stage_names(report):
        groups = tuple(lookup(report.summary, "stages", stage, "popularity") or groups)
        paths: list[Path] = [("stages", stage, "popularity", group) for group in groups]
        rows += _group(report, stage, groups, paths)
    columns = tuple(f"group {group}" for group in groups)
    return _table(report, "Recall@keep by popularity, group 1 the most popular items", columns, rows)


def previous_table(report: Report) -> Table:
    """How far every stage's order is that of the stage before it."""
    rows: list[Row] = []
    columns = ("tau", "overlap@keep")
    for stage in stage_names(report):
        previous = lookup(report.summary, "stages", stage, "previous")
        if previous:
            overlap = next(key for key in previous if key.startswith("overlap@"))
            paths: list[Path] = [("stages", stage, "previous", key) for key in ("tau", overlap)]
            rows += _group(report, stage, columns, paths)
    return _table(report, "Agreement with the order received", columns, rows)


def distill_table(report: Report) -> Table:
    """Per distiller: how far student and teacher agree, and which share of the gap to the teacher was recovered."""
    summary = report.summary.get("distill", {})
    paths = dict.fromkeys(path for tree in summary.values() for path, _ in leaves(tree))
    columns = tuple(" ".join(LABELS.get(key, key) for key in path) for path in paths)
    rows = [
        Row(_spaced(name), "main", tuple(figure(report, ("distill", name, *path)) for path in paths))
        for name in summary
    ]
    return _table(report, "Distillers", columns, rows)


def codistill_table(report: Report) -> Table:
    """Per codistilled stage: how far its peers' predictions lie apart, and how good the mean of them is."""
    summary = report.summary.get("codistill", {})
    columns = {"churn": "churn among peers", "auc": "AUC of their mean", "logloss": "log loss of their mean"}
    rows = [Row(name, "main", tuple(figure(report, ("codistill", name, key)) for key in columns)) for name in summary]
    return _table(report, "Codistillation", tuple(columns.values()), rows)


def _group(
    report: Report, label: str, columns: Sequence[str], paths: Sequence[Path], *, always: bool = False
) -> list[Row]:
    """A row and, when distillation changed a figure or ``always``, its undistilled self and the difference."""
    rows = [Row(label, "main", tuple(figure(report, path) for path in paths))]
    if not is_distilled(report):
        return rows
    bases: list[Path] = [("baseline", *path) for path in paths]
    changes = tuple(
        difference(report, path, base, better=_direction(column))
        for column, path, base in zip(columns, paths, bases, strict=True)
    )
    known = any(change.mean is not None for change in changes)
    if known and (always or any(change.mean or change.error for change in changes)):
        rows.append(Row("undistilled", "baseline", tuple(figure(report, base) for base in bases)))
        rows.append(Row("difference", "difference", changes))
    return rows


def _recall_at_keep(metrics: Tree, keep: int | None) -> str:
    """recall@keep, or at the largest k below it where the stage received no more than that."""
    places = [int(key.removeprefix("recall@")) for key in metrics if re.fullmatch(r"recall@\d+", key)]
    within = [k for k in places if keep is not None and k <= keep]
    return f"recall@{max(within)}" if within else "recall@keep"


def _spaced(distiller: str) -> str:
    # A narrow column can then break the name before the method.
    pair, colon, method = distiller.rpartition(":")
    return f"{pair}: {method}" if colon else distiller


def _direction(column: str) -> int:
    return -1 if column in LOWER_IS_BETTER else 0 if column in NO_DIRECTION else 1


def _marks(leaf: Tree) -> Iterable[str]:
    for key, value in leaf.items():
        if key not in PLAIN_KEYS and (value is True or isinstance(value, str)):
            yield key.replace("_", " ") if value is True else f"{key.replace('_', ' ')}: {value}"


def _table(report: Report, title: str, columns: Sequence[str], rows: Sequence[Row]) -> Table:
    """The table with its notes: what +- is, what a star marks, why a figure is missing."""
    seeds, notes = len(report.seeds), []
    if any(not isinstance(cell, str) and cell.spread for row in rows for cell in row.cells):
        notes.append(f"± standard deviation over {seeds} seeds" if seeds > 1 else "± standard error, one seed")
    remarks: dict[str, dict[str, None]] = {}
    for row in rows:
        for column, cell in zip(columns, row.cells, strict=True):
            if isinstance(cell, Cell):
                for sign, text in [("*", mark) for mark in cell.marks] + [(MISSING, cell.why)] * bool(cell.why):
                    remarks.setdefault(f"{sign} {column}: {text}", {})[row.label] = None
    notes += [f"{remark} ({', '.join(labels)})" for remark, labels in remarks.items()]
    return Table(title, tuple(columns), tuple(rows), tuple(notes))

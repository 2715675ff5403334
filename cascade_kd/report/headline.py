"""The three statements that open a report: what the cascade keeps, what distillation brought, who loses most."""

from __future__ import annotations

from dataclasses import dataclass

from cascade_kd.report.cells import Cell
from cascade_kd.report.report import Report
from cascade_kd.report.tables import difference, figure, is_distilled, stage_keeps, stage_names, student_of
from cascade_kd.report.tree import lookup

GAIN_METRICS = ("auc", "gauc")  # the first that student and baseline both have is named
GAIN_NAMES = {"auc": "AUC", "gauc": "GAUC"}


def percent(share: float) -> str:
    """``43.1%``; two decimals below one per cent."""
    return f"{100 * share:.{2 if abs(share) < 0.01 else 1}f}%"


def headlines(report: Report) -> list[Headline]:
    """Up to three statements; one whose figures are missing is left out."""
    found = [_kept(report), _gained(report), _lost(report)]
    return [headline for headline in found if headline is not None]


def plus_minus(cell: Cell) -> str:
    """``.8123 ±.0011``, or the mean alone."""
    return f"{cell.value} ±{cell.spread}" if cell.spread else cell.value


def _kept(report: Report) -> Headline | None:
    stages, keeps = stage_names(report), stage_keeps(report)
    survival = [figure(report, ("cascade", "survival", stage)).mean for stage in stages]
    if not survival or survival[-1] is None:
        return None
    budget = f"top {keeps[stages[-1]]:,}" if stages[-1] in keeps else "list"
    text = f"of the users' test positives are in the cascade's final {budget}"
    metric = f"recall@{keeps.get(stages[-1])}"
    mine = figure(report, ("cascade", metric)).mean
    theirs = figure(report, ("baseline", "reference", "popularity", metric)).mean
    if mine is not None and theirs:
        text += f"; {metric} is {mine / theirs:.1f} times that of popularity"
    return Headline("Kept", percent(survival[-1]), text + ".")


def _gained(report: Report) -> Headline | None:
    if not is_distilled(report):
        return Headline("Distillation", "none", "No stage of this run has a teacher.")
    names = lookup(report.summary, "distill") or {}
    students = [*map(student_of, names), *(lookup(report.summary, "codistill") or {})]
    for student in dict.fromkeys(students):
        for metric in GAIN_METRICS:
            path = ("stages", student, metric)
            change = difference(report, path, ("baseline", *path), better=1)
            if change.mean is None:
                continue
            before, after = figure(report, ("baseline", *path)), figure(report, path)
            text = f"{GAIN_NAMES[metric]} of {student}, from {before.value} to {after.value}"
            for name in names:
                recovered = figure(report, ("distill", name, "recovery", metric)).mean
                if student_of(name) == student and recovered is not None:
                    text += f"; {percent(recovered)} of the gap to {name.partition('->')[0]} is closed"
            return Headline("Distillation", plus_minus(change), f"{text}.{_end_to_end(report)}", change.verdict)
    return None


def _end_to_end(report: Report) -> str:
    path = ("cascade", "found")
    change = difference(report, path, ("baseline", *path))
    return "" if change.mean is None else f" End to end, the share found changes by {plus_minus(change)}."


def _lost(report: Report) -> Headline | None:
    shares = {stage: figure(report, ("cascade", "lost", stage)).mean for stage in stage_names(report)}
    known = {stage: share for stage, share in shares.items() if share is not None}
    if not known:
        return None
    worst = max(known, key=known.__getitem__)
    others = ", ".join(f"{stage} {percent(share)}" for stage, share in known.items() if stage != worst)
    text = f"of the test positives are lost in {worst}, more than in any other stage"
    return Headline("Largest loss", percent(known[worst]), f"{text} ({others})." if others else f"{text}.")


@dataclass(frozen=True)
class Headline:
    """A label, a figure and the sentence that it begins; ``verdict`` is "better", "worse" or ""."""

    label: str
    value: str
    text: str
    verdict: str = ""

"""``list``: one line a thing (floor 9)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from cascade_kd.errors import UserError

METRICS = (
    ("auc", "area under the ROC curve of the test rows, ties one half; standard error by DeLong"),
    ("gauc", "AUC per user, weighted by the user's test impressions; one-class users left out and counted"),
    ("logloss", "mean log loss of the test rows, natural log; after Platt scaling where the loss is no probability's"),
    ("ece", "expected calibration error, 20 bins of equal count"),
    ("churn", "mean |p - p'| of the test rows between trainings of different seeds, where a run has several"),
    ("recall@k", "hits in the first k / all test positives of the request, mean over requests with a positive"),
    ("ndcg@k", "binary gain, 1/log2(1 + rank), ideal over min(k, positives)"),
    ("survival", "share of positives still there after each stage"),
    ("lost", "share of positives dropped by each stage; all lost and what was found add up to 1"),
    (
        "joint_recall@k@m",
        "share of a logged list's k truths that survive the budgets of an objective's stages, m the last",
    ),
    ("overlap@k", "top k that student and teacher have in common, both ordering the student's input"),
    ("recovery", "(distilled - student) / (teacher - student)"),
)


def listing(what: Literal["stages", "datasets", "distillers", "metrics", "layers"], file: str | None) -> list[str]:
    """The lines of ``cascade-kd list WHAT [FILE]``. Raises UserError if FILE is missing or not wanted."""
    if what == "layers":
        if file is None:
            raise UserError("list layers: want an experiment's TOML behind it, as in: list layers demo")
        return _layers(file)
    if file is not None:
        raise UserError(f"list {what} takes no file, got '{file}'")
    if what == "metrics":
        return _columns(METRICS)
    from cascade_kd.config import describe_catalogue, describe_distillers

    return _columns(describe_distillers() if what == "distillers" else describe_catalogue(what))


def _layers(file: str) -> list[str]:
    from cascade_kd.cli.preparing import prepare_shown
    from cascade_kd.config import load_experiment
    from cascade_kd.data import load
    from cascade_kd.experiment.nets import describe_layers

    config = load_experiment(file)
    dataset = load(prepare_shown(config.definition, config.dataset_file.parent))
    rows = [(stage, name, str(["rows", *shape])) for stage, name, shape in describe_layers(config, dataset)]
    return _columns(rows)


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    ]

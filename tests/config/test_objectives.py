"""``[[objective]]``: what it leaves to the stages, and what is wrong with it, at its file and line."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from cascade_kd.config import json_schemas, load_experiment, resolved_toml
from cascade_kd.config.tables import OBJECTIVES

LCRON = '[[objective]]\nmethod = "lcron"\nstages = ["recall", "prerank"]\n'
REQUESTS = ("little.toml", 'time = "time"', 'time = "time"\nrequest = "page"')


def write(project: Any, text: str, *edits: tuple[str, str, str]) -> None:
    for edit in edits:
        project.edit(*edit)
    project.edit("exp.toml", "#distill", text)


def test_what_is_left_out_comes_from_the_stages(project: Any) -> None:
    write(project, LCRON + LCRON.replace("lcron", "rankflow"), REQUESTS)
    lcron, _ = load(project, 'objective.1.truth="label"', 'objective.1.stages=["prerank","rank"]', "objective.0.k=7")
    assert (lcron.truth, lcron.teacher, lcron.k, lcron.budgets, lcron.label) == ("top", "rank", 7, (100, 50), None)


def load(project: Any, *overrides: str) -> Any:
    """Two objectives on different stages need a fourth stage: the second's are renamed away from the first's."""
    project.edit("exp.toml", "[[distill]]", '[[stage]]\nname = "last"\nuse = "stages/rank.toml"\nkeep = 5\n[[distill]]')
    both = (*overrides[:1], 'objective.1.stages=["rank","last"]', *overrides[2:], 'objective.0.teacher="rank"')
    found = project.load(*both).objectives
    second = found[1]
    assert (second.truth, second.teacher, second.k, second.label) == ("label", None, None, "click")
    assert second.budgets == (10, 5)
    return found


@pytest.mark.parametrize("method", OBJECTIVES)
def test_every_method_goes_out_and_in_again_and_fits_the_schema(project: Any, tmp_path: Path, method: str) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="the extra `report` brings jsonschema")
    write(project, LCRON.replace("lcron", method))
    config = project.load("objective.0.weight=0.25", "objective.0.warmup_steps=3")
    (objective,) = config.objectives
    assert (objective.weight, objective.warmup_steps, objective.name) == (0.25, 3, f"{method}:recall+prerank")
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "config.toml"
    path.write_text(resolved_toml(config), "utf-8")
    assert load_experiment(path) == config
    schema = jsonschema.Draft202012Validator(json.loads(json.dumps(json_schemas()["experiment"])))
    schema.validate(tomllib.loads(resolved_toml(config)))
    assert not schema.is_valid(tomllib.loads(resolved_toml(config).replace(f'"{method}"', '"lkron"')))
    assert project.load(without_distill=True).objectives == ()


LABEL = 'truth = "label"'
WRONG: dict[str, tuple[str, list[tuple[str, str, str]], str, str]] = {
    # name: (the table, edits, the start of the line that the problem points at, its words)
    "a method that there is not": (LCRON.replace("lcron", "lkron"), [], "method", 'no objective "lkron" in this'),
    "no method": (
        '[[objective]]\nstages = ["recall", "prerank"]',
        [],
        "[[objective]]",
        "missing: the objective; there",
    ),
    "one stage": ('[[objective]]\nmethod = "fs"\nstages = ["recall"]', [], "stages", "want at least 2 entries"),
    "a stage twice": ('[[objective]]\nmethod = "fs"\nstages = ["rank", "rank"]', [], "stages", "listed twice"),
    "an unknown stage": (
        LCRON.replace('"prerank"', '"prerang"'),
        [],
        "stages",
        "no stage is named 'prerang'; did you mean 'prerank'?",
    ),
    "no neighbours": (LCRON.replace("prerank", "rank"), [], "stages", "want neighbouring stages in the order of"),
    "the wrong order": (
        '[[objective]]\nmethod = "fs"\nstages = ["prerank", "recall"]',
        [],
        "stages",
        "got 'prerank', 'recall', where that order is ['recall', 'prerank']",
    ),
    "a key of another method": (LCRON + "width = 0.1", [], "width", "unknown key"),
    "too few budgets": (LCRON + "budgets = [3]", [], "budgets", "want one number for each of 2 stages, got [3]"),
    "an unknown teacher": (LCRON + 'teacher = "rang"', [], "teacher", "no stage or teacher is named 'rang'; did you"),
    "nobody who orders": (
        LCRON.replace('"recall", "prerank"', '"prerank", "rank"'),
        [],
        "[[objective]]",
        "the last stage 'rank' is trained here, and no other orders the lists; want teacher = \"rank\"",
    ),
    "labels without requests": (LCRON + LABEL, [], "truth", "has no requests, whose rows could be true and false"),
    "requests that there are not": (LCRON + 'lists = "requests"', [], "lists", "has no requests to take lists from"),
    "an order of labels": (
        f'[[objective]]\nmethod = "arf"\nstages = ["recall", "prerank"]\n{LABEL}',
        [],
        "truth",
        'learns the whole order of a list, which a label has not; want truth = "top"',
    ),
    "a label of no truth": (LCRON + 'label = "like"', [], "label", 'truth = "top" reads no label'),
    "a label that there is not": (
        f'{LCRON}{LABEL}\nlabel = "lik"',
        [REQUESTS],
        "label",
        "has no label 'lik'; did you mean 'like'?",
    ),
    "a teacher of labels": (f'{LCRON}{LABEL}\nteacher = "rank"', [REQUESTS], "teacher", "asks nobody for an order"),
    "k of labels": (f"{LCRON}{LABEL}\nk = 3", [REQUESTS], "k =", "has as many truths as true labels"),
    "k behind the end": (LCRON + "depth = 5\nk = 6", [], "k =", "the lists end at depth = 5, before k; got 6"),
    "two objectives of a stage": (
        LCRON + '\n[[objective]]\nmethod = "fs"\nstages = [\n  "prerank", "rank"]\nteacher = "rank"',
        [],
        "stages = [\n",
        "stage 'prerank' is trained by 'lcron:recall+prerank' already",
    ),
    "a joint student": (
        LCRON,
        [("exp.toml", "temperature = 2.0", 'mode = "joint"')],
        "stages",
        "stage 'prerank' is trained in the steps of a joint teacher already",
    ),
    "a run to continue": (LCRON, [("exp.toml", "#head", 'init_from = "runs/a"')], "stages", "are trained from scratch"),
    "approximate lists of a request": (
        LCRON + "approximate = true",
        [REQUESTS],
        "approximate",
        "only a catalogue is ordered approximately, and these lists are of 'requests'",
    ),
    "an end weight of no schedule": (LCRON + "end_weight = 0.1", [], "end_weight", "has no end_weight"),
}


@pytest.mark.parametrize(("table", "edits", "line", "words"), list(WRONG.values()), ids=list(WRONG))
def test_mistakes_are_told_where_they_stand(
    project: Any, table: str, edits: list[tuple[str, str, str]], line: str, words: str
) -> None:
    write(project, table, *edits)
    found = [problem for problem in project.problems() if words in problem.message]
    assert found, [str(problem) for problem in project.problems()]
    lines = (project.folder / "exp.toml").read_text("utf-8").split("\n")
    start = len("\n".join(lines)[: "\n".join(lines).index("[[objective]]")].split("\n"))
    number = next(n for n, text in enumerate(lines, start=1) if n >= start and (text + "\n").startswith(line))
    assert (found[0].file, found[0].line) == ("exp.toml", number)


def test_set_reaches_an_objective(project: Any) -> None:
    write(project, LCRON)
    problems = project.problems("objective.0.temperature=0")
    assert [problem.file for problem in problems] == ["--set objective.0.temperature=0"]

"""Distillers on lists: what their tables may say, read, resolved, and refused at its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cascade_kd.config import load_experiment, resolved_toml

PAIR = "[[distill]]\nteacher = '{}'\nstudent = '{}'\nmethod = '{}'\n"
REQUESTS = 'request = "session"\n'

METHODS = {
    "pointwise": PAIR.format("rank", "recall", "topk-pointwise") + "k = 50\nalpha = 1.0\nnegatives = 100\n",
    "pairwise": PAIR.format("rank", "prerank", "topk-pairwise") + "loss = 'hinge'\npairs = 8\ndepth = 90\n",
    "listwise": PAIR.format("rank", "prerank", "topk-listwise") + "loss = 'rankdistil'\nlists = 'catalogue'\n",
    "rd": PAIR.format("rank", "recall", "rd"),
    "cd": PAIR.format("rank", "recall", "cd") + "approximate = true\n",
    "rrd": PAIR.format("rank", "recall", "rrd") + "interesting = 'first'\n",
    "dcd": PAIR.format("rank", "recall", "dcd"),
    "unkd": PAIR.format("rank", "recall", "unkd"),
    "clid": PAIR.format("rank", "prerank", "hidden").replace("hidden", "logit") + "loss = 'clid'\nmode = 'offline'\n",
}


def written(project: Any, text: str, roles: str = "") -> Any:
    """The project with ``text`` in the place of its own distiller."""
    own = (project.folder / "exp.toml").read_text("utf-8")
    start, end = own.index("[[distill]]"), own.index("#distill")
    (project.folder / "exp.toml").write_text(own[:start] + text + own[end:], "utf-8")
    project.edit("little.toml", 'time = "time"\n', f'time = "time"\n{roles}')
    return project


@pytest.mark.parametrize("text", METHODS.values(), ids=METHODS)
def test_the_resolved_form_loads_again(project: Any, tmp_path: Path, text: str) -> None:
    config = written(project, text).load()
    (tmp_path / "config.toml").write_text(resolved_toml(config), "utf-8")
    assert load_experiment(tmp_path / "config.toml") == config
    (pair,) = config.distill
    assert pair.on_lists
    assert not pair.is_cached


def test_defaults_follow_the_data_and_the_student(project: Any) -> None:
    (pair,) = written(project, METHODS["pointwise"]).load().distill
    assert pair.kind(has_requests=True, alone=True) == "requests"
    assert pair.kind(has_requests=False, alone=True) == "catalogue"
    assert pair.kind(has_requests=False, alone=False) == "upstream"
    assert (pair.depth_of("catalogue"), pair.depth_of("upstream")) == (50, None)
    assert (pair.negatives_of("catalogue"), pair.negatives_of("upstream")) == (100, 100)  # as written


WRONG = {
    "k behind the end": ("topk-pointwise", "depth = 5\nk = 6", "", "k", "the lists end at depth = 5, before k; got 6"),
    "a margin of ranknet": ("topk-pairwise", "margin = 1.0", "", "margin", 'only loss = "hinge" has a margin'),
    "lambdas of some pairs": ("topk-pairwise", "pairs = 3\nlambdas = true", "", "lambdas", "leave `pairs` out"),
    "scores of negatives": (
        "topk-listwise",
        "negatives = 3\nloss = 'listnet'",
        "",
        "loss",
        '"listnet" reads the teacher\'s scores, which negatives have not; want negatives = 0',
    ),
    "draws of listmle": ("topk-listwise", "draws = 3", "", "draws", 'only loss = "rankdistil" draws orders'),
    "a joint teacher": ("rrd", "mode = 'joint'", "", "mode", 'ordered by a teacher that is complete; want mode = "off'),
    "no requests": (
        "rrd",
        "lists = 'requests'",
        "",
        "lists",
        'has no requests to take lists from; name their column as [roles] request, or want "upstream"',
    ),
    "no positions": (
        "rrd",
        "lists = 'log'",
        REQUESTS,
        "lists",
        "does not say where an item was shown; name the column",
    ),
    "no scores in a log": (
        "cd",
        "lists = 'log'",
        REQUESTS + 'position = "slot"\n',
        "lists",
        "the log holds an order and no scores, which this method reads",
    ),
    "approximate lists of the stage before": (
        "rrd",
        "lists = 'upstream'\napproximate = true",
        "",
        "approximate",
        "only a catalogue is ordered approximately",
    ),
    "lists of a loss of rows": (
        "logit",
        "lists = 'upstream'\nloss = 'mse'",
        "",
        "lists",
        'loss = "mse" works row by row',
    ),
    "a depth of rows": (
        "logit",
        "depth = 9",
        "",
        "depth",
        'loss = "kl" without `lists` works row by row and has no depth',
    ),
    "an auxiliary head": ("logit", "loss = 'clid'\nhead = 'auxiliary'\nlayer = 'x'", "", "head", "the served head"),
}


@pytest.mark.parametrize(("method", "keys", "roles", "key", "words"), WRONG.values(), ids=WRONG)
def test_one_mistake_gives_one_problem_at_its_place(
    project: Any, method: str, keys: str, roles: str, key: str, words: str
) -> None:
    written(project, PAIR.format("rank", "prerank", method) + keys + "\n", roles)
    (problem,) = project.problems()
    assert (problem.file, problem.key) == ("exp.toml", f"distill.0.{key}")
    assert problem.line == project.line("exp.toml", f"{key} ")
    assert words in problem.message


def test_the_first_stage_has_nothing_before_it(project: Any) -> None:
    written(project, PAIR.format("rank", "recall", "rrd") + "lists = 'upstream'\n")
    (problem,) = project.problems()
    assert "no stage stands before 'recall'" in problem.message


def test_ranks_of_your_own_teach_an_order_and_no_logits(project: Any) -> None:
    project.edit(
        "little.toml", 'name = "price"\nkind = "numeric"', 'name = "price"\nkind = "numeric"\ntransform = "none"'
    )
    mine = "[[teacher]]\nname = 'mine'\ncolumn = 'price'\nscores = 'rank'\n"
    written(project, mine + PAIR.format("mine", "prerank", "rrd") + "lists = 'requests'\n", REQUESTS)
    assert project.load().teachers[0].scores == "rank"
    project.edit("exp.toml", "'rrd'\nlists = 'requests'\n", "'logit'\n")
    (problem,) = project.problems()
    assert problem.key == "distill.0.teacher"
    assert "needs the signal 'logits' of its teacher; 'mine' gives 'ranking'" in problem.message


def test_a_column_of_scores_orders_logged_events_alone(project: Any) -> None:
    project.edit(
        "little.toml", 'name = "price"\nkind = "numeric"', 'name = "price"\nkind = "numeric"\ntransform = "none"'
    )
    mine = "[[teacher]]\nname = 'mine'\ncolumn = 'price'\n"
    written(project, mine + PAIR.format("mine", "prerank", "rrd"))
    (problem,) = project.problems()
    assert "'mine' is a column of scores of logged events and orders nothing else" in problem.message

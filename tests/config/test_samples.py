"""Keys of ``samples`` by source, and what they ask of the loss, the data set and the distillers."""

from __future__ import annotations

from typing import Any

import pytest

from cascade_kd.config import load_experiment, resolved_toml
from cascade_kd.train.settings import SampleSource, TrainConfig

PRERANK, RECALL = "stages/prerank.toml", "stages/recall.toml"
SAMPLES = '[{ from = "impressions" }, { from = "upstream", per_positive = 4 }]'


def samples(project: Any, text: str, *, stage: str = PRERANK) -> None:
    """Give a stage these samples."""
    if stage == PRERANK:
        project.edit(PRERANK, SAMPLES, text)
    else:
        project.edit(RECALL, "[train]", f"[train]\nsamples = {text}")


def the_problem(project: Any) -> tuple[str, str]:
    problems = project.problems()
    assert len(problems) == 1, "\n".join(map(str, problems))
    assert problems[0].line > 0
    return problems[0].key, problems[0].message


WRONG = {
    "popularity without a number": (
        '{ from = "popularity" }',
        "per_positive",
        'from = "popularity" needs per_positive >= 1',
    ),
    "hard without a number": ('{ from = "hard", pool = 9 }', "per_positive", 'from = "hard" needs per_positive >= 1'),
    "power of uniform": (
        '{ from = "uniform", per_positive = 1, power = 0.5 }',
        "power",
        'from = "uniform" has no power, got 0.5',
    ),
    "power 0": ('{ from = "popularity", per_positive = 1, power = 0 }', "power", "want a number > 0, got 0"),
    "pool of popularity": (
        '{ from = "popularity", per_positive = 1, pool = 5 }',
        "pool",
        'from = "popularity" has no pool, got 5',
    ),
    "a small pool": (
        '{ from = "hard", per_positive = 4, pool = 3 }',
        "pool",
        "must be >= per_positive, got 3; 80 is the default",
    ),
    "in-batch for bce": (
        '{ from = "in-batch" }',
        "from",
        "loss 'bce' scores row by row and takes no 'in-batch' negatives",
    ),
}


@pytest.mark.parametrize(("entry", "key", "words"), WRONG.values(), ids=WRONG)
def test_keys_of_another_source_are_refused(project: Any, entry: str, key: str, words: str) -> None:
    samples(project, f'[{{ from = "impressions" }}, {entry}]')
    if entry.startswith('{ from = "hard"'):
        project.edit("exp.toml", 'student = "prerank"', 'student = "rank"')
        project.edit("exp.toml", 'teacher = "rank"', 'teacher = "prerank"')
    at, message = the_problem(project)
    assert at == f"train.samples.1.{key}"
    assert words in message


def test_defaults_by_loss_and_source() -> None:
    assert TrainConfig(label="x").samples == (SampleSource(source="impressions"),)
    assert TrainConfig(label="x", loss="sampled-softmax").samples == (SampleSource(source="in-batch"),)
    assert TrainConfig(label="x", loss="ccl").samples == (SampleSource(source="in-batch"),)
    assert TrainConfig(label="x", loss="bpr").samples == (SampleSource(source="uniform", per_positive=1),)
    assert TrainConfig(label="x", loss="full-softmax").samples == ()
    assert SampleSource(source="popularity", per_positive=1).power == 1.0
    assert SampleSource(source="hard", per_positive=3).pool == 60
    plain = SampleSource(source="uniform", per_positive=3)
    assert (plain.power, plain.pool) == (None, None)


def test_all_sources_load_and_round_trip(project: Any) -> None:
    samples(
        project,
        '[{ from = "impressions" }, { from = "popularity", per_positive = 2 }, { from = "hard", per_positive = 1 }, '
        '{ from = "upstream", per_positive = 4 }, { from = "uniform", per_positive = 1 }]',
    )
    project.edit("exp.toml", 'student = "prerank"', 'student = "rank"')
    project.edit("exp.toml", 'teacher = "rank"', 'teacher = "prerank"')
    samples(project, '[{ from = "in-batch" }, { from = "popularity", per_positive = 9, power = 0.5 }]', stage=RECALL)
    config = project.load()
    (project.folder / "resolved.toml").write_text(resolved_toml(config), "utf-8")
    again = load_experiment(project.folder / "resolved.toml")
    assert again == config
    found = [(s.source, s.per_positive, s.power, s.pool) for s in again.stage("prerank").train.samples]
    assert found[1:3] == [("popularity", 2, 1.0, None), ("hard", 1, None, 20)]
    assert again.stage("recall").train.samples[1].power == 0.5


@pytest.mark.parametrize(
    ("entry", "key", "words"),
    [
        ('{ from = "impressions" }', "from", "takes no 'impressions' samples; want 'in-batch', 'uniform'"),
        ('{ from = "in-batch", per_positive = 3 }', "per_positive", "takes the batch's own items and no per_positive"),
        ('{ from = "uniform", per_positive = 2, weight = 0.5 }', "weight", "have no weight, got 0.5; leave it out"),
        ('{ from = "in-batch", per_batch = 3 }', "per_positive", 'only "uniform" and "popularity" do'),
        ('{ from = "uniform", per_batch = 3, per_positive = 2 }', "per_positive", "are two sources"),
        ('{ from = "upstream", per_positive = 2 }', "from", "no stage before it to take samples from; want 'in-batch'"),
    ],
)
def test_what_a_softmax_does_not_take(project: Any, entry: str, key: str, words: str) -> None:
    samples(project, f"[{entry}]", stage=RECALL)
    at, message = the_problem(project)
    assert at == f"train.samples.0.{key}"
    assert words in message


def test_draws_of_a_batch_need_vectors(project: Any) -> None:
    samples(project, '[{ from = "uniform", per_batch = 64 }]', stage=RECALL)
    assert project.load().stage("recall").train.samples[0].per_batch == 64
    samples(project, '[{ from = "impressions" }, { from = "uniform", per_batch = 64 }]')
    at, message = the_problem(project)
    assert at == "train.samples.1.per_batch"
    assert "scores row by row, so its draws are a positive event's own; want per_positive" in message


@pytest.mark.parametrize(
    ("keys", "at", "words"),
    [
        ('loss = "full-softmax"', None, ""),
        ('loss = "ccl"\nccl_margin = 0.4', None, ""),
        ('loss = "full-softmax"\nsamples = [{ from = "in-batch" }]', "train.samples", "leave samples out"),
        ('loss = "sampled-softmax"\nsamples = []', "train.samples", "name a source of rows"),
        ('loss = "sampled-softmax"\nccl_margin = 0.4', "train.ccl_margin", "loss 'sampled-softmax' has no ccl_margin"),
        ('loss = "ccl"\nccl_weight = 0', "train.ccl_weight", "want a number > 0, got 0"),
        ('loss = "bpr"\nmonitor = "logloss"', "train.monitor", "loss 'bpr' gives no probabilities"),
    ],
)
def test_losses_of_a_tower(project: Any, keys: str, at: str | None, words: str) -> None:
    project.edit("stages/recall.toml", 'loss = "sampled-softmax"', keys)
    if at is None:
        config = project.load()
        (project.folder / "resolved.toml").write_text(resolved_toml(config), "utf-8")
        assert load_experiment(project.folder / "resolved.toml") == config
    else:
        found, message = the_problem(project)
        assert found == at
        assert words in message


def test_a_ranker_learns_pairs(project: Any) -> None:
    project.edit("exp.toml", "#rank", 'train.loss = "bpr"')
    assert project.load().stage("rank").train.samples == (SampleSource(source="uniform", per_positive=1),)
    project.edit("exp.toml", '"bpr"', '"full-softmax"')
    assert "needs user and item vectors" in " ".join(problem.message for problem in project.problems())


def test_hard_negatives_have_no_kept_teacher_scores(project: Any) -> None:
    samples(project, '[{ from = "impressions" }, { from = "hard", per_positive = 4 }]')
    at, message = the_problem(project)
    assert at == "distill.0.student"
    assert "stage 'prerank' draws 'hard' negatives anew every step" in message
    assert "leave the source out of its [train] samples" in message


# -- labels that are always true

ALL = "label 'click' of data set 'little' is true for every event, so "


def implicit(project: Any, stage: str, more: str) -> None:
    """Make the click of the data set true everywhere; only ``stage`` is left to go wrong."""
    project.edit("little.toml", 'click = "click = 1"', 'click = " TRUE "')
    project.edit("stages/rank.toml", '"click"', '"like"')
    if stage == "rank":
        project.edit("stages/prerank.toml", '"click"', '"like"')
        project.edit("stages/rank.toml", 'label = "like"', f'label = "click"\n{more}')
    else:
        project.edit("stages/prerank.toml", 'label = "click"', f'label = "click"\n{more}')


def test_an_implicit_set_needs_drawn_negatives_and_another_monitor(project: Any) -> None:
    implicit(project, "rank", "")
    problems = {problem.key: problem.message for problem in project.problems()}
    assert set(problems) == {"train.samples", "train.monitor"}
    assert problems["train.samples"].startswith(ALL + "there is no negative row to learn from; draw some: samples = [")
    assert problems["train.monitor"] == ALL + 'auc is not defined; set monitor = "recall@50"'


def test_towers_watch_recall_instead(project: Any) -> None:
    implicit(project, "prerank", "")
    assert the_problem(project) == ("train.monitor", ALL + 'auc is not defined; set monitor = "recall@50"')


def test_an_implicit_set_with_both_is_fine(project: Any) -> None:
    implicit(project, "prerank", 'monitor = "recall@50"')
    assert project.load().stage("prerank").train.monitor == "recall@50"
    assert project.load().stage("recall").train.loss == "sampled-softmax"  # its negatives are in the batch


# -- auxiliary labels of a model


@pytest.mark.parametrize(
    ("label", "loss", "words"),
    [
        ("like", "bce", None),
        ("lik", "bce", "data set 'little' has no label 'lik'; did you mean 'like'?"),
        ("click", "bce", "'click' is the stage's own label"),
        ("like", "bpr", "auxiliary labels are learnt row by row, and loss is 'bpr'"),
    ],
)
def test_auxiliary_labels(project: Any, label: str, loss: str, words: str | None) -> None:
    project.edit("stages/rank.toml", '"dcnv2"', '"multi-task"')
    project.edit("stages/rank.toml", "cross_layers = 1", f"auxiliary = {{ {label} = 1.0 }}")
    project.edit("stages/rank.toml", "[train]", f'[train]\nloss = "{loss}"')
    if words is None:
        assert project.load().stage("rank").model.auxiliary == {"like": 1.0}
    else:
        at, message = the_problem(project)
        assert at == f"model.auxiliary.{label}"
        assert words in message


# -- when learning rates fall


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("plateau_factor = 0.3\nmilestones = [2, 4]", None),
        ("plateau_factor = 0.3\nmilestones = [4, 2]", "want epochs in ascending order, each once, got [4, 2]"),
        ("plateau_factor = 0.3\nmilestones = [2, 2]", "want epochs in ascending order, each once, got [2, 2]"),
        ("plateau_factor = 0.3\nmilestones = [5]", "would fall after the last of 5 epochs, got [5]"),
        ("milestones = [2]", "plateau_factor is 1, so rates do not fall; want one below 1 beside milestones"),
    ],
)
def test_milestones(project: Any, keys: str, words: str | None) -> None:
    project.edit("exp.toml", "#prerank", "train.epochs = 5")
    project.edit("stages/prerank.toml", "[train]", f"[train]\n{keys}")
    if words is None:
        assert project.load().stage("prerank").train.milestones == (2, 4)
    else:
        at, message = the_problem(project)
        assert at.startswith("train.milestones")
        assert words in message

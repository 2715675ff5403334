"""What every cascade objective guarantees, on whole trainings of the tiny world.

A new objective joins by one line of ``METHODS``. Round 0 is trained once and copied; a case trains its two stages for
three steps. The lists are slates of five of the log.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from cascade_kd.config import load_experiment
from cascade_kd.data import Dataset
from cascade_kd.errors import UserError
from cascade_kd.evaluate import Evaluation
from cascade_kd.experiment import objectives, run, training
from cascade_kd.experiment.request_lists import add_request_metrics
from cascade_kd.interrupt import Interrupted
from cascade_kd.train import ProgressLog, samples
from cascade_kd.train.teacher_lists import logged_lists

Tiny = Callable[..., Path]
Weights = Mapping[str, torch.Tensor]
Train = Callable[..., Any]

STAGES = ("recall", "prerank")
FEW = [
    *("stage.prerank.train.batch_size=1600", "stage.rank.train.batch_size=1600"),
    *("stage.recall.train.loss=bce", "stage.recall.train.batch_size=1600"),
    "stage.recall.train.samples=[{from='impressions'}]",
]
UNEVEN = ["stage.prerank.train.epochs=2", "stage.prerank.train.batch_size=1000"]  # the recall stage ends before
LABEL = 'truth = "label"\n'
CUT = "budgets = [3, 2]\n"
TOP = "k = 2\n"
METHODS = {
    "lcron": 'method = "lcron"\n' + CUT + LABEL,
    "arf": 'method = "arf"\n' + CUT + TOP,
    "arf-v2": 'method = "arf"\ntwo_sided = true\n' + CUT + TOP,
    "icc": 'method = "icc"\nwidth = 0.1\n' + CUT,
    "fs": 'method = "fs"\n' + LABEL,
    "copr": 'method = "copr"\nchunks = 3\n',
    "rankflow": 'method = "rankflow"\n' + CUT + TOP,
}


def different(a: Weights, b: Weights) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def table(keys: str, weight: float = 1.0, stages: Sequence[str] = STAGES) -> str:
    return f"\n[[objective]]\nstages = {list(stages)}\nlists_per_step = 32\nweight = {weight}\n{keys}\n"


@pytest.fixture
def train(tiny: Tiny, trainings: Callable[..., Train]) -> Train:
    return trainings(lambda tables: tiny(distill=tables, epochs=1), *FEW, unproven=(training, objectives), also=UNEVEN)


CASES = [
    pytest.param(keys, id=name, marks=[pytest.mark.slow] if name == "arf-v2" else []) for name, keys in METHODS.items()
]


@pytest.mark.parametrize("keys", CASES)
def test_weight_0_is_the_undistilled_run_and_another_repeats_itself_and_moves_both(train: Train, keys: str) -> None:
    nothing, taught, again = train(table(keys, 0.0)), train(table(keys)), train(table(keys))
    for stage in STAGES:
        for file in ("best", "last"):
            assert not different(nothing.weights(0, stage, file), nothing.weights(1, stage, file))
            assert not different(taught.weights(1, stage, file), again.weights(1, stage, file))
        assert different(taught.weights(0, stage), taught.weights(1, stage))
        # Serving purity: the undistilled model's tensors and nothing beside them.
        held: Weights = taught.rounds[-1][stage].stage.model.state_dict()  # type: ignore[attr-defined]
        assert not different(held, taught.weights(1, stage))
    assert taught.rounds[1]["rank"] is taught.rounds[0]["rank"]
    assert not list(taught.out.rglob("together.*"))


@pytest.mark.parametrize(
    ("keys", "step"),
    [
        pytest.param(METHODS["lcron"], 2, id="both learn"),
        pytest.param(METHODS["rankflow"], 7, id="one stands still", marks=pytest.mark.slow),
    ],
)
def test_a_resume_ends_in_the_weights_of_the_whole_run(
    train: Train, monkeypatch: pytest.MonkeyPatch, keys: str, step: int
) -> None:
    """At step 2 both stages learn; at 7 the first is done and stands still."""
    whole = train(table(keys), *UNEVEN)
    drawn = samples.Sampler.batch

    def interrupting(self: samples.Sampler, at: int) -> samples.Batch:
        if at == step and self.batch_size == 1000:
            os.kill(os.getpid(), signal.SIGINT)
        return drawn(self, at)

    with monkeypatch.context() as patch:
        patch.setattr(samples.Sampler, "batch", interrupting)
        with pytest.raises(Interrupted, match=rf"stages 'recall' and 'prerank' at step {step + 1}; `--resume` goes on"):
            train(table(keys), *UNEVEN)
    resumed = train(table(keys), *UNEVEN, fresh=False)
    for stage in STAGES:
        for file in ("best", "last"):
            assert not different(whole.weights(1, stage, file), resumed.weights(1, stage, file))
        ours, theirs = (of.rounds[-1][stage] for of in (whole, resumed))
        assert ours.curve == theirs.curve
        held: Weights = theirs.stage.model.state_dict()  # type: ignore[attr-defined]
        assert not different(held, whole.weights(1, stage))
    shutil.rmtree(resumed.out)
    stored = train(table(keys), *UNEVEN, fresh=False)  # from the store, whole
    assert not different(stored.weights(1, "prerank", "last"), whole.weights(1, "prerank", "last"))


@pytest.mark.slow
def test_three_stages_of_uneven_length_are_each_as_alone_without_a_weight(train: Train) -> None:
    keys = 'method = "lcron"\nbudgets = [4, 3, 2]\n' + LABEL
    stages = ("recall", "prerank", "rank")
    nothing, taught = train(table(keys, 0.0, stages), *UNEVEN), train(table(keys, 1.0, stages), *UNEVEN)
    for stage in stages:
        assert not different(nothing.weights(0, stage, "last"), nothing.weights(1, stage, "last"))
        assert different(taught.weights(0, stage), taught.weights(1, stage))


def test_a_stage_may_have_a_teacher_beside_its_objective(train: Train) -> None:
    distill = '[[distill]]\nteacher = "rank"\nstudent = "prerank"\nmethod = "logit"\n'
    alone, both = train(distill), train(distill + table(METHODS["fs"], 0.0))
    assert not different(alone.weights(1, "prerank"), both.weights(1, "prerank"))
    assert different(alone.weights(0, "prerank"), both.weights(1, "prerank"))


def test_a_stage_without_a_label_weight_learns_from_its_objective_alone(train: Train) -> None:
    without = [f"stage.{stage}.label_weight=0.0" for stage in STAGES]
    asked: list[int] = []
    drawn = samples.Sampler.batch

    def counting(self: samples.Sampler, at: int) -> samples.Batch:
        asked.append(at)
        return drawn(self, at)

    train("", *without)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples.Sampler, "batch", counting)
        taught = train(table(METHODS["fs"]), *without)
    assert not asked
    assert different(taught.weights(0, "prerank"), taught.weights(1, "prerank"))


def test_budgets_that_cut_nothing_are_refused(train: Train) -> None:
    with pytest.raises(UserError, match=r"the longest list has 5 places, and budgets = \[20, 10\]: 'recall' would cut"):
        train(table(METHODS["icc"].replace(CUT, "")))
    with pytest.raises(UserError, match=r"budgets = \[5, 2\]: 'recall' would cut nothing and learn nothing"):
        train(table(METHODS["arf"].replace(CUT, "budgets = [5, 2]\n")))


def test_lists_read_no_validation_or_test_event(dataset: Dataset) -> None:
    later_N = dataset.events.part_N > 0
    labels = {name: column.masked_fill(later_N, 1.0) for name, column in dataset.events.labels.items()}
    events = replace(dataset.events, item_N=dataset.events.item_N.masked_fill(later_N, 1), labels=labels)
    before, after = logged_lists(dataset), logged_lists(replace(dataset, events=events))
    assert torch.equal(before.item_LK, after.item_LK)
    assert torch.equal(before.event_LK, after.event_LK)
    held = before.event_LK[before.event_LK >= 0]
    assert not bool(later_N[held].any())


@pytest.mark.parametrize("truth", [LABEL, 'teacher = "rank"\nk = 2\n'])
def test_joint_recall_is_counted_list_by_list(train: Train, tiny: Tiny, dataset: Dataset, truth: str) -> None:
    rounds = train("").rounds
    config = load_experiment(tiny(distill=table('method = "fs"\n' + truth)), overrides=FEW)
    rows = dataset.rows("test")
    drawn = torch.Generator().manual_seed(0)
    logits = {name: torch.randn(len(rows), generator=drawn) for name in STAGES}
    made = Evaluation({name: {} for name in STAGES}, {}, {}, logits, *cast(Any, (None,) * 3))
    keeps = {"recall": 3, "prerank": 2}
    cut = replace(config, stages=tuple(replace(s, keep=keeps.get(s.name, s.keep)) for s in config.stages))
    add_request_metrics(cut, dataset, rounds[0], made)
    label = dataset.events.labels["click"]
    teacher = torch.full((len(label),), torch.nan)
    rank: Any = rounds[0]["rank"].stage
    every = torch.arange(len(rows))
    teacher[rows] = rank.logits(dataset.requests_of(rows), dataset.events.item_N[rows], every, rows)
    found: dict[str, list[float]] = {"joint": [], "recall": []}
    of_request: dict[int, list[int]] = {}
    for place, row in enumerate(rows.tolist()):
        of_request.setdefault(int(dataset.events.request_N[row]), []).append(place)  # type: ignore[index]
    for places in of_request.values():
        if truth == LABEL:
            true = {place for place in places if label[rows[place]] > 0}
        else:
            true = set(sorted(places, key=lambda place: -float(teacher[rows[place]]))[:2])
        first = sorted(places, key=lambda place: -float(logits["recall"][place]))[:3]
        second = sorted(first, key=lambda place: -float(logits["prerank"][place]))[:2]
        if true:
            found["recall"].append(len(true & set(first)) / len(true))
            found["joint"].append(len(true & set(second)) / len(true))
    k = "all" if truth == LABEL else "2"
    joint = made.cascade[f"joint_recall@{k}@2"]
    assert joint["n"] == len(found["joint"])
    assert joint["mean"] == pytest.approx(sum(found["joint"]) / joint["n"])
    assert made.stages["recall"][f"recall@{k}@3"]["mean"] == pytest.approx(sum(found["recall"]) / joint["n"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stages", "keys"),
    [
        (STAGES, 'method = "lcron"\nlists = "catalogue"\n'),
        (("prerank", "rank"), 'method = "arf"\nlists = "upstream"\nteacher = "rank"\nbudgets = [8, 4]\n'),
        (STAGES, 'method = "rankflow"\nlists = "catalogue"\ndepth = 40\n'),
    ],
    ids=["catalogue", "upstream", "rankflow"],
)
def test_lists_that_a_stage_orders(train: Train, stages: Sequence[str], keys: str) -> None:
    taught = train(table(keys, stages=stages), "rounds=2")
    for stage in stages:
        assert different(taught.weights(0, stage), taught.weights(1, stage))
        assert different(taught.weights(1, stage), taught.weights(2, stage))


@pytest.mark.slow
def test_a_run_that_was_stopped_logs_every_point_once(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_experiment(tiny(distill=table(METHODS["arf"])), overrides=[*FEW, *UNEVEN])
    drawn = samples.Sampler.batch
    asked = 0

    def interrupting(self: samples.Sampler, at: int) -> samples.Batch:
        nonlocal asked
        asked += at == 7 and self.batch_size == 1000
        if asked == 2:  # in the objective, the recall stage's second epoch and the first of the other behind it
            asked += 1
            os.kill(os.getpid(), signal.SIGINT)
        return drawn(self, at)

    points = []
    for name in ("stopped", "whole"):
        monkeypatch.setenv("CASCADE_KD_CACHE", str(tmp_path / f"cache-{name}"))
        out = tmp_path / name
        if name == "stopped":
            with monkeypatch.context() as patch:
                patch.setattr(samples.Sampler, "batch", interrupting)
                with pytest.raises(Interrupted):
                    run(config, out, device="cpu", progress=ProgressLog(quiet=True))
            (late,) = out.rglob("together.json")
            story = json.loads(late.read_text("utf-8"))
            story["states"]["prerank"]["step"] = 0  # as if killed before this checkpoint: what was logged is trimmed
            late.write_text(json.dumps(story), "utf-8")
        result = run(config, out, device="cpu", resume=name == "stopped", progress=ProgressLog(quiet=True))
        lines = (out / "events.ndjson").read_text("utf-8").splitlines()
        points.append([{**json.loads(line), "samples_per_s": 0} for line in lines])
    late_first = [point for point in points[1] if (point["round"], point["stage"], point["epoch"]) != (1, "prerank", 1)]
    assert points[0] == late_first
    tree = result.report.seeds["0"]
    assert tree["objective"] == {"arf:recall+prerank": {"joint_recall@2@10": tree["cascade"]["joint_recall@2@10"]}}
    assert tree["baseline"]["cascade"]["joint_recall@2@10"]["mean"] <= 1

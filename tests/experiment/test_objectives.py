"""What every cascade objective guarantees, on whole trainings of the tiny world.

A new objective joins by one line of ``METHODS``. Round 0 is trained once and copied; a case trains its two stages for
six steps. The lists are slates of five of the log.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cascade_kd.config import load_experiment
from cascade_kd.data import Dataset
from cascade_kd.errors import UserError
from cascade_kd.experiment import objectives, training
from cascade_kd.experiment.objectives import train_objective
from cascade_kd.experiment.rounds import train_rounds
from cascade_kd.experiment.store import Store
from cascade_kd.experiment.workshop import Round, Workshop
from cascade_kd.interrupt import Interrupted
from cascade_kd.train import ProgressLog, Student, load_checkpoint, samples
from cascade_kd.train.cascade_terms import make_objective, truths
from cascade_kd.train.task import Task
from cascade_kd.train.teacher_lists import ListBatch, TeacherLists

Tiny = Callable[..., Path]
Weights = Mapping[str, torch.Tensor]
Train = Callable[..., "Outcome"]

STAGES = ("recall", "prerank")
FEW = [
    *("stage.prerank.train.batch_size=1600", "stage.rank.train.batch_size=1600"),
    *("stage.recall.train.loss=bce", "stage.recall.train.batch_size=1600"),
    "stage.recall.train.samples=[{from='impressions'}]",
]
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


class Outcome:
    def __init__(self, rounds: list[Round], out: Path) -> None:
        self.rounds, self.out = rounds, out

    def weights(self, number: int, stage: str, file: str = "best") -> Weights:
        return load_checkpoint(self.out / "checkpoints" / "0" / str(number) / stage / f"{file}.safetensors").model


def different(a: Weights, b: Weights) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def table(keys: str, weight: float = 1.0, stages: Sequence[str] = STAGES) -> str:
    return f"\n[[objective]]\nstages = {list(stages)}\nlists_per_step = 32\nweight = {weight}\n{keys}\n"


@pytest.fixture(scope="module")
def round_0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store after a training without objectives; made by the first test that asks for it."""
    return tmp_path_factory.mktemp("round-0")


@pytest.fixture
def train(
    tiny: Tiny, dataset: Dataset, tmp_path: Path, round_0: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> Train:
    """``train(TABLES, *overrides)``: all rounds, round 0 from the store; ``fresh`` false goes on in the same folder."""
    for module in (training, objectives):  # half of the time, and has tests of its own
        monkeypatch.setattr(module, "prove_availability", lambda stage: None)
    count = 0

    def go(tables: str, *overrides: str, fresh: bool = True) -> Outcome:
        nonlocal count
        count += fresh
        store, out = tmp_path / f"cache-{count}", tmp_path / f"run-{count}"
        if fresh and tables:
            shutil.copytree(round_0, store)
        monkeypatch.setenv("CASCADE_KD_CACHE", str(store if tables else round_0))
        config = load_experiment(tiny(distill=tables), overrides=[*FEW, *overrides])
        with ProgressLog(quiet=True) as progress:
            rounds = train_rounds(Workshop(config, dataset, out, Store(), progress), 0)
        return Outcome(rounds, out)

    if not any(round_0.iterdir()):
        go("")
    return go


method = pytest.mark.parametrize("keys", list(METHODS.values()), ids=list(METHODS))


@method
def test_weight_0_is_the_undistilled_run_and_another_repeats_itself_and_moves_both(train: Train, keys: str) -> None:
    nothing, taught, again = train(table(keys, 0.0)), train(table(keys)), train(table(keys))
    for stage in STAGES:
        assert not different(nothing.weights(0, stage), nothing.weights(1, stage))
        assert not different(nothing.weights(0, stage, "last"), nothing.weights(1, stage, "last"))
        assert different(taught.weights(0, stage), taught.weights(1, stage))
        for file in ("best", "last"):
            assert not different(taught.weights(1, stage, file), again.weights(1, stage, file))
        # Serving purity: the undistilled model's tensors and nothing beside them.
        held: Weights = taught.rounds[-1][stage].stage.model.state_dict()  # type: ignore[attr-defined]
        assert not different(held, taught.weights(1, stage))
    assert taught.rounds[1]["rank"] is taught.rounds[0]["rank"]
    assert not list(taught.out.rglob("together.*"))

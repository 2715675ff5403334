"""Codistillation in one process: what its peers learn from, when, and what a resume repeats."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cascade_kd.config import load_experiment, resolved_toml
from cascade_kd.data import Dataset
from cascade_kd.errors import ConfigError
from cascade_kd.experiment import codistill, training
from cascade_kd.experiment.run import run
from cascade_kd.interrupt import Interrupted
from cascade_kd.models.modes import evaluating
from cascade_kd.train import ProgressLog, load_checkpoint, samples
from cascade_kd.train import exchange as exchanging
from cascade_kd.train.codistill import MeanOfPeers
from cascade_kd.types import Inputs, Output

Tiny = Callable[..., Path]
Weights = Mapping[str, Tensor]
Train = Callable[..., Any]

STEPS = 12  # two epochs of all rows; six of a half
EVERY = 2
KEYS = f'stage = "prerank"\nexchange_steps = {EVERY}\n'
FEW = ["stage.prerank.train.batch_size=800", "stage.rank.train.epochs=1", "stage.recall.train.epochs=1"]


def different(a: Weights, b: Weights) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def table(more: str = "", burn_in: int = 0) -> str:
    return f"[codistill]\n{KEYS}burn_in_steps = {burn_in}\n{more}\n"


@pytest.fixture
def train(tiny: Tiny, trainings: Callable[..., Train]) -> Train:
    return trainings(lambda keys: tiny(distill="", more=keys), *FEW, unproven=(training, codistill))


SAME = 'data = "same"'


def test_weight_0_is_training_alone(train: Train) -> None:
    alone = train(table(f"{SAME}\nweight = 0.0"))
    assert not different(alone.weights(0), alone.weights(1))
    assert not different(alone.weights(0, file="last"), alone.weights(1, file="last"))
    assert different(alone.weights(0), alone.weights(1, stage="prerank.peer1"))  # another initialisation and order
    taught = train(table(SAME))
    assert different(alone.weights(1), taught.weights(1))
    again = train(table(SAME))
    for name in ("prerank", "prerank.peer1"):
        assert not different(taught.weights(1, stage=name), again.weights(1, stage=name))
    assert taught.weights(1).keys() == taught.weights(0).keys()  # served alone


def test_the_burn_in_is_training_alone_and_its_end_is_the_first_step_that_differs(train: Train) -> None:
    for burn_in, steps, equal in ((5, 5, True), (5, 6, False)):
        stop = f"stage.prerank.train.max_steps={steps}"
        alone, taught = train(table("weight = 0.0"), stop), train(table(burn_in=burn_in), stop)
        for name in ("prerank", "prerank.peer1"):
            assert equal == (not different(alone.weights(1, name, "last"), taught.weights(1, name, "last")))


def test_peers_learn_from_the_mean_probability_of_the_weights_of_the_last_exchange(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchanging, "KEPT", 100)
    asked: list[tuple[int, dict[int, int], Inputs, Tensor]] = []
    forward = MeanOfPeers.forward

    def noting(self: MeanOfPeers, inputs: Inputs, hidden: tuple[str, ...] = ()) -> Output:
        assert not torch.is_grad_enabled()
        assert not self.training
        output = forward(self, inputs, hidden)
        asked.append((self.exchange.peer, dict(self.exchange.used), inputs, output.logits_R))
        return output

    monkeypatch.setattr(MeanOfPeers, "forward", noting)
    burn_in = 3
    outcome = train(table(f"peers = 3\n{SAME}", burn_in))
    model = outcome.model("prerank")
    step = dict.fromkeys(range(3), burn_in)
    for peer, used, inputs, logits_R in asked:
        exchanged = EVERY * (step[peer] // EVERY)
        assert used == {other: exchanged for other in range(3) if other != peer}
        probabilities = []
        for other in used:
            path = outcome.out / "exchange" / "0" / "1" / "prerank" / f"peer-{other}"
            weights = load_checkpoint(path / f"step-{exchanged:09d}.safetensors").model
            model.load_state_dict(dict(weights))
            with evaluating(model):
                probabilities.append(model(inputs).logits_R.sigmoid())
        torch.testing.assert_close(logits_R.sigmoid(), sum(probabilities) / 2)
        step[peer] += 1
    assert set(step.values()) == {STEPS}


def test_shares_of_the_rows_are_disjoint(train: Train, monkeypatch: pytest.MonkeyPatch, dataset: Dataset) -> None:
    seen: dict[int, set[int]] = {}
    drawn = samples.Sampler.batch

    def noting(self: samples.Sampler, step: int) -> samples.Batch:
        batch = drawn(self, step)
        seen.setdefault(id(self), set()).update(batch.event_R[batch.event_R >= 0].tolist())
        return batch

    monkeypatch.setattr(samples.Sampler, "batch", noting)
    train(table())
    a, b = seen.values()
    assert not a & b
    assert a | b == set(dataset.rows("train").tolist())


@pytest.mark.parametrize("stopped", ["prerank", "prerank.peer1"])
@pytest.mark.parametrize("at", [3, 6])
def test_a_resume_ends_in_the_weights_of_the_whole_run(
    train: Train, monkeypatch: pytest.MonkeyPatch, stopped: str, at: int
) -> None:
    keys = table(SAME, burn_in=2)
    whole = train(keys)
    drawn = samples.Sampler.batch
    order: list[int] = []  # of the samplers: the first is peer 0's

    def interrupting(self: samples.Sampler, step: int) -> samples.Batch:
        if id(self) not in order:
            order.append(id(self))
        if step == at and order.index(id(self)) == int(stopped != "prerank"):
            os.kill(os.getpid(), signal.SIGINT)
        return drawn(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(samples.Sampler, "batch", interrupting)
        with pytest.raises(Interrupted, match=f"stage '{stopped}' at step {at + 1}"):
            train(keys)
    resumed = train(keys, fresh=False)
    for name in ("prerank", "prerank.peer1"):
        for file in ("best", "last"):
            assert not different(whole.weights(1, name, file), resumed.weights(1, name, file))


def test_peers_are_taken_from_the_store_all_or_none(train: Train) -> None:
    first = train(table())
    shutil.rmtree(first.out)
    again = train(table(), fresh=False)
    assert not (again.out / "exchange").exists() or not list((again.out / "exchange").rglob("step-0*2.safetensors"))
    for name in ("prerank", "prerank.peer1"):
        assert not different(first.model(name).state_dict(), again.model(name).state_dict())


@pytest.mark.slow
def test_the_report_tells_of_the_peers_and_of_churn(tiny: Tiny, tmp_path: Path) -> None:
    file = tiny(distill="", more=table(), seeds=[0, 1], epochs=1)
    run(load_experiment(file, overrides=FEW), tmp_path / "out", device="cpu", progress=ProgressLog(quiet=True))
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text("utf-8"))
    tree = metrics["seeds"]["0"]
    assert tree["codistill"]["prerank"]["peers"] == 2
    assert 0 < tree["codistill"]["prerank"]["churn"]["mean"] < 1
    assert tree["teachers"]["prerank.peer1"]["auc"]["n"] == tree["stages"]["prerank"]["auc"]["n"]
    # Between the seeds; of the stage that has one and the same training in both rounds it is the same.
    for place in (tree, tree["baseline"]):
        assert set(place["stages"]) == {name for name, stage in place["stages"].items() if stage["churn"]["mean"] > 0}
    assert tree["stages"]["rank"]["churn"] == tree["baseline"]["stages"]["rank"]["churn"]
    assert tree["stages"]["prerank"]["churn"] != tree["baseline"]["stages"]["prerank"]["churn"]
    both = [metrics["seeds"][seed]["stages"]["rank"]["churn"]["mean"] for seed in ("0", "1")]
    assert both[0] == pytest.approx(both[1])  # of two seeds it is symmetric
    assert metrics["summary"]["stages"]["rank"]["churn"]["mean"] == pytest.approx(both[0])
    assert "churn" in (tmp_path / "out" / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ('stage = "prerank"\npeers = 1', "codistill.peers: want a number >= 2, got 1"),
        ('stage = "preank"', "codistill.stage: no stage is named 'preank'; did you mean 'prerank'?"),
        ('stage = "recall"', "codistill.stage: peers agree on probabilities, and the [train] loss of 'recall' is"),
        ('stage = "prerank"\nburn_in = 5', "codistill.burn_in: unknown key; did you mean 'burn_in_steps'?"),
        (
            'stage = "prerank"\ndata = "disjiont"',
            "codistill.data: want one of 'disjoint', 'same', got ",
        ),
        ('stage = "prerank"\npeer = 2\nshared = "x"', "codistill.peer: peers are numbered 0 to 1, got 2"),
        ('stage = "prerank"\npeer = 1', "codistill.shared: a peer that trains alone needs a folder"),
        ('stage = "prerank"\nshared = "x"', "codistill.shared: only a `peer` that trains alone reads a shared folder"),
    ],
)
def test_mistakes_are_named_with_file_and_line(tiny: Tiny, keys: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment(tiny(distill="", more=f"[codistill]\n{keys}\n"))
    assert problem in str(caught.value)
    (first,) = caught.value.problems
    assert first.line > 0


def test_the_resolved_experiment_is_the_same(tiny: Tiny, tmp_path: Path) -> None:
    config = load_experiment(tiny(distill="", more=table('peer = 1\nshared = "x"')))
    again = tmp_path / "again.toml"
    again.write_text(resolved_toml(config), "utf-8")
    assert load_experiment(again) == config
    assert config.codistill is not None
    assert load_experiment(tiny(distill="", more=table()), without_distill=True).codistill is None


def test_a_codistilled_stage_has_no_other_teacher(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"'prerank' is the student of a \[\[distill\]\] table, too"):
        load_experiment(tiny(more=table()))

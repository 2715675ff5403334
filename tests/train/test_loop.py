"""The loop under interrupts: wherever a signal comes, nothing of the epoch is lost and a resume changes nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cascade_kd.data import Dataset
from cascade_kd.interrupt import Interrupted
from cascade_kd.models.dcnv2 import DCNv2, DCNv2Config
from cascade_kd.streams import scoped_seed
from cascade_kd.train import ProgressLog, SampleSource, Task, TrainConfig, fit, loop, make_sampler
from cascade_kd.train.samples import Batch, Sampler

ABOUT = {"seed": 0, "round": 0}


def make_task(dataset: Dataset, **train: object) -> Task:
    features = dataset.online("rank")
    with scoped_seed(2):
        model = DCNv2(DCNv2Config(embedding_size=4, hidden=(8,), cross_layers=1, dropout=0.5), features)
    given = {"batch_size": 512, "epochs": 3, "patience": 0} | train
    config = TrainConfig(label="click", samples=(SampleSource(source="impressions"),), **given)  # type: ignore[arg-type]
    return Task("stage", model, features, dataset, config, dataset.rows("train"), seed=7)


@pytest.mark.parametrize("place", ["first step", "last step", "monitor"])
def test_an_interrupt_costs_no_epoch(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    log = ProgressLog(quiet=True)
    whole, stopped, resumed = (make_task(dataset) for _ in range(3))
    curve = fit(whole, tmp_path / "whole", log, about=ABOUT)
    steps = make_sampler(whole).steps_per_epoch
    at = {"first step": steps, "last step": 2 * steps - 1, "monitor": -1}[place]  # in the second epoch
    drawn, watched = Sampler.batch, loop.make_monitor

    def interrupting(self: Sampler, step: int) -> Batch:
        if step == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return drawn(self, step)

    def interrupting_monitor(*given: object, **options: object) -> tuple[Callable[[], float], bool]:
        monitor, more_is_better = watched(*given, **options)  # type: ignore[arg-type]
        calls = iter(range(3))

        def value() -> float:
            if next(calls) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return monitor()

        return value, more_is_better

    with monkeypatch.context() as patch:
        if place == "monitor":
            patch.setattr(loop, "make_monitor", interrupting_monitor)
        patch.setattr(Sampler, "batch", interrupting)
        after = steps + 1 if place == "first step" else 2 * steps
        with pytest.raises(Interrupted, match=f"at step {after}; `--resume`") as caught:
            fit(stopped, tmp_path / "stopped", log, about=ABOUT)
    assert caught.value.exit_code == 143
    assert fit(resumed, tmp_path / "stopped", log, about=ABOUT) == curve
    for name, weight in whole.model.state_dict().items():  # type: ignore[attr-defined]
        assert torch.equal(weight, resumed.model.state_dict()[name]), name  # type: ignore[attr-defined]


@pytest.mark.parametrize("milestones", [(), (1, 4)])
def test_rates_fall_after_milestones_or_on_a_plateau_and_a_resume_knows_them(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, milestones: tuple[int, ...]
) -> None:
    values = iter([0.5, 0.4, 0.6, 0.6, 0.1, 0.7])
    monkeypatch.setattr(loop, "make_monitor", lambda *given, **options: (lambda: next(values), True))
    rates: list[list[float]] = []
    plain = loop.train_epoch

    def recording(task: Task, model: object, optimizers: list[torch.optim.Optimizer], *rest: object) -> bool:
        rates.append([group["lr"] for optimizer in optimizers for group in optimizer.param_groups])
        if len(rates) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(task, model, optimizers, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "train_epoch", recording)

    def task() -> Task:
        return make_task(
            dataset,
            epochs=6,
            plateau_factor=0.5,
            milestones=milestones,
            learning_rate=0.01,
            embedding_optimizer="rowwise-adagrad",
            embedding_learning_rate=0.08,
        )

    with pytest.raises(Interrupted):
        fit(task(), tmp_path, ProgressLog(quiet=True), about=ABOUT)
    fit(task(), tmp_path, ProgressLog(quiet=True), about=ABOUT)
    wanted = (1, 1, 0.5, 0.5, 0.25, 0.25, 0.125)  # the fifth epoch was begun twice
    if milestones:
        wanted = (1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25)
    assert rates == [[0.01 * f, 0.08 * f] for f in wanted]


@pytest.mark.parametrize("embedding_optimizer", ["same", "rowwise-adagrad"])
def test_mixed_precision_keeps_weights_in_float32(dataset: Dataset, tmp_path: Path, embedding_optimizer: str) -> None:
    curves = {}
    for precision in ("float32", "bfloat16"):
        task = make_task(dataset, precision=precision, embedding_optimizer=embedding_optimizer, learning_rate=0.01)
        curves[precision] = fit(task, tmp_path / precision, ProgressLog(quiet=True), about=ABOUT)
        assert all(p.dtype == torch.float32 for p in task.model.parameters())
    losses = [[point["loss"] for point in curve] for curve in curves.values()]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)  # bfloat16 has 8 bits of mantissa, 0.4 % a product
    assert losses[1][-1] < losses[1][0]

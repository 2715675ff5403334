"""Training along histories: the same vectors and gradients as event by event, and every event once an epoch."""

from __future__ import annotations

import os
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from cascade_kd.data import Dataset
from cascade_kd.interrupt import Interrupted
from cascade_kd.models import Stretches, TwoTower
from cascade_kd.models.two_tower import TwoTowerConfig
from cascade_kd.streams import scoped_seed
from cascade_kd.train import ProgressLog, SampleSource, Task, TrainConfig, fit, make_sampler
from cascade_kd.train.contrast import user_vectors
from cascade_kd.train.samples import Batch, Sampler
from cascade_kd.train.sequences import SequenceSampler
from cascade_kd.train.task import make_batches, make_loss
from cascade_kd.types import Feature

HISTORY = "clicked_items"
ENCODERS: dict[str, dict[str, Any] | None] = {
    "mean": None,
    "last": {"kind": "last", "last": 3},
    "transformer": {"kind": "transformer", "blocks": 2, "heads": 2},
}
UNIFORM = (SampleSource(source="uniform", per_batch=32),)


def make_task(
    dataset: Dataset,
    *,
    length: int = 7,
    encoder: dict[str, Any] | None = None,
    names: tuple[str, ...] = ("user_id", "segment", "hour", "user_click_rate", HISTORY, "item_id", "category"),
    rows_M: Tensor | None = None,
    seed: int = 7,
    **train: Any,
) -> Task:
    """A float64 tower of the tiny world, its history cut to ``length``, its positions taken away."""
    features = tuple(
        replace(f, length=length) if f.kind == "history" else f for f in dataset.features if f.name in names
    )
    with scoped_seed(1):
        model = TwoTower(
            TwoTowerConfig(embedding_size=4, hidden=(6,), output_size=4, history=encoder),  # type: ignore[arg-type]
            features,
        ).double()
        nn.init.normal_(model.fields.table.weight)
        for encoder_module in model.encoders:
            if hasattr(encoder_module, "position_LD"):
                nn.init.zeros_(encoder_module.position_LD)
    given: dict[str, Any] = {"loss": "full-softmax", "batch_size": 16} | train
    config = TrainConfig(label="click", sequences=True, **given)
    rows_M = dataset.rows("train") if rows_M is None else rows_M
    return Task("recall", model, features, dataset, config, rows_M, seed=seed)


def sampled(task: Task) -> tuple[Sampler, SequenceSampler]:
    sampler = make_sampler(task)
    batches = make_batches(task, sampler)
    assert isinstance(sampler, Sampler)
    assert isinstance(batches, SequenceSampler)
    return sampler, batches


def event_by_event(task: Task, batch: Batch) -> Tensor:
    """[P, D] of every event by itself, its history cut where the batch's stretch of it begins."""
    names = [feature.name for feature in task.features]
    columns = task.dataset.user_inputs(names, batch.requests, part="train")
    assert batch.stretches is not None
    length = batch.stretches.item_BL.shape[1]
    kept_P = torch.where(batch.stretches.place_P < 0, 0, batch.stretches.place_P % length + 1)
    codes_PL = columns[HISTORY][:, :length]
    assert bool((kept_P <= (codes_PL > 0).sum(1)).all())
    columns[HISTORY] = codes_PL.masked_fill(torch.arange(length) >= kept_P.unsqueeze(1), 0)
    return task.model.user_vectors(columns)  # type: ignore[attr-defined, no-any-return]


# -- the law


@pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)
def test_one_pass_gives_the_vectors_of_many(dataset: Dataset, encoder: dict[str, Any] | None) -> None:
    """At every event, to float64: with a history cut where its stretch begins; other columns of the event's moment."""
    task = make_task(dataset, encoder=encoder)
    _, batches = sampled(task)
    names = [feature.name for feature in task.features]
    empty = several = 0
    for step in range(batches.steps_per_epoch):
        batch = batches.batch(step)
        along_PD = user_vectors(task.model, dataset, names, batch)  # type: ignore[arg-type]
        assert_close(along_PD, event_by_event(task, batch), rtol=1e-10, atol=1e-10)
        assert batch.stretches is not None
        empty += int((batch.stretches.place_P < 0).sum())
        several += len(batch.stretches.place_P) - len(batch.stretches.place_P.unique())
    assert empty > 0  # events without a history, and events of one second, were among them
    assert several > empty


def test_the_end_of_a_stretch_has_the_position_of_serving(dataset: Dataset) -> None:
    task = make_task(dataset, encoder=ENCODERS["transformer"])
    nn.init.normal_(task.model.encoders[0].position_LD)  # type: ignore[attr-defined]
    _, batches = sampled(task)
    batch = batches.batch(0)
    assert batch.stretches is not None
    codes_BL = batch.stretches.item_BL
    last_B = (codes_BL > 0).sum(1) - 1
    place_B = torch.arange(len(codes_BL)) * codes_BL.shape[1] + last_B
    ends_P = torch.isin(batch.stretches.place_P, place_B)
    assert int(ends_P.sum()) >= len(codes_BL[last_B >= 0])
    names = [feature.name for feature in task.features]
    along_PD = user_vectors(task.model, dataset, names, batch)  # type: ignore[arg-type]
    alone_PD = event_by_event(task, batch)
    assert_close(along_PD[ends_P], alone_PD[ends_P], rtol=1e-10, atol=1e-10)
    assert not torch.allclose(along_PD[~ends_P], alone_PD[~ends_P])


@pytest.mark.parametrize("loss", ["full-softmax", "sampled-softmax", "bpr", "ccl"])
def test_an_uncut_history_gives_the_same_loss_and_gradient(dataset: Dataset, loss: str) -> None:
    samples = {} if loss == "full-softmax" else {"samples": UNIFORM}
    task = make_task(dataset, encoder=ENCODERS["transformer"], length=50, loss=loss, **samples)
    sampler, batches = sampled(task)
    value_of = make_loss(task, sampler)
    batch = batches.batch(1)
    values, gradients = [], []
    for each in (batch, replace(batch, stretches=None)):
        task.model.zero_grad()  # type: ignore[attr-defined]
        value = value_of(each, 1, 9)["label"]
        value.backward()
        values.append(value.detach())
        gradients.append({name: p.grad for name, p in task.model.named_parameters() if p.grad is not None})  # type: ignore[attr-defined]
    assert_close(values[0], values[1], rtol=1e-6, atol=0)  # scores are float32 in all but the full softmax
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        if "position" not in name:
            assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-7)


def test_mixed_precision_stays_near(dataset: Dataset) -> None:
    task = make_task(dataset, encoder=ENCODERS["transformer"])
    task.model.float()  # type: ignore[attr-defined]
    sampler, batches = sampled(task)
    value_of, batch = make_loss(task, sampler), batches.batch(0)
    exact = value_of(batch, 0, 9)["label"]
    with torch.autocast("cpu", torch.bfloat16):
        rough = value_of(batch, 0, 9)["label"]
    assert rough.dtype == torch.float32
    assert rough != exact
    assert_close(rough, exact, rtol=0.02, atol=0)  # bfloat16 has 8 bits of mantissa
    rough.backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in task.model.parameters())


# -- the batches


@pytest.mark.parametrize(("length", "batch_size"), [(7, 16), (2, 5), (50, 1), (3, 1000)])
def test_every_event_is_in_one_stretch_an_epoch(dataset: Dataset, length: int, batch_size: int) -> None:
    sampler, batches = sampled(make_task(dataset, length=length, batch_size=batch_size))
    steps = batches.steps_per_epoch
    cuts = []
    for epoch in range(3):
        rows, places = [], Counter[int]()
        for step in range(epoch * steps, (epoch + 1) * steps):
            batch = batches.batch(step)
            assert batch.stretches is not None
            item_BL = batch.stretches.item_BL
            assert item_BL.shape[1] == length
            assert 1 <= len(item_BL) <= batch_size
            assert bool((item_BL[:, 1:] <= 0)[item_BL[:, :-1] == 0].all())  # padding lies behind
            assert bool((item_BL.flatten()[batch.stretches.place_P] > 0)[batch.stretches.place_P >= 0].all())
            rows += batch.sample_R.tolist()
            places.update((item_BL > 0).sum(1).tolist())
        assert sorted(rows) == list(range(sampler.num_rows))
        cuts.append(places)
    if length < 50:
        assert cuts[0] != cuts[1]
    assert abs(batches.batch_size * steps - sampler.num_rows) < steps


def test_a_batch_is_a_function_of_the_step(dataset: Dataset) -> None:
    (_, forward), (_, backward), (_, other) = (sampled(make_task(dataset, seed=s)) for s in (7, 7, 8))
    steps = list(range(0, 3 * forward.steps_per_epoch, 5))
    of_step = {step: forward.batch(step) for step in steps}
    for step in reversed(steps):
        ours, again = of_step[step], backward.batch(step)
        assert torch.equal(ours.sample_R, again.sample_R)
        assert ours.stretches is not None
        assert again.stretches is not None
        assert torch.equal(ours.stretches.item_BL, again.stretches.item_BL)
        assert torch.equal(ours.stretches.place_P, again.stretches.place_P)
    assert not torch.equal(of_step[0].sample_R, other.batch(0).sample_R)


def test_rare_rows_are_never_lost_and_no_batch_is_empty(dataset: Dataset) -> None:
    """Few rows along long histories, as of a rare label: stretches without a row are left out, steps are not."""
    rows_M = dataset.rows("train")[dataset.events.labels["click"][dataset.rows("train")] > 0][::9]
    sampler, batches = sampled(make_task(dataset, rows_M=rows_M, length=1, batch_size=1))
    for epoch in range(2):
        rows = Counter[int]()
        for step in range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch):
            batch = batches.batch(step)
            assert len(batch.sample_R) > 0
            rows.update(batch.sample_R.tolist())
        assert sorted(rows) == list(range(sampler.num_rows))


def test_a_stretch_reads_back_as_far_as_it_has_room(dataset: Dataset) -> None:
    """A history is never shorter in a batch than what its stretch had room for."""
    _, batches = sampled(make_task(dataset, length=7))
    names = [HISTORY]
    batch = batches.batch(2)
    assert batch.stretches is not None
    codes_PL = dataset.user_inputs(names, batch.requests, part="train")[HISTORY]
    row_P = batch.stretches.place_P.clamp(min=0) // 7
    for stretch, item_L in enumerate(batch.stretches.item_BL):
        longest = int((codes_PL[row_P == stretch] > 0).sum(1).max()) if bool((row_P == stretch).any()) else 0
        assert int((item_L > 0).sum()) == min(7, longest)


def test_a_stretch_by_hand() -> None:
    """Two users, one of them with two events of one second; the vectors are means, so they can be written down."""
    features = (
        Feature("item_id", "categorical", "item", "recall", size=9, vocabulary="item_id"),
        Feature("seen", "history", "user", "recall", size=9, length=3, vocabulary="item_id"),
    )
    model = TwoTower(TwoTowerConfig(embedding_size=2, hidden=(), output_size=2), features).double()
    item_BL = torch.tensor([[3, 1, 2], [4, 0, 0]])
    stretches = Stretches("seen", item_BL, torch.tensor([-1, 0, 2, 2, 3]))
    with torch.no_grad():
        row = model.fields.table.weight
        means = [
            torch.zeros(2).double(),
            row[3],
            (row[3] + row[1] + row[2]) / 3,
            (row[3] + row[1] + row[2]) / 3,
            row[4],
        ]
        assert_close(model.vectors_along({}, stretches), model.user.out(torch.stack(means)))


# -- through the loop


def test_a_resume_ends_in_the_same_weights(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def task() -> Task:
        made = make_task(
            dataset,
            names=("user_id", HISTORY, "item_id", "category"),
            encoder={"kind": "transformer", "blocks": 1, "dropout": 0.5},
            length=50,
            batch_size=32,
            epochs=3,
            patience=0,
            monitor="recall@20",
            learning_rate=1e-2,
        )
        made.model.float()  # type: ignore[attr-defined]
        return made

    log, about = ProgressLog(quiet=True), {"seed": 0, "round": 0}
    whole, stopped, resumed = task(), task(), task()
    curve = fit(whole, tmp_path / "whole", log, about=about)
    assert [point["epoch"] for point in curve] == [1, 2, 3]
    assert curve[2]["loss"] < curve[0]["loss"]
    at, drawn = sampled(whole)[1].steps_per_epoch + 1, SequenceSampler.batch

    def interrupting(self: SequenceSampler, step: int) -> Batch:
        if step == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return drawn(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(SequenceSampler, "batch", interrupting)
        with pytest.raises(Interrupted, match=f"at step {at + 1}"):
            fit(stopped, tmp_path / "stopped", log, about=about)
    assert fit(resumed, tmp_path / "stopped", log, about=about) == curve
    for name, weight in whole.model.state_dict().items():  # type: ignore[attr-defined]
        assert torch.equal(weight, resumed.model.state_dict()[name]), name  # type: ignore[attr-defined]

"""Training from the stream: the same rows, negatives and columns as from memory, in another order."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cascade_kd.config import load_dataset_definition
from cascade_kd.data import Dataset, load, prepare
from cascade_kd.interrupt import Interrupted
from cascade_kd.models.dcnv2 import DCNv2, DCNv2Config
from cascade_kd.models.two_tower import TwoTower, TwoTowerConfig
from cascade_kd.stages import ScoringStage
from cascade_kd.streams import scoped_seed
from cascade_kd.train import ProgressLog, SampleSource, Task, TrainConfig, fit, make_sampler, teacher_logits
from cascade_kd.train.columns import StatisticColumns, StreamColumns
from cascade_kd.train.samples import Batch, Sampler
from cascade_kd.train.stream import StreamSampler

IMPRESSIONS = SampleSource(source="impressions")
UNIFORM = SampleSource(source="uniform", per_positive=3)
HARD = SampleSource(source="hard", per_positive=1, pool=8)
IN_BATCH = SampleSource(source="in-batch")
Layouts = dict[str, Dataset]


@pytest.fixture(scope="module")
def layouts(layout_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Layouts:
    """The small world, prepared in memory and as a stream."""
    found: Layouts = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CASCADE_KD_CACHE", str(tmp_path_factory.mktemp("layouts")))
        for layout, path in layout_files.items():
            definition, file = load_dataset_definition(path)
            found[layout] = load(prepare(definition, base=file.parent))
    assert found["memory"].stream is None
    assert found["stream"].stream is not None
    return found


def make_task(dataset: Dataset, *samples: SampleSource, tower: bool = False, **train: object) -> Task:
    features = tuple(f for f in dataset.online("never") if not tower or f.online_at("recall"))
    with scoped_seed(2):
        model = (
            TwoTower(TwoTowerConfig(embedding_size=4, hidden=(8,), output_size=4), features)
            if tower
            else DCNv2(DCNv2Config(embedding_size=4, hidden=(8,), cross_layers=1, dropout=0.5), features)
        )
    config = TrainConfig(label="click", samples=samples, **{"batch_size": 256} | train)  # type: ignore[arg-type]
    rows = None if dataset.stream is not None else dataset.rows("train")
    return Task("stage", model, features, dataset, config, rows, seed=7)


def by_event(batch: Batch, columns: dict[str, Tensor]) -> dict[int, list[tuple[float, ...]]]:
    """Event -> its rows (slot, item, label, user, time, weight, log q, columns) in the order of the slots."""
    event_B = batch.event_R[: len(batch.requests)]
    rows: dict[int, list[tuple[float, ...]]] = {int(event): [] for event in event_B}
    assert len(rows) == len(event_B)
    shown = zip(
        *(x.tolist() for x in (batch.slot_R, batch.item_R, batch.label_R)),
        batch.requests.user_B[batch.row_R].tolist(),
        batch.requests.time_B[batch.row_R].tolist(),
        *(batch.requests.context[name][batch.row_R].tolist() for name in sorted(batch.requests.context)),
        *(x.tolist() for x in (batch.weight_R, batch.log_q_R)),
        *(columns[name].tolist() for name in sorted(columns)),
        strict=True,
    )
    for event, row in zip(event_B[batch.row_R].tolist(), shown, strict=True):
        rows[event].append(row)
    return rows


def epoch(task: Task, of: Callable[[Batch], dict[str, Tensor]], number: int = 0) -> dict[int, list[tuple[float, ...]]]:
    sampler = make_sampler(task)
    steps = sampler.steps_per_epoch
    batches = [sampler.batch(step) for step in range(number * steps, (number + 1) * steps)]
    events = [by_event(batch, of(batch)) for batch in batches]
    together = {event: rows for found in events for event, rows in found.items()}
    assert len(together) == sum(len(found) for found in events) == sampler.num_rows  # every row once
    return together


@pytest.mark.parametrize(
    "samples", [(IMPRESSIONS,), (IMPRESSIONS, UNIFORM), (UNIFORM,)], ids=["shown", "both", "drawn"]
)
def test_an_epoch_holds_the_rows_that_memory_holds(layouts: Layouts, samples: tuple[SampleSource, ...]) -> None:
    memory, stream = (make_task(layouts[name], *samples) for name in ("memory", "stream"))
    known = StatisticColumns(make_sampler(memory), memory.features)  # type: ignore[arg-type]
    pair = ("dwell", "user_category_click_rate", "item_click_rate")
    of_stream = StreamColumns(stream.dataset, stream.features)

    def of_memory(batch: Batch) -> dict[str, Tensor]:
        dwell_N = layouts["memory"].events.columns["dwell"]
        dwell_R = dwell_N[batch.event_R.clamp(min=0)].masked_fill(batch.event_R < 0, 0.0)
        return known.of(batch) | {"dwell": dwell_R}

    want = epoch(memory, of_memory)
    assert set(of_stream.of(make_sampler(stream).batch(0))) == set(pair)
    assert epoch(stream, of_stream.of) == want
    assert epoch(stream, of_stream.of, 1) == want


def test_user_statistics_come_along(layouts: Layouts) -> None:
    task = make_task(layouts["stream"], IMPRESSIONS, UNIFORM)
    batch = make_sampler(task).batch(1)
    found = StreamColumns(task.dataset, task.features).of_requests(batch)
    assert set(found) == {"user_click_rate"}
    looked_up = task.dataset.user_inputs(["user_click_rate"], batch.requests, part="train")
    assert torch.equal(found["user_click_rate"], looked_up["user_click_rate"])


def test_epochs_differ_and_steps_are_repeatable(layouts: Layouts) -> None:
    task = make_task(layouts["stream"], IMPRESSIONS)
    sampler = make_sampler(task)
    steps = sampler.steps_per_epoch
    first = sampler.batch(0).event_R
    assert not torch.equal(first.sort().values, sampler.batch(steps).event_R.sort().values)
    assert torch.equal(make_sampler(task).batch(0).event_R, first)
    assert torch.equal(sampler.batch(0).event_R, first)


def test_item_counts_are_those_of_the_rows(layouts: Layouts) -> None:
    for samples in ((IMPRESSIONS,), (UNIFORM,)):
        memory, stream = (make_sampler(make_task(layouts[name], *samples)) for name in ("memory", "stream"))
        assert torch.equal(memory.item_counts(), stream.item_counts())


def test_a_teachers_scores_stand_at_the_rows_they_belong_to(layouts: Layouts, tmp_path: Path) -> None:
    task = make_task(layouts["stream"], IMPRESSIONS, UNIFORM)
    stage = ScoringStage("teacher", "never", 5, task.features, task.model, task.dataset)
    sampler = make_sampler(task)
    scores_MS = teacher_logits(stage, sampler, tmp_path / "scores.npy")
    batch = sampler.batch(2)
    logits_R = stage.logits(batch.requests, batch.item_R, batch.row_R, batch.event_R)
    torch.testing.assert_close(scores_MS[batch.sample_R, batch.slot_R], logits_R)


@pytest.mark.parametrize("kind", ["bce", "hard", "softmax"])
def test_a_resume_in_the_middle_of_an_epoch_ends_in_the_same_weights(
    layouts: Layouts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    samples = {"bce": (IMPRESSIONS, UNIFORM), "hard": (IMPRESSIONS, HARD), "softmax": (IN_BATCH,)}[kind]
    own = {"loss": "sampled-softmax", "monitor": "recall@20", "batch_size": 64} if kind == "softmax" else {}

    def task() -> Task:
        return make_task(
            layouts["stream"], *samples, tower=kind == "softmax", epochs=2, patience=0, learning_rate=0.01, **own
        )

    log, about = ProgressLog(quiet=True), {"seed": 0, "round": 0}
    whole, stopped, resumed = task(), task(), task()
    curve = fit(whole, tmp_path / "whole", log, about=about)
    assert curve[-1]["loss"] < curve[0]["loss"]
    steps = make_sampler(whole).steps_per_epoch
    drawn = StreamSampler.batch

    def interrupting(self: StreamSampler, step: int) -> Batch:
        if step == steps + 1:
            os.kill(os.getpid(), signal.SIGINT)
        return drawn(self, step)

    monkeypatch.setattr(StreamSampler, "batch", interrupting)
    with pytest.raises(Interrupted, match=f"at step {steps + 2}"):
        fit(stopped, tmp_path / "stopped", log, about=about)
    monkeypatch.setattr(StreamSampler, "batch", drawn)
    fit(resumed, tmp_path / "stopped", log, about=about)
    assert isinstance(whole.model, nn.Module)
    assert isinstance(resumed.model, nn.Module)
    for (name, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_memory_takes_the_sampler_of_memory(layouts: Layouts) -> None:
    assert isinstance(make_sampler(make_task(layouts["memory"], IMPRESSIONS)), Sampler)

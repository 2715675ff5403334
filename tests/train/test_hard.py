"""Hard negatives: the best of a pool by the model as it stands, as a function of weights and step."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare
from torch import nn

from cascade_kd.data import Dataset
from cascade_kd.interrupt import Interrupted
from cascade_kd.models.dcnv2 import DCNv2, DCNv2Config
from cascade_kd.models.two_tower import TwoTower, TwoTowerConfig
from cascade_kd.stages import ScoringStage
from cascade_kd.streams import scoped_seed
from cascade_kd.train import ProgressLog, SampleSource, Task, TrainConfig, fit, hard, make_sampler
from cascade_kd.train.hard import HardNegatives
from cascade_kd.train.loop import sum_of
from cascade_kd.train.samples import Batch, Sampler
from cascade_kd.train.task import make_hard_negatives, make_loss

IMPRESSIONS = SampleSource(source="impressions", weight=0.5)
UNIFORM = SampleSource(source="uniform", per_positive=2)
HARD = SampleSource(source="hard", per_positive=3, pool=12, weight=0.25)


def make_task(dataset: Dataset, *samples: SampleSource, tower: bool = False, **train: object) -> Task:
    level = "recall" if tower else "rank"
    features = dataset.online(level)  # type: ignore[arg-type]
    with scoped_seed(2):
        model = (
            TwoTower(TwoTowerConfig(embedding_size=4, hidden=(8,), output_size=4, dropout=0.5), features)
            if tower
            else DCNv2(DCNv2Config(embedding_size=4, hidden=(8,), cross_layers=1, dropout=0.5), features)
        )
        nn.init.normal_(model.fields.table.weight)
    config = TrainConfig(label="click", samples=samples, **{"batch_size": 300, **train})  # type: ignore[arg-type]
    return Task("stage", model, features, dataset, config, dataset.rows("train"), seed=7)


def completed(task: Task, step: int) -> tuple[Sampler, HardNegatives, Batch, Batch]:
    sampler = make_sampler(task)
    added = make_hard_negatives(task, sampler)
    assert added is not None
    batch = sampler.batch(step)
    return sampler, added, batch, added.added_to(batch, step)


def logits(task: Task, batch: Batch, row: int, items: list[int]) -> list[float]:
    stage = ScoringStage("stage", "rank", 1, task.features, task.model, task.dataset)
    zeros = torch.zeros(len(items), dtype=torch.int64)
    return stage.logits(batch.requests[row : row + 1], torch.tensor(items), zeros).tolist()


def test_they_are_the_best_scored_of_the_pool(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hard, "ROWS_PER_CALL", 500)  # several calls
    task = make_task(dataset, IMPRESSIONS, UNIFORM, HARD)
    sampler, added, batch, full = completed(task, 3)
    first = len(batch.item_R)
    assert torch.equal(full.item_R[:first], batch.item_R)
    assert torch.equal(full.slot_R[:first], batch.slot_R)
    positive_P = (batch.label_R[: len(batch.requests)] > 0).nonzero().squeeze(1)
    pool_PC = added.pool(batch.requests.user_B[positive_P], batch.event_R[positive_P], 3)
    for row, pool in list(zip(positive_P.tolist(), pool_PC.tolist(), strict=True))[::5]:
        candidates = [item for item in pool if item]
        assert len(set(candidates)) == len(candidates)
        score = dict(zip(candidates, logits(task, batch, row, candidates), strict=True))
        mine = (full.row_R == row) & (full.slot_R >= sampler.num_slots)
        got = full.item_R[mine].tolist()
        assert len(got) == min(3, len(candidates))
        assert [score[item] for item in got] == pytest.approx(sorted(score.values())[::-1][: len(got)], abs=1e-5)
        assert full.slot_R[mine].tolist() == [3, 4, 5][: len(got)]
    mine = full.slot_R >= sampler.num_slots
    assert torch.equal(full.event_R[mine], torch.full_like(full.event_R[mine], -1))
    assert set(full.label_R[mine].tolist()) == {0.0}
    assert set(full.weight_R[mine].tolist()) == {0.25}
    assert torch.equal(full.sample_R[mine], batch.sample_R[full.row_R[mine]])
    assert not bool(dataset.is_seen(batch.requests.user_B[full.row_R[mine]], full.item_R[mine], part="train").any())
    assert full.log_q_R[mine].tolist() == pytest.approx([math.log(12 / (3 * 80))] * int(mine.sum()))
    assert full.log_q_R[:first].tolist() == batch.log_q_R.tolist()


def test_they_score_higher_than_uniform_ones(dataset: Dataset) -> None:
    task = make_task(dataset, IMPRESSIONS, UNIFORM, HARD.model_copy(update={"per_positive": 1, "pool": 60}))
    *_, full = completed(task, 0)
    stage = ScoringStage("stage", "rank", 1, task.features, task.model, dataset)
    score_R = stage.logits(full.requests, full.item_R, full.row_R)
    uniform = score_R[(full.slot_R > 0) & (full.slot_R <= 2)]
    hardest = score_R[full.slot_R > 2]
    error = math.hypot(float(uniform.std()) / len(uniform) ** 0.5, float(hardest.std()) / len(hardest) ** 0.5)
    assert hardest.mean() - uniform.mean() > 5 * error


def test_the_pool_is_uniform_and_drawn_anew_every_step(dataset: Dataset) -> None:
    task = make_task(dataset, IMPRESSIONS, HARD)
    sampler = make_sampler(task)
    added = make_hard_negatives(task, sampler)
    assert added is not None
    events = dataset.events
    nobody = torch.zeros(len(sampler.rows_M), dtype=torch.int64)  # has seen nothing
    pools = [added.pool(nobody, sampler.rows_M, step) for step in range(3)]
    for pool in pools:
        # A place is empty where its item is drawn a second time, which happens to all items alike.
        count = torch.bincount(pool[pool > 0], minlength=81)[1:]
        assert chisquare(count.numpy()).pvalue > 1e-3
    assert not torch.equal(pools[0], pools[1])
    rows = torch.tensor([5, 900])
    event_P = sampler.rows_M[rows]
    alone = added.pool(events.user_N[event_P], event_P, 1)
    among = added.pool(events.user_N[sampler.rows_M], sampler.rows_M, 1)
    assert torch.equal(alone, among[rows])
    other = replace(added, stream_seed=added.stream_seed + 1)
    assert not torch.equal(other.pool(nobody, sampler.rows_M, 0), pools[0])


def test_drawing_touches_neither_mode_nor_gradient_nor_random_state(dataset: Dataset) -> None:
    task = make_task(dataset, IMPRESSIONS, UNIFORM, HARD)
    assert isinstance(task.model, nn.Module)
    task.model.train()
    state = torch.random.get_rng_state()
    *_, full = completed(task, 0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(module.training for module in task.model.modules())
    assert all(parameter.grad is None for parameter in task.model.parameters())
    assert torch.equal(completed(task, 0)[3].item_R, full.item_R)  # no dropout in the scores
    # The sampler's own negatives are those of a stage without hard ones.
    plain = make_sampler(make_task(dataset, IMPRESSIONS, UNIFORM)).batch(0)
    assert torch.equal(full.item_R[: len(plain.item_R)], plain.item_R)


def test_a_user_who_has_seen_almost_all_gets_what_is_left(dataset: Dataset) -> None:
    task = make_task(dataset, IMPRESSIONS, HARD.model_copy(update={"pool": 400}))
    sampler, added, batch, full = completed(task, 0)
    items = dataset.item_codes().expand(len(batch.requests), -1)
    unseen_B = (~dataset.is_seen(batch.requests.user_B, items, part="train")).sum(1)
    positive_B = batch.label_R[: len(batch.requests)] > 0
    found_B = torch.bincount(full.row_R[full.slot_R >= sampler.num_slots], minlength=len(batch.requests))
    assert torch.equal(found_B[positive_B], unseen_B[positive_B].clamp(max=3))
    assert not bool(found_B[~positive_B].any())
    assert added.log_q == 0.0  # a pool beyond the catalogue


def test_a_batch_without_positives_stays_as_it_is(dataset: Dataset) -> None:
    task = make_task(dataset, IMPRESSIONS, HARD)
    sampler = make_sampler(task)
    added = make_hard_negatives(task, sampler)
    assert added is not None
    batch = sampler.rows((sampler.label_N[sampler.rows_M] == 0).nonzero().squeeze(1)[:20])
    assert added.added_to(batch, 0) is batch


@pytest.mark.parametrize("tower", [False, True])
def test_the_loss_learns_from_them(dataset: Dataset, tower: bool) -> None:
    task = make_task(dataset, IMPRESSIONS, HARD, tower=tower)
    sampler = make_sampler(task)
    assert isinstance(task.model, nn.Module)
    task.model.eval()
    batch = sampler.batch(0)
    loss = make_loss(task, sampler)(batch, 0, 10)["label"]
    sum_of([loss]).backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in task.model.parameters())
    *_, full = completed(task, 0)
    stage = ScoringStage("stage", "rank", 1, task.features, task.model, dataset)
    logits_R = stage.logits(full.requests, full.item_R, full.row_R, full.event_R).double()
    each_R = torch.nn.functional.softplus(logits_R) - full.label_R * logits_R
    want = (each_R * full.weight_R).sum() / full.weight_R.sum()
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    without = make_loss(replace(task, train=task.train.model_copy(update={"samples": (IMPRESSIONS,)})), sampler)
    assert loss.item() != without(batch, 0, 10)["label"].item()


@pytest.mark.parametrize("softmax", [False, True])
def test_a_resume_in_the_middle_of_an_epoch_ends_in_the_same_weights(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, softmax: bool
) -> None:
    own = {"loss": "sampled-softmax", "monitor": "recall@20"} if softmax else {"monitor": "logloss"}
    first = SampleSource(source="in-batch") if softmax else IMPRESSIONS
    shown = HARD.model_copy(update={"weight": 1.0}) if softmax else HARD

    def task() -> Task:
        return make_task(dataset, first, shown, tower=softmax, epochs=2, patience=0, learning_rate=0.01, **own)

    log = ProgressLog(quiet=True)
    about = {"seed": 0, "round": 0}
    whole, stopped = task(), task()
    fit(whole, tmp_path / "whole", log, about=about)
    steps = make_sampler(whole).steps_per_epoch
    assert steps > 2
    drawn = Sampler.batch

    def interrupting(self: Sampler, step: int) -> Batch:
        if step == steps + 1:
            os.kill(os.getpid(), signal.SIGINT)
        return drawn(self, step)

    monkeypatch.setattr(Sampler, "batch", interrupting)
    with pytest.raises(Interrupted, match=f"at step {steps + 2}"):
        fit(stopped, tmp_path / "stopped", log, about=about)
    monkeypatch.setattr(Sampler, "batch", drawn)
    resumed = task()
    fit(resumed, tmp_path / "stopped", log, about=about)
    assert isinstance(whole.model, nn.Module)
    assert isinstance(resumed.model, nn.Module)
    for (name, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name

"""BPR, CCL and the full softmax of a batch, against loops over pairs, for towers and for rankers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from cascade_kd.data import Dataset
from cascade_kd.models.dcnv2 import DCNv2, DCNv2Config
from cascade_kd.models.two_tower import TwoTower, TwoTowerConfig
from cascade_kd.streams import scoped_seed
from cascade_kd.train import SampleSource, Task, TrainConfig, make_sampler
from cascade_kd.train.samples import Batch, Sampler, shared_negatives
from cascade_kd.train.settings import Loss
from cascade_kd.train.task import make_loss

IN_BATCH = SampleSource(source="in-batch")
OWN = SampleSource(source="popularity", per_positive=2)
SHARED = SampleSource(source="uniform", per_batch=7)


def make_task(dataset: Dataset, loss: Loss, *samples: SampleSource, tower: bool = True) -> Task:
    features = dataset.online("recall" if tower else "rank")
    with scoped_seed(1):
        model: TwoTower | DCNv2 = (
            TwoTower(TwoTowerConfig(embedding_size=4, hidden=(8,), output_size=4, temperature=0.5), features)
            if tower
            else DCNv2(DCNv2Config(embedding_size=4, hidden=(8,), cross_layers=1), features)
        )
        nn.init.normal_(model.fields.table.weight)
    given = {"samples": samples} if samples else {}
    margin = {"ccl_margin": 0.1, "ccl_weight": 3.0} if loss == "ccl" else {}
    train = TrainConfig(label="click", loss=loss, batch_size=12, **given, **margin)  # type: ignore[arg-type]
    return Task("stage", model, features, dataset, train, dataset.rows("train"), seed=7)


def score(task: Task, batch: Batch, row: int, item: int, moment: int) -> float:
    """Of the pair (request ``row``, item as of the moment of request ``moment``): a logit, or the cosine for ccl."""
    dataset, model, names = task.dataset, task.model, task.names
    one, zero = torch.tensor([item]), torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        if not isinstance(model, TwoTower):
            inputs = dataset.inputs(names, batch.requests[row : row + 1], one, zero, part="train")
            return model(inputs).logits_R.item()
        user = model.user_vectors(dataset.user_inputs(names, batch.requests[row : row + 1], part="train"))[0]
        item_inputs = dataset.inputs(names, batch.requests[moment : moment + 1], one, zero, part="train").item
        vector = model.item_vectors(item_inputs)[0]
        if task.train.loss == "ccl":
            return torch.cosine_similarity(user, vector, dim=0).item()
        return (user @ vector).item()


def by_hand(task: Task, batch: Batch, step: int) -> float:
    """Positive by positive, negative by negative."""
    size, items, rows = len(batch.requests), batch.item_R.tolist(), batch.row_R.tolist()
    train = task.train
    shared = shared_negatives(task.dataset, train.samples, task.seed)
    drawn = shared.draw(step)[0].tolist() if shared.num else []
    losses = []
    for b in range(size):
        others = [score(task, batch, b, items[c], b) for c in range(size, len(items)) if rows[c] == b]
        if IN_BATCH in train.samples:
            others += [score(task, batch, b, items[c], c) for c in range(size) if items[c] != items[b]]
        others += [score(task, batch, b, item, n % size) for n, item in enumerate(drawn) if item != items[b]]
        if train.loss == "full-softmax":
            catalogue = range(1, task.dataset.num_items + 1)
            others = [score(task, batch, b, item, (item - 1) % size) for item in catalogue]
            target = others[items[b] - 1]
            losses.append(math.log(sum(map(math.exp, others))) - target)
            continue
        target = score(task, batch, b, items[b], b)
        if train.loss == "bpr":
            losses.append(sum(math.log1p(math.exp(x - target)) for x in others) / max(1, len(others)))
        else:
            losses.append(1 - target + 3.0 * sum(max(0.0, x - 0.1) for x in others) / max(1, len(others)))
    return sum(losses) / size


@pytest.mark.parametrize(
    ("loss", "samples", "tower"),
    [
        ("bpr", (), True),
        ("bpr", (IN_BATCH, OWN, SHARED), True),
        ("bpr", (OWN,), False),
        ("ccl", (), True),
        ("ccl", (SHARED,), True),
        ("ccl", (IN_BATCH, OWN, SHARED), True),
        ("full-softmax", (), True),
    ],
)
def test_it_equals_a_loop_over_pairs(
    dataset: Dataset, loss: Loss, samples: tuple[SampleSource, ...], tower: bool
) -> None:
    task = make_task(dataset, loss, *samples, tower=tower)
    sampler = make_sampler(task)
    assert isinstance(sampler, Sampler)
    assert bool((sampler.label_N[sampler.rows_M] > 0).all())  # positives only
    step_loss = make_loss(task, sampler)
    for step in (0, sampler.steps_per_epoch - 1):  # the last batch is short
        batch = sampler.batch(step)
        parts = step_loss(batch, step, 100)
        assert parts.keys() == {"label"}
        assert parts["label"].item() == pytest.approx(by_hand(task, batch, step), rel=2e-5)
        parts["label"].backward()
        assert isinstance(task.model, nn.Module)
        assert any(p.grad is not None and bool(p.grad.any()) for p in task.model.parameters())


def test_shared_draws_are_those_of_the_step_alone(dataset: Dataset) -> None:
    shared = shared_negatives(dataset, (SHARED, SampleSource(source="popularity", per_batch=500)), seed=3)
    assert shared.num == 507
    item_S, log_q_S = shared.draw(5)
    again_S, _ = shared.draw(5)
    assert torch.equal(item_S, again_S)
    assert not torch.equal(item_S, shared.draw(6)[0])
    assert log_q_S[:7].tolist() == pytest.approx([-math.log(dataset.num_items)] * 7)
    count_I1 = torch.bincount(dataset.events.item_N[dataset.rows("train")], minlength=dataset.num_items + 1)
    share = (count_I1 / count_I1.sum()).log()
    torch.testing.assert_close(log_q_S[7:], share[item_S[7:]])
    assert item_S.min() >= 1

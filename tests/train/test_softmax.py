"""The sampled softmax with drawn negatives: against loops, and as an estimate of the full softmax."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from cascade_kd.data import Dataset
from cascade_kd.models.two_tower import TwoTower, TwoTowerConfig
from cascade_kd.streams import scoped_seed
from cascade_kd.train import SampleSource, Task, TrainConfig, make_sampler
from cascade_kd.train.contrast import batch_columns, contrast_loss
from cascade_kd.train.negatives import SharedNegatives, make_distribution, make_negatives
from cascade_kd.train.samples import Batch, Sampler
from cascade_kd.train.task import make_hard_negatives, make_loss
from cascade_kd.types import Candidates, Requests

IN_BATCH = SampleSource(source="in-batch")
UNIFORM = SampleSource(source="uniform", per_positive=3)
POPULARITY = SampleSource(source="popularity", per_positive=2)
UPSTREAM = SampleSource(source="upstream", per_positive=2)
HARD = SampleSource(source="hard", per_positive=2, pool=10)


def make_task(dataset: Dataset, *samples: SampleSource, batch_size: int = 12) -> Task:
    with scoped_seed(1):
        config = TwoTowerConfig(embedding_size=4, hidden=(8,), output_size=4, temperature=0.5)
        model = TwoTower(config, dataset.online("recall"))
        nn.init.normal_(model.fields.table.weight)
    train = TrainConfig(label="click", loss="sampled-softmax", batch_size=batch_size, samples=samples)
    item_UK = torch.arange(1, 31).repeat(dataset.num_users + 1, 1)
    lists = Candidates.ranked(item_UK, torch.zeros(item_UK.shape))
    features = dataset.online("recall")
    return Task("recall", model, features, dataset, train, dataset.rows("train"), seed=7, lists=lists)


# -- against a loop


def by_hand(task: Task, sampler: Sampler, batch: Batch, in_batch: bool, num_drawn: int) -> float:
    """Row by row, column by column, from each pair's own logit."""
    dataset, model = task.dataset, task.model
    size = len(batch.requests)
    count = Counter(dataset.events.item_N[sampler.rows_M].tolist())
    items, rows = batch.item_R.tolist(), batch.row_R.tolist()
    names = [feature.name for feature in task.features]

    def score(b: int, column: int) -> float:
        # the item side as of the moment of the column's own event
        moment = batch.requests[rows[column] : rows[column] + 1]
        zero = torch.zeros(1, dtype=torch.int64)
        user = dataset.user_inputs(names, batch.requests[b : b + 1], part="train")
        item = dataset.inputs(names, moment, batch.item_R[column : column + 1], zero, part="train").item
        with torch.no_grad():
            return float((model.user_vectors(user)[0].double() * model.item_vectors(item)[0].double()).sum())

    num = num_drawn + (size - 1 if in_batch else 0)
    losses = []
    for b in range(size):
        target = score(b, b)
        others = []
        if in_batch:
            for c in range(size):
                if items[c] != items[b]:
                    others.append(score(b, c) - math.log(num * count[items[c]] / len(sampler.rows_M)))
        for c in range(size, len(items)):
            if rows[c] == b:
                others.append(score(b, c) - math.log(num) - float(batch.log_q_R[c]))
        top = max([target, *others])
        losses.append(top + math.log(sum(math.exp(x - top) for x in [target, *others])) - target)
    return sum(losses) / len(losses)


@pytest.mark.parametrize(
    "samples",
    [(IN_BATCH, UNIFORM), (UNIFORM,), (POPULARITY, IN_BATCH, UPSTREAM), (HARD,), (IN_BATCH, UNIFORM, HARD)],
    ids=lambda samples: "+".join(source.source for source in samples),
)
def test_it_equals_a_loop_over_columns(dataset: Dataset, samples: tuple[SampleSource, ...]) -> None:
    task = make_task(dataset, *samples)
    sampler = make_sampler(task)
    assert bool((sampler.label_N[sampler.rows_M] > 0).all())  # positives only
    loss = make_loss(task, sampler)
    in_batch = IN_BATCH in samples
    num_drawn = sum(source.per_positive for source in samples)
    for step in (0, sampler.steps_per_epoch - 1):  # the last batch is short
        batch = sampler.batch(step)
        got = loss(batch, step, 100)["label"]
        hard = make_hard_negatives(task, sampler)
        if hard is not None:
            batch = hard.added_to(batch, step)
        assert got.item() == pytest.approx(by_hand(task, sampler, batch, in_batch, num_drawn), rel=1e-5)
        got.backward()
        assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in task.model.parameters())
        assert any(p.grad is not None and bool(p.grad.any()) for p in task.model.parameters())


# -- an estimate of the full softmax

ITEMS = 12
COUNTS = torch.tensor([0] + [1 + (7 * i) % 23 for i in range(ITEMS)])
Q = COUNTS.double() / COUNTS.sum()


class Catalogue:
    """A data set without features but the ids."""

    def user_inputs(self, names: list[str], requests: Requests, *, part: str) -> dict[str, Tensor]:
        return {"user_id": requests.user_B}

    def item_inputs(self, names: list[str], item_R: Tensor, **_: object) -> dict[str, Tensor]:
        return {"item_id": item_R}


class Scores(nn.Module):
    """The logit of an item is a number of its own, whoever asks."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.score_I1 = nn.Parameter(torch.randn(ITEMS + 1, generator=generator))

    def user_vectors(self, columns: dict[str, Tensor]) -> Tensor:
        return torch.ones(len(columns["user_id"]), 1)

    def item_vectors(self, columns: dict[str, Tensor]) -> Tensor:
        return self.score_I1[columns["item_id"]].unsqueeze(1)


def drawn_batch(sources: list[SampleSource], trial: int, size: int, *, corrected: bool = True) -> Batch:
    """``size`` positives, drawn by popularity, with their negatives; only accidental hits are left out."""
    generator = torch.Generator().manual_seed(trial)
    target_B = torch.multinomial(Q, size, replacement=True, generator=generator)
    event_B = torch.arange(size) + size * trial
    negatives = make_negatives(
        [source for source in sources if source.per_positive],
        11,
        num_items=ITEMS,
        is_seen=lambda user_P, item_PK: item_PK == target_B[user_P].unsqueeze(1),
        counts_I1=lambda: COUNTS,
    )
    user_B = torch.arange(size)
    item_SB = torch.cat([target_B.unsqueeze(1), negatives.draw(user_B, event_B)], 1).T
    slot_R, row_R = item_SB.nonzero(as_tuple=True)
    item_R = item_SB[slot_R, row_R]
    log_q_R = negatives.log_q(row_R, item_R, slot_R)
    if not corrected:  # every item taken for equally likely
        log_q_R = log_q_R.new_full(log_q_R.shape, -math.log(ITEMS))
    ones_R = torch.ones(len(item_R))
    return Batch(Requests(user_B, event_B, part="train"), item_R, row_R, ones_R, -row_R, row_R, slot_R, ones_R, log_q_R)


def drawn_once(sources: list[SampleSource], trial: int, *, corrected: bool) -> tuple[Tensor, Tensor] | None:
    """The items that the sources draw for the whole batch, and their log q."""
    made = tuple(
        (make_distribution(source, num_items=ITEMS, counts_I1=lambda: COUNTS), source.per_batch)
        for source in sources
        if source.per_batch
    )
    if not made:
        return None
    item_S, log_q_S = SharedNegatives(made, 5, torch.device("cpu")).draw(trial)
    return item_S, log_q_S if corrected else log_q_S.new_full(log_q_S.shape, -math.log(ITEMS))


def deviations(
    sources: list[SampleSource], *, in_batch: bool, trials: int, size: int, corrected: bool = True
) -> Tensor:
    """z [I] of the mean gradient over trials against the full softmax, by the standard error over trials."""
    model, log_q_I1 = Scores(), Q.log().float()
    num_drawn = sum(source.per_positive for source in sources)
    gaps = []
    for trial in range(trials):
        batch = drawn_batch(sources, trial, size, corrected=corrected)
        model.zero_grad()
        columns = batch_columns(
            model,  # type: ignore[arg-type]
            Catalogue(),  # type: ignore[arg-type]
            [],
            batch,
            log_q_I1=log_q_I1 if in_batch else None,
            num_drawn=num_drawn,
            shared=drawn_once(sources, trial, corrected=corrected),
        )
        contrast_loss(columns, TrainConfig(label="x", loss="sampled-softmax")).backward()
        target_B = batch.item_R[:size]
        full_I = model.score_I1.detach()[1:].softmax(0) - torch.bincount(target_B, minlength=ITEMS + 1)[1:] / size
        assert model.score_I1.grad is not None
        gaps.append(model.score_I1.grad[1:] - full_I)
    gap_TI = torch.stack(gaps).double()
    return gap_TI.mean(0) / (gap_TI.std(0) / math.sqrt(trials))


@pytest.mark.parametrize(
    ("in_batch", "per_positive"),
    [
        (False, {"uniform": 3000}),
        (False, {"popularity": 3000}),
        (False, {"uniform": 1000, "popularity": 2000}),
        (True, {"uniform": 200, "popularity": 400}),
        (False, {"uniform": 1000, "popularity": -2000}),
        (True, {"uniform": -600}),
    ],
)
def test_its_gradient_is_that_of_the_full_softmax(in_batch: bool, per_positive: dict[str, int]) -> None:
    """Over many draws the mean gradient is the full one to within its standard error; without correction it is not.

    A number below 0 is drawn once for the whole batch.
    """
    sources = [
        SampleSource(source=name, per_positive=number) if number > 0 else SampleSource(source=name, per_batch=-number)  # type: ignore[arg-type]
        for name, number in per_positive.items()
    ]
    trials, size = (40, 250) if in_batch else (60, 10)
    z_I = deviations(sources, in_batch=in_batch, trials=trials, size=size)
    assert z_I.abs().max() < 4
    assert 0.05 < z_I.square().mean() < 3  # the standard errors are what they say
    if "popularity" in per_positive:
        wrong_I = deviations(sources, in_batch=in_batch, trials=trials, size=size, corrected=False)
        assert wrong_I.abs().max() > 8

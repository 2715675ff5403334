"""Batches: a function of the step, honest negatives, fixed slots."""

from __future__ import annotations

import torch

from cascade_kd.data import Dataset
from cascade_kd.train.objective import weighted_mean
from cascade_kd.train.samples import Batch, Sampler
from cascade_kd.train.settings import SampleSource
from cascade_kd.types import Candidates

UNIFORM = SampleSource(source="uniform", per_positive=2)
UPSTREAM = SampleSource(source="upstream", per_positive=3)


def lists(dataset: Dataset) -> Candidates:
    """Items 1..10 for odd users, none for even ones."""
    item_UK = torch.arange(1, 11).repeat(dataset.num_users + 1, 1)
    valid_UK = (torch.arange(dataset.num_users + 1) % 2 == 1).unsqueeze(1).expand_as(item_UK)
    return Candidates.ranked(item_UK, torch.zeros(item_UK.shape), valid_UK)


def sampler(dataset: Dataset, *, seed: int = 1, batch_size: int = 290) -> Sampler:
    sources = (SampleSource(source="impressions"), UNIFORM, UPSTREAM)
    rows = dataset.rows("train")
    return Sampler(dataset, rows, "click", batch_size=batch_size, seed=seed, sources=sources, lists=lists(dataset))


def test_an_epoch_visits_every_row_once_in_another_order_each_time(dataset: Dataset) -> None:
    s = sampler(dataset)
    seen = []
    for epoch in range(2):
        events = [s.batch(epoch * s.steps_per_epoch + i).event_R for i in range(s.steps_per_epoch)]
        rows = torch.cat([event_R[event_R >= 0] for event_R in events])
        assert torch.equal(rows.sort().values, dataset.rows("train"))
        seen.append(rows)
    assert not torch.equal(seen[0], seen[1])
    assert len(events[-1][events[-1] >= 0]) == len(s.rows_M) % 290  # the short last batch is kept


def test_a_step_gives_the_same_batch_whatever_ran_before(dataset: Dataset) -> None:
    used, fresh = sampler(dataset), sampler(dataset)
    for step in range(20):
        used.batch(step)
    for step in (3, 17, 25):
        a, b = used.batch(step), fresh.batch(step)
        assert torch.equal(a.item_R, b.item_R)
        assert torch.equal(a.row_R, b.row_R)
        assert torch.equal(a.label_R, b.label_R)


def test_negatives_belong_to_positives_and_are_not_the_users_own(dataset: Dataset) -> None:
    s = sampler(dataset, batch_size=10_000)
    batch = s.batch(0)
    sampled = batch.slot_R > 0
    user_R = batch.requests.user_B[batch.row_R]
    assert bool((batch.label_R[sampled] == 0).all())
    assert bool((batch.event_R[sampled] == -1).all())
    positive_B = batch.label_R[: len(batch.requests)] > 0
    assert bool(positive_B[batch.row_R[sampled]].all())
    train = dataset.rows("train")
    own = set(zip(dataset.events.user_N[train].tolist(), dataset.events.item_N[train].tolist(), strict=True))
    drawn = list(zip(user_R[sampled].tolist(), batch.item_R[sampled].tolist(), strict=True))
    assert not own & set(drawn)
    # slots 1, 2 are uniform and reach beyond the lists; 3, 4, 5 come from the lists, which even users lack
    upstream = batch.slot_R >= 3
    assert bool((batch.item_R[upstream] <= 10).all())
    assert bool((user_R[upstream] % 2 == 1).all())
    assert batch.item_R[sampled & ~upstream].max() > 70
    assert batch.item_R.min() >= 1


def test_uniform_negatives_are_uniform(dataset: Dataset) -> None:
    # Over many seeds each item not of the user's own is drawn equally often: chi-square per item within 5 sd.
    counts = torch.zeros(dataset.num_items + 1)
    possible = torch.zeros(dataset.num_items + 1)
    for seed in range(20):
        batch = sampler(dataset, seed=seed, batch_size=10_000).batch(0)
        uniform = (batch.slot_R > 0) & (batch.slot_R <= 2)
        counts += torch.bincount(batch.item_R[uniform], minlength=dataset.num_items + 1)
        positive_B = (batch.label_R[: len(batch.requests)] > 0).nonzero().squeeze(1)
        items = dataset.item_codes().expand(len(positive_B), -1)
        seen = dataset.is_seen(batch.requests.user_B[positive_B], items, part="valid")
        possible[1:] += 2 * (~seen).sum(0) / dataset.num_items
    z = (counts[1:] - possible[1:]) / possible[1:].sqrt()
    assert z.abs().max() < 5


def test_a_rows_negatives_are_the_same_in_every_epoch(dataset: Dataset) -> None:
    s = sampler(dataset, batch_size=10_000)
    assert pairs_of(s.batch(0)) == pairs_of(s.batch(1))
    assert pairs_of(sampler(dataset, seed=2, batch_size=10_000).batch(0)) != pairs_of(s.batch(0))


def test_negatives_that_are_drawn_anew_are_others_in_every_epoch(dataset: Dataset) -> None:
    fixed, anew = (
        Sampler(
            dataset,
            dataset.rows("train"),
            "click",
            batch_size=64,
            seed=3,
            sources=(SampleSource(source="impressions"), UNIFORM),
            anew=anew,
        )
        for anew in (False, True)
    )
    rows = torch.arange(300)
    assert torch.equal(anew.rows(rows).item_R, fixed.rows(rows).item_R)
    first, second, again = (pairs_of(anew.rows(rows, epoch)) for epoch in (0, 1, 1))
    assert second == again
    logged = {pair for pair in first if pair[1] == 0}
    assert logged == {pair for pair in second if pair[1] == 0}
    assert len(first & second - logged) < len(first - logged) / 4
    steps = anew.steps_per_epoch
    drawn = set[tuple[int, int, int]]()
    for step in range(steps, 2 * steps):
        drawn |= pairs_of(anew.batch(step))
    assert pairs_of(anew.rows(torch.arange(anew.num_rows), 1)) == drawn
    assert not dataset.is_seen(*_drawn(anew.rows(rows, 1)), part="train").any()


def pairs_of(batch: Batch) -> set[tuple[int, int, int]]:
    """(row, slot, item) of a batch."""
    return set(zip(batch.sample_R.tolist(), batch.slot_R.tolist(), batch.item_R.tolist(), strict=True))


def _drawn(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = batch.event_R < 0
    return batch.requests.user_B[batch.row_R[drawn]], batch.item_R[drawn].unsqueeze(1)


def test_a_source_weighs_its_rows(dataset: Dataset) -> None:
    sources = (
        SampleSource(source="impressions", weight=2.0),
        SampleSource(source="upstream", per_positive=2, weight=0.25),
        SampleSource(source="uniform", per_positive=1, weight=0.5),
    )
    rows = dataset.rows("train")
    s = Sampler(dataset, rows, "click", batch_size=500, seed=1, sources=sources, lists=lists(dataset))
    batch = s.batch(0)
    expected = torch.tensor([2.0, 0.25, 0.25, 0.5])[batch.slot_R]
    assert torch.equal(batch.weight_R, expected)
    assert set(batch.weight_R.tolist()) == {2.0, 0.25, 0.5}
    logits = torch.linspace(-2, 2, len(expected), dtype=torch.float64)
    by_hand = sum(w * x for w, x in zip(expected.tolist(), logits.tolist(), strict=True)) / expected.double().sum()
    torch.testing.assert_close(weighted_mean(logits, expected.double()), by_hand)
    # a weight of 0 would be the row's absence: doubling all weights changes nothing
    torch.testing.assert_close(weighted_mean(logits, 2 * expected.double()), by_hand)

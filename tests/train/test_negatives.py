"""Negatives by source: what is drawn, how often, and the probability that is kept of it."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from cascade_kd.data import Dataset
from cascade_kd.train.negatives import Negatives, by_popularity, make_negatives
from cascade_kd.train.samples import Sampler
from cascade_kd.train.settings import SampleSource
from cascade_kd.types import Candidates

ITEMS, USERS = 30, 12
COUNTS = torch.tensor([0, 0, *range(1, ITEMS - 1), 0])  # of codes 0..30: neither item 1 nor item 30 has an event
LENGTH = [0, *(1 + user % 5 for user in range(1, USERS)), 0]  # the last user has no list

UNIFORM = SampleSource(source="uniform", per_positive=2)
POPULARITY = SampleSource(source="popularity", per_positive=3)
UPSTREAM = SampleSource(source="upstream", per_positive=2)


def never(user_P: Tensor, item_PK: Tensor) -> Tensor:
    return torch.zeros_like(item_PK, dtype=torch.bool)


def lists() -> Candidates:
    """User u's list is items u, u + 1, ... as far as LENGTH goes."""
    place_L = torch.arange(6)
    item_UL = (torch.arange(USERS + 1).unsqueeze(1) + place_L).clamp(max=ITEMS)
    valid_UL = place_L < torch.tensor(LENGTH).unsqueeze(1)
    return Candidates.ranked(item_UL, -place_L.expand(item_UL.shape).float(), valid_UL)


def negatives(*sources: SampleSource, seed: int = 5) -> Negatives:
    return make_negatives(sources, seed, num_items=ITEMS, is_seen=never, counts_I1=lambda: COUNTS, lists=lists())


def share(power: float) -> Tensor:
    weights = [0.0, *(count**power if count else 0.0 for count in COUNTS[1:].tolist())]
    return torch.tensor([weight / sum(weights) for weight in weights], dtype=torch.float64)


def p_value(drawn: Tensor, share_I1: Tensor) -> float:
    """Of a chi-square test over the items that can be drawn; the others must not be."""
    possible = share_I1 > 0
    count_I1 = torch.bincount(drawn.flatten(), minlength=ITEMS + 1)
    assert int(count_I1[~possible].sum()) == 0
    return float(chisquare(count_I1[possible].numpy(), (share_I1[possible] * drawn.numel()).numpy()).pvalue)


def many(made: Negatives, user: int | None = None, positives: int = 20_000) -> tuple[Tensor, Tensor]:
    user_P = torch.full((positives,), user) if user is not None else torch.arange(positives) % USERS + 1
    return user_P, made.draw(user_P, torch.arange(positives))


def test_uniform_draws_are_uniform() -> None:
    _, item_PK = many(negatives(UNIFORM))
    assert p_value(item_PK, torch.tensor([0.0] + [1 / ITEMS] * ITEMS, dtype=torch.float64)) > 1e-3


@pytest.mark.parametrize("power", [1.0, 0.75, 2.0])
def test_popularity_draws_follow_the_power_of_the_counts(power: float) -> None:
    _, item_PK = many(negatives(POPULARITY.model_copy(update={"power": power})))
    assert p_value(item_PK, share(power)) > 1e-3
    assert p_value(item_PK, share(power * 1.1)) < 1e-6  # the test can tell powers apart


def test_upstream_draws_are_uniform_over_the_users_own_list() -> None:
    for user in (1, 4, 11):
        _, item_PK = many(negatives(UPSTREAM), user, 4000)
        share_I1 = torch.zeros(ITEMS + 1, dtype=torch.float64)
        share_I1[user : user + LENGTH[user]] = 1 / LENGTH[user]
        assert p_value(item_PK, share_I1) > 1e-3 or LENGTH[user] == 1
    _, item_PK = many(negatives(UPSTREAM), USERS, 10)
    assert not bool(item_PK.any())


def test_draws_of_one_positive_are_independent() -> None:
    """Two slots agree as often as two independent draws would."""
    _, item_PK = many(negatives(UNIFORM, POPULARITY))
    agree = [float((item_PK[:, a] == item_PK[:, b]).sum()) for a, b in ((0, 1), (0, 2), (2, 3), (3, 4))]
    squares = float(share(1.0).square().sum())
    for count, p in zip(agree, (1 / ITEMS, 1 / ITEMS, squares, squares), strict=True):
        assert abs(count - 20_000 * p) < 4.5 * math.sqrt(20_000 * p * (1 - p))


def test_draws_do_not_depend_on_what_is_drawn_beside_them() -> None:
    made = negatives(UPSTREAM, POPULARITY, UNIFORM)
    user_P, item_PK = many(made, positives=500)
    rows = torch.tensor([3, 77, 78, 410])
    assert torch.equal(made.draw(user_P[rows], rows), item_PK[rows])
    assert torch.equal(many(negatives(UPSTREAM, POPULARITY, UNIFORM), positives=500)[1], item_PK)
    assert not torch.equal(many(negatives(UPSTREAM, POPULARITY, UNIFORM, seed=6), positives=500)[1], item_PK)


def test_draws_of_earlier_versions() -> None:
    """Runs are repeated years later: the draws of a seed are fixed."""
    made = negatives(UNIFORM, UPSTREAM, seed=123)
    assert made.draw(torch.tensor([3, 9]), torch.tensor([0, 70_000])).tolist() == EARLIER


EARLIER = [[29, 28, 5, 6], [26, 22, 12, 9]]


def test_log_q_is_the_log_of_the_stated_probability() -> None:
    made = negatives(UNIFORM, POPULARITY.model_copy(update={"power": 0.5}), UPSTREAM)
    user_P, item_PK = many(made, positives=300)
    slot_PK = torch.arange(1, 8).expand(300, -1)
    user_R = user_P.repeat_interleave(7)
    got = made.log_q(user_R, item_PK.flatten(), slot_PK.flatten()).view(300, 7)
    popular = share(0.5)
    for user, items, row in zip(user_P.tolist(), item_PK.tolist(), got.tolist(), strict=True):
        if user == USERS:
            assert items[5:] == [0, 0]  # no list, no row
            continue
        want = [-math.log(ITEMS)] * 2
        want += [math.log(popular[item]) for item in items[2:5]] + [-math.log(LENGTH[user])] * 2
        assert row == pytest.approx(want, rel=1e-6)
    assert made.log_q(user_R, item_PK.flatten(), torch.zeros_like(user_R)).tolist() == [0.0] * len(user_R)


@pytest.mark.parametrize("counts", [[0, 0, 3, 0, 1, 0], [9, 1, 0, 0, 0, 0], [0, 10**9, 1, 1, 1, 10**9]])
@pytest.mark.parametrize("power", [0.3, 1.0, 3.0])
def test_the_first_and_the_last_draw_hit_items_that_have_events(counts: list[int], power: float) -> None:
    popularity = by_popularity(torch.tensor(counts), power)
    draws = torch.tensor([[0, 1, 1 << 8, (1 << 62) - 1, (1 << 62) - (1 << 20), 1 << 61]])
    items = popularity.items(draws, torch.tensor([1]))
    assert bool((torch.tensor(counts)[items] > 0).all())
    assert 1 <= int(items.min()) <= int(items.max()) <= 5
    assert bool(popularity.log_q(torch.tensor([1] * 6), items[0]).isfinite().all())
    known = [i for i in range(1, 6) if counts[i]]
    assert int(items[0, 0]) == known[0]
    assert int(items[0, 3]) == known[-1]


# -- on a data set


def sampler(dataset: Dataset, *sources: SampleSource) -> Sampler:
    item_UK = torch.arange(1, 41).repeat(dataset.num_users + 1, 1)
    given = Candidates.ranked(item_UK, torch.zeros(item_UK.shape))
    rows = dataset.rows("train")
    return Sampler(dataset, rows, "click", batch_size=700, seed=1, sources=sources, lists=given)


def test_seen_items_are_left_out_whatever_the_source(dataset: Dataset) -> None:
    s = sampler(dataset, UPSTREAM, POPULARITY, UNIFORM)
    train = dataset.rows("train")
    events = dataset.events
    own = set(zip(events.user_N[train].tolist(), events.item_N[train].tolist(), strict=True))
    slots: Counter[int] = Counter()
    for step in range(s.steps_per_epoch):
        batch = s.batch(step)
        drawn = batch.slot_R > 0
        user_R = batch.requests.user_B[batch.row_R]
        assert not own & set(zip(user_R[drawn].tolist(), batch.item_R[drawn].tolist(), strict=True))
        slots.update(batch.slot_R.tolist())
    positives = int((s.label_N[s.rows_M] > 0).sum())
    assert set(slots) == set(range(8))
    assert all(0 < slots[slot] < positives for slot in range(1, 8))  # some are left out, most are not


def test_a_batch_carries_log_q_of_its_rows(dataset: Dataset) -> None:
    s = sampler(dataset, SampleSource(source="impressions"), POPULARITY, UPSTREAM, UNIFORM)
    batch = s.batch(2)
    train = dataset.rows("train")
    count = Counter(dataset.events.item_N[train].tolist())
    assert dataset.training_counts().tolist() == [count[item] for item in range(dataset.num_items + 1)]
    for slot, item, log_q in zip(batch.slot_R.tolist(), batch.item_R.tolist(), batch.log_q_R.tolist(), strict=True):
        if slot == 0:
            want = 0.0
        elif slot <= 3:
            want = math.log(count[item] / len(train))
        else:
            want = -math.log(40 if slot <= 5 else dataset.num_items)
        assert log_q == pytest.approx(want, rel=1e-6)

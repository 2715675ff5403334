"""The funnel's attribution sums to one exactly, and equals a loop over users."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_kd.metrics import survival


@st.composite
def funnels(draw):
    """Positives per user and, per stage, how many of them are left."""
    users = draw(st.integers(0, 12))
    positives = draw(st.lists(st.integers(0, 9), min_size=users, max_size=users))
    stages, before = [], positives
    for _ in range(draw(st.integers(1, 4))):
        before = [draw(st.integers(0, num)) for num in before]
        stages.append(before)
    return positives, stages


@settings(deadline=None, max_examples=100)
@given(funnels())
def test_lost_and_found_sum_to_1_in_every_order_of_addition(drawn):
    positives, stages = drawn
    funnel = survival([torch.tensor(s, dtype=torch.int64) for s in stages], torch.tensor(positives, dtype=torch.int64))
    assert len(funnel.survival) == len(funnel.lost) == len(stages)
    counted = [user for user, num in enumerate(positives) if num]
    every = [*funnel.survival, *funnel.lost, funnel.found]
    assert {metric.n for metric in every} == {len(counted)}
    assert {metric.extra["without_positives"] for metric in every} == {len(positives) - len(counted)}
    if not counted:
        assert {metric.mean for metric in every} == {None}
        assert {metric.why for metric in every} == {"no user has a positive"}
        return
    parts = [metric.mean for metric in funnel.lost] + [funnel.found.mean]
    for order in itertools.permutations(parts):
        total = 0.0
        for part in order:
            total += part
        assert total == 1.0
    assert all(part >= 0 for part in parts)
    before = np.ones(len(counted))
    for hits, kept, lost in zip(stages, funnel.survival, funnel.lost, strict=True):
        share = np.array([hits[user] / positives[user] for user in counted])
        assert kept.mean == pytest.approx(share.mean(), abs=2e-12)
        assert lost.mean == pytest.approx((before - share).mean(), abs=2e-12)
        if len(counted) > 1:
            assert kept.stderr == pytest.approx(share.std(ddof=1) / len(counted) ** 0.5, abs=1e-12)
            assert lost.stderr == pytest.approx((before - share).std(ddof=1) / len(counted) ** 0.5, abs=1e-12)
        before = share
    assert funnel.found == funnel.survival[-1]


def test_sums_stay_exact_where_plain_means_do_not():
    """Thirds and sevenths over many users: unrounded means miss 1 in some order, these do not."""
    generator = torch.Generator().manual_seed(0)
    positives = torch.randint(1, 8, (1001,), generator=generator)
    stages, before, plain = [], positives, []
    for _ in range(5):
        after = (before.double() * torch.rand(1001, generator=generator)).round().long()
        stages.append(after)
        plain.append(float(((before - after) / positives.double()).mean()))
        before = after
    plain.append(float((before / positives.double()).mean()))
    funnel = survival(stages, positives)
    parts = [metric.mean for metric in funnel.lost] + [funnel.found.mean]
    assert {sum(order) for order in itertools.permutations(parts)} == {1.0}
    assert {sum(order) for order in itertools.permutations(plain)} != {1.0}


def test_a_worked_funnel():
    funnel = survival([torch.tensor([2, 1]), torch.tensor([1, 0])], torch.tensor([4, 1]))
    assert [metric.mean for metric in funnel.survival] == [0.75, 0.125]
    assert [metric.mean for metric in funnel.lost] == [0.25, 0.625]
    assert funnel.found.mean == 0.125


def test_positives_cannot_come_back():
    with pytest.raises(ValueError, match="stage 1 keeps positives that did not reach it"):
        survival([torch.tensor([1]), torch.tensor([2])], torch.tensor([4]))
    with pytest.raises(ValueError, match="stage 0"):
        survival([torch.tensor([5])], torch.tensor([4]))

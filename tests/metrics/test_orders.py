"""Kendall's tau-b against scipy, joint recall and recall by groups against loops, by hypothesis."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from cascade_kd.metrics import group_recall_at, hits, joint_recall_at, kendall_tau, survivors

places = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.booleans()), min_size=1, max_size=8)


def padded(rows, fill):
    width = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])


@settings(deadline=None, max_examples=75)
@given(st.lists(places, min_size=1, max_size=5))
def test_kendall_tau_is_scipys_tau_b(lists):
    a, b = (padded([[float(place[i]) for place in row] for row in lists], math.nan) for i in (0, 1))
    valid = padded([[place[2] for place in row] for row in lists], False)
    wanted = []
    for row in lists:
        left = [place for place in row if place[2]]
        if len({x for x, _, _ in left}) > 1 and len({y for _, y, _ in left}) > 1:
            wanted.append(kendalltau([x for x, _, _ in left], [y for _, y, _ in left]).statistic)
    got = kendall_tau(a, b, valid)
    assert got.n == len(wanted)
    assert got.extra == {"without_order": len(lists) - len(wanted)}
    assert got.mean == (pytest.approx(np.mean(wanted), abs=1e-12) if wanted else None)


def test_kendall_tau_of_the_same_and_the_opposite_order():
    score = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    valid = torch.ones_like(score, dtype=torch.bool)
    assert kendall_tau(score, score.exp(), valid).mean == 1
    assert kendall_tau(score, -score, valid).mean == -1
    infinite = torch.tensor([[math.inf, 0.0, -math.inf, -math.inf]])
    assert kendall_tau(infinite, infinite, torch.ones(1, 4, dtype=torch.bool)).mean == pytest.approx(1)
    with pytest.raises(ValueError, match="NaN"):
        kendall_tau(score, score.log(), valid)


stages = st.lists(
    st.tuples(st.integers(1, 5), st.lists(st.integers(0, 3), min_size=6, max_size=6)), min_size=1, max_size=3
)
marks = st.lists(st.booleans(), min_size=6, max_size=6)


@settings(deadline=None, max_examples=75)
@given(stages, marks, marks)
def test_joint_recall_follows_the_cuts(cascade, truth, valid):
    left = [place for place in range(6) if valid[place]]
    for keep, score in cascade:
        left = sorted(left, key=lambda place, score=score: (-score[place], place))[:keep]
    scores = [torch.tensor([score]) for _, score in cascade]
    keeps = [keep for keep, _ in cascade]
    got = survivors(scores, keeps, torch.tensor([valid]))
    assert got[0].nonzero().squeeze(1).tolist() == sorted(left)
    aims = {place for place in range(6) if truth[place] and valid[place]}
    metric = joint_recall_at(scores, keeps, torch.tensor([truth]), torch.tensor([valid]))
    assert metric.mean == (pytest.approx(len(aims & set(left)) / len(aims)) if aims else None)
    assert metric.extra == {"without_truth": int(not aims)}


def test_joint_recall_of_random_stages_is_the_share_that_is_kept():
    """40 -> 30 -> 20 keeps half of any ground truth."""
    generator = torch.Generator().manual_seed(0)
    first, second, truth = (torch.rand(20_000, 40, generator=generator) for _ in range(3))
    top_10 = truth.argsort(dim=1).argsort(dim=1) < 10
    got = joint_recall_at([first, second], [30, 20], top_10, torch.ones_like(top_10))
    assert got.mean == pytest.approx(0.5, abs=5 * got.stderr)
    assert got.n == 20_000


def test_survivors_refuse_a_stage_without_a_budget():
    with pytest.raises(ValueError, match="budget"):
        survivors([torch.zeros(1, 2)], [0], torch.ones(1, 2, dtype=torch.bool))


items = st.lists(st.integers(1, 12), max_size=6, unique=True)


@settings(deadline=None, max_examples=75)
@given(st.lists(st.tuples(items, items.map(sorted)), min_size=1, max_size=5), st.integers(1, 7), st.integers(1, 4))
def test_group_recall_equals_a_loop(drawn, k, groups):
    group = torch.arange(13) * 7 % groups
    lists = padded([row for row, _ in drawn], 0).long()
    valid = padded([[True] * len(row) for row, _ in drawn], False).bool()
    offsets = torch.tensor([0, *(len(own) for _, own in drawn)]).cumsum(0)
    flat = torch.tensor([x for _, own in drawn for x in own], dtype=torch.int64)
    hit = hits(lists, valid, offsets, flat)
    got = group_recall_at(lists, hit, offsets, flat, group, groups, k)
    assert len(got) == groups
    for number, metric in enumerate(got):
        shares = []
        for row, own in drawn:
            mine = {x for x in own if group[x] == number}
            if mine:
                shares.append(len(mine & set(row[:k])) / len(mine))
        assert metric.n == len(shares)
        assert metric.mean == (pytest.approx(np.mean(shares)) if shares else None)

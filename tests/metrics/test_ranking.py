"""Metrics of lists against loops over users, by hypothesis: short lists, ties of length, users without positives."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from cascade_kd.metrics import Metric, hits, mean_and_stderr, ndcg_at, overlap_at, recall_at

items = st.lists(st.integers(1, 12), max_size=6, unique=True)
users = st.lists(st.tuples(items, items.map(sorted)), min_size=1, max_size=6)


def padded(lists):
    """Lists as ``item_BK, valid_BK``, padded with item 0."""
    width = max(map(len, lists))
    item = torch.tensor([row + [0] * (width - len(row)) for row in lists], dtype=torch.int64).reshape(len(lists), width)
    return item, torch.arange(width) < torch.tensor([len(row) for row in lists])[:, None]


def ragged(sets):
    """Sets as ``offsets_B1, positive_P``."""
    offsets = torch.tensor([0, *map(len, sets)]).cumsum(0)
    return offsets, torch.tensor([x for row in sets for x in row], dtype=torch.int64)


def assert_is_mean(metric, values):
    assert metric.n == len(values)
    assert metric.mean == (pytest.approx(np.mean(values), abs=1e-12) if values else None)
    error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else None
    assert metric.stderr == (None if error is None else pytest.approx(error, abs=1e-12))


@settings(deadline=None, max_examples=75)
@given(users, st.integers(1, 8))
def test_recall_and_ndcg_equal_a_loop_over_users(drawn, k):
    lists, positives = [row for row, _ in drawn], [own for _, own in drawn]
    offsets, flat = ragged(positives)
    hit = hits(*padded(lists), offsets, flat)
    assert [line[: len(row)] for line, row in zip(hit.tolist(), lists, strict=True)] == [
        [x in own for x in row] for row, own in drawn
    ]
    recalls, gains = [], []
    for row, own in drawn:
        if own:
            recalls.append(len(set(row[:k]) & set(own)) / len(own))
            gain = sum(1 / math.log2(1 + rank) for rank, x in enumerate(row[:k], start=1) if x in own)
            gains.append(gain / sum(1 / math.log2(1 + rank) for rank in range(1, min(k, len(own)) + 1)))
    for metric, want in ((recall_at, recalls), (ndcg_at, gains)):
        got = metric(hit, offsets.diff(), k)
        assert_is_mean(got, want)
        assert got.extra == {"without_positives": len(drawn) - len(want)}
        assert got.mean is None or 0 <= got.mean <= 1 + 1e-12
        assert want or got.why == "no user has a positive"


def test_recall_is_over_all_positives_and_not_min_k():
    hit = torch.tensor([[True, True]])
    assert recall_at(hit, torch.tensor([8]), 2).mean == 2 / 8


@pytest.mark.parametrize("k", [3, 10])
def test_ndcg_equals_scikit_learn_on_full_rankings(k):
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(20, 10, generator=generator)
    relevant = torch.rand(20, 10, generator=generator) < 0.3
    relevant[:, 0] = True
    hit = relevant.gather(1, score.argsort(dim=1, descending=True))
    want = ndcg_score(relevant.numpy(), score.numpy(), k=k)
    assert ndcg_at(hit, relevant.sum(1), k).mean == pytest.approx(want, abs=1e-12)


def test_a_padded_place_is_no_hit_even_if_its_code_is_a_positive():
    item, valid = torch.tensor([[4, 0, 4]]), torch.tensor([[True, False, False]])
    assert hits(item, valid, torch.tensor([0, 2]), torch.tensor([0, 4])).tolist() == [[True, False, False]]


def test_positives_that_would_be_counted_wrongly_are_refused():
    item, valid = torch.tensor([[1, 2], [3, 4]]), torch.ones(2, 2, dtype=torch.bool)
    hits(item, valid, torch.tensor([0, 2, 4]), torch.tensor([5, 9, 1, 2]))  # descends between users only
    hits(item, valid, torch.tensor([0, 0, 2]), torch.tensor([5, 9]))
    with pytest.raises(ValueError, match="ascending and distinct"):
        hits(item, valid, torch.tensor([0, 2, 4]), torch.tensor([5, 5, 1, 2]))
    with pytest.raises(ValueError, match="must ascend"):
        hits(item, valid, torch.tensor([0, 2, 4]), torch.tensor([5, 6, 2, 1]))


@settings(deadline=None, max_examples=75)
@given(st.lists(st.tuples(items, items), min_size=1, max_size=6), st.integers(1, 8))
def test_overlap_equals_a_loop(drawn, k):
    a, b = padded([row for row, _ in drawn]), padded([row for _, row in drawn])
    got = overlap_at(*a, *b, k)
    values, short = [], 0
    for left, right in drawn:
        length = min(k, max(len(left), len(right)))
        if length:
            values.append(len(set(left[:k]) & set(right[:k])) / length)
            short += length < k
    assert_is_mean(got, values)
    assert got.extra == {"short_lists": short, "empty_lists": len(drawn) - len(values)}
    mirrored = overlap_at(*b, *a, k)
    assert mirrored == got
    same = overlap_at(*a, *a, k)
    assert same.mean in (None, 1.0)


def test_overlap_of_two_orders_of_one_list():
    a, b, valid = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[4, 3, 2, 1]]), torch.ones(1, 4, dtype=torch.bool)
    assert [overlap_at(a, valid, b, valid, k).mean for k in (1, 2, 3, 4, 9)] == [0.0, 0.0, 2 / 3, 1.0, 1.0]


def test_a_metric_is_written_as_it_must_be():
    assert Metric(0.5, 0.1, 3).as_dict() == {"mean": 0.5, "stderr": 0.1, "n": 3}
    assert Metric(math.nan, 0.1, 3).as_dict() == {"mean": None, "stderr": None, "n": 3, "why": "the mean is nan"}
    assert Metric(0.5, math.nan, 3, extra={"left": 2}).as_dict() == {"mean": 0.5, "stderr": None, "n": 3, "left": 2}
    assert Metric(None, None, 0, "no rows").as_dict()["why"] == "no rows"


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-1e3, 1e3, width=32), max_size=8))
def test_mean_and_standard_error(values):
    assert_is_mean(mean_and_stderr(torch.tensor(values)), values)

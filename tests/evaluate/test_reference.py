"""Popularity, random order and the oracle against loops in plain Python over the tiny world."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch

from cascade_kd.data import Dataset, evaluation_requests
from cascade_kd.evaluate import reference_metrics

Tree = dict[str, Any]
KS = (1, 5, 10, 70, 100)  # of 80 items; more than any user has left, more than there are


def log(dataset: Dataset) -> list[tuple[int, int, int, int, int]]:
    """(part, user, item, request, click) of every event."""
    events = dataset.events
    assert events.request_N is not None
    columns = [events.part_N, events.user_N, events.item_N, events.request_N, events.labels["click"].long()]
    return list(zip(*(column.tolist() for column in columns), strict=True))


def questions(dataset: Dataset) -> list[tuple[int, set[int]]]:
    """User and positives of every test request with a positive."""
    requests: dict[int, tuple[int, set[int]]] = {}
    for part, user, item, request, click in log(dataset):
        if part == 2 and click:
            requests.setdefault(request, (user, set()))[1].add(item)
    return list(requests.values())


def seen(dataset: Dataset, mask_seen: bool) -> dict[int, set[int]]:
    """What every user has before the test part; nothing if it is not masked."""
    items: dict[int, set[int]] = {user: set() for user in range(dataset.num_users + 1)}
    for part, user, item, _, _ in log(dataset):
        if mask_seen and part < 2:
            items[user].add(item)
    return items


def assert_is_mean(got: Tree, values: Sequence[float], *, tolerance: float = 1e-9, **extra: float) -> None:
    want = {"mean": statistics.fmean(values), "stderr": statistics.stdev(values) / math.sqrt(len(values))}
    assert got == {**{key: pytest.approx(x, abs=tolerance) for key, x in want.items()}, "n": len(values), **extra}


@pytest.mark.parametrize("mask_seen", [True, False])
def test_popularity_is_one_order_by_clicks_in_training(dataset: Dataset, mask_seen: bool) -> None:
    asked = evaluation_requests(dataset, "test", "click")
    tree = reference_metrics(dataset, asked, "click", KS, mask_seen=mask_seen)["popularity"]
    clicks = Counter(item for part, _, item, _, click in log(dataset) if part == 0 and click)
    order = sorted(range(1, dataset.num_items + 1), key=lambda item: (-clicks[item], item))
    assert len(set(clicks.values())) < len(clicks)  # there are ties
    assert tree.keys() == {f"{name}@{k}" for name in ("recall", "ndcg") for k in KS}
    asked_in_python, own = questions(dataset), seen(dataset, mask_seen)
    for k in KS:
        recalls, ndcgs = [], []
        for user, positives in asked_in_python:
            top = [item for item in order if item not in own[user]][:k]
            recalls.append(sum(1 for item in top if item in positives) / len(positives))
            gain = sum(1 / math.log2(rank + 1) for rank, item in enumerate(top, start=1) if item in positives)
            ndcgs.append(gain / sum(1 / math.log2(r + 1) for r in range(1, min(k, len(positives)) + 1)))
        assert_is_mean(tree[f"recall@{k}"], recalls, without_positives=0)
        assert_is_mean(tree[f"ndcg@{k}"], ndcgs, without_positives=0)


@pytest.mark.parametrize("mask_seen", [True, False])
def test_random_is_the_expectation_over_all_orders(dataset: Dataset, mask_seen: bool) -> None:
    """By counting the ways to draw k of the n items left with h of the m reachable positives among them."""
    asked = evaluation_requests(dataset, "test", "click")
    tree = reference_metrics(dataset, asked, "click", KS, mask_seen=mask_seen)["random"]
    assert tree.keys() == {f"recall@{k}" for k in KS}
    unreachable, asked_in_python, own = 0, questions(dataset), seen(dataset, mask_seen)
    for k in KS:
        values = []
        for user, positives in asked_in_python:
            n, m = dataset.num_items - len(own[user]), len(positives - own[user])
            unreachable += len(positives) - m
            drawn = min(k, n)
            ways = [math.comb(m, h) * math.comb(n - m, drawn - h) for h in range(min(m, drawn) + 1)]
            expected = Fraction(sum(h * way for h, way in enumerate(ways)), math.comb(n, drawn))
            values.append(float(expected / len(positives)))
        assert_is_mean(tree[f"recall@{k}"], values, tolerance=1e-7)  # its shares are float32
    assert (unreachable > 0) is mask_seen


def test_random_is_what_random_orders_reach(dataset: Dataset) -> None:
    asked = evaluation_requests(dataset, "test", "click")
    tree = reference_metrics(dataset, asked, "click", (10,), mask_seen=True)["random"]
    generator = torch.Generator().manual_seed(0)
    seen_U = seen(dataset, True)
    own = [(positives, seen_U[user]) for user, positives in questions(dataset)]
    shares = []
    for _ in range(100):
        order = (torch.randperm(dataset.num_items, generator=generator) + 1).tolist()
        for positives, left_out in own:
            top = [item for item in order if item not in left_out][:10]
            shares.append(len(positives & set(top)) / len(positives))
    error = statistics.stdev(shares) / math.sqrt(100)  # the requests of one order are not independent
    assert abs(statistics.fmean(shares) - tree["recall@10"]["mean"]) < 4 * error


def test_the_oracle_orders_by_the_true_probability(dataset: Dataset) -> None:
    asked = evaluation_requests(dataset, "test", "click")
    got = reference_metrics(dataset, asked, "click", (1,), mask_seen=True)["oracle"]
    assert dataset.events.oracle_N is not None
    truth = dataset.events.oracle_N.tolist()
    rows = [(p, click) for p, (part, *_, click) in zip(truth, log(dataset), strict=True) if part == 2]
    pairs = [(p > q) + (p == q) / 2 for p, y in rows if y for q, z in rows if not z]
    assert got.keys() == {"auc"}
    assert got["auc"]["mean"] == pytest.approx(statistics.fmean(pairs))
    assert got["auc"]["n"] == len(rows)


def test_there_is_no_oracle_where_the_truth_is_unknown(dataset: Dataset) -> None:
    real = replace(dataset, events=replace(dataset.events, oracle_N=None))
    asked = evaluation_requests(real, "test", "click")
    assert reference_metrics(real, asked, "click", (1,), mask_seen=True).keys() == {"popularity", "random"}

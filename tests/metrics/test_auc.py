"""AUC and its grouped mean against scikit-learn, pair counting and a naive DeLong."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from cascade_kd.metrics import auc, gauc, group_auc

# A few scores only, so that ties within and across labels are common.
rows = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1), st.integers(0, 3)), max_size=30)


def columns(drawn):
    table = torch.tensor(drawn, dtype=torch.int64).reshape(len(drawn), 3)
    return table[:, 0].float() / 4, table[:, 1], table[:, 2] * 100 - 50  # groups are any integers


def kernel(positive, negative):
    return 1.0 if positive > negative else 0.5 if positive == negative else 0.0


def naive_delong(score, label):
    """AUC and DeLong's standard error by their O(N^2) definition."""
    positives = [s for s, y in zip(score, label, strict=True) if y == 1]
    negatives = [s for s, y in zip(score, label, strict=True) if y == 0]
    v10 = [sum(kernel(p, n) for n in negatives) / len(negatives) for p in positives]
    v01 = [sum(kernel(p, n) for p in positives) / len(positives) for n in negatives]
    mean = sum(v10) / len(v10)
    if len(positives) < 2 or len(negatives) < 2:
        return mean, None
    return mean, math.sqrt(np.var(v10, ddof=1) / len(v10) + np.var(v01, ddof=1) / len(v01))


@settings(deadline=None, max_examples=100)
@given(rows)
def test_auc_and_its_error_equal_counting_pairs(drawn):
    score, label, _ = columns(drawn)
    got = auc(score, label)
    assert got.n == len(drawn)
    if len(set(label.tolist())) < 2:
        assert got.mean is None
        assert got.why == (f"all {len(drawn)} rows have label {label[0]}" if drawn else "no rows")
        return
    mean, stderr = naive_delong(score.tolist(), label.tolist())
    assert got.mean == pytest.approx(mean, abs=1e-14)
    assert got.stderr == pytest.approx(stderr, abs=1e-14)
    assert got.mean == pytest.approx(roc_auc_score(label, score), abs=1e-12)
    assert (got.why == "") == (stderr is not None)


@settings(deadline=None, max_examples=100)
@given(rows)
def test_gauc_equals_a_loop_over_users(drawn):
    score, label, group = columns(drawn)
    got = gauc(score, label, group)
    users, aucs, weights = sorted(set(group.tolist())), [], []
    for user in users:
        own = group == user
        if len(set(label[own].tolist())) == 2:
            aucs.append(roc_auc_score(label[own], score[own]))
            weights.append(int(own.sum()))
    assert got.n == len(aucs)
    if drawn:
        assert got.extra["left_out_share"] == pytest.approx(1 - len(aucs) / len(users))
        assert got.extra["left_out_rows_share"] == pytest.approx(1 - sum(weights) / len(drawn))
    if not aucs:
        assert got.mean is None
        assert got.why == (f"none of {len(users)} groups has both labels" if drawn else "no rows")
        return
    mean = sum(w * a for w, a in zip(weights, aucs, strict=True)) / sum(weights)
    assert got.mean == pytest.approx(mean, abs=1e-12)
    if len(aucs) == 1:
        assert got.stderr is None
        assert got.why
        return
    n = len(aucs)
    residual = sum((w * (a - mean)) ** 2 for w, a in zip(weights, aucs, strict=True))
    assert got.stderr == pytest.approx(math.sqrt(n / (n - 1) * residual) / sum(weights), abs=1e-12)


def test_group_auc_lists_every_group_in_order():
    score = torch.tensor([0.9, 0.1, 0.5, 0.5, 0.2, 0.3])
    label = torch.tensor([1, 0, 1, 0, 1, 1])
    got = group_auc(score, label, torch.tensor([7, 7, 3, 3, 5, 5]))
    assert got.group_G.tolist() == [3, 5, 7]
    assert got.rows_G.tolist() == [2, 2, 2]
    assert got.auc_G.tolist()[::2] == [0.5, 1.0]
    assert math.isnan(got.auc_G[1])
    assert len(group_auc(score[:0], label[:0], label[:0]).auc_G) == 0


def test_equal_weights_give_the_plain_standard_error():
    """With all users of one size the ratio estimator is the mean: its error is sd / sqrt(n)."""
    generator = torch.Generator().manual_seed(0)
    score, label = torch.rand(40, 10, generator=generator), torch.zeros(40, 10, dtype=torch.int64)
    label[:, :4] = 1
    group = torch.arange(40)[:, None].expand(40, 10)
    got = gauc(score.flatten(), label.flatten(), group.flatten())
    per_user = [roc_auc_score(y, s) for y, s in zip(label, score, strict=True)]
    assert got.mean == pytest.approx(np.mean(per_user), abs=1e-12)
    assert got.stderr == pytest.approx(np.std(per_user, ddof=1) / math.sqrt(40), abs=1e-12)


def test_delongs_error_covers_repeated_draws():
    """The spread of AUC over fresh samples is what one sample's standard error says."""
    generator = torch.Generator().manual_seed(0)
    label = (torch.rand(300, generator=generator) < 0.3).long()
    draws = [auc(torch.randn(300, generator=generator) + label, label) for _ in range(300)]
    spread = np.std([draw.mean for draw in draws], ddof=1)
    assert np.mean([draw.stderr for draw in draws]) == pytest.approx(spread, rel=0.15)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
def test_a_monotone_transform_and_the_order_of_rows_change_nothing(dtype):
    generator = torch.Generator().manual_seed(0)
    score = torch.randint(-20, 20, (500,), generator=generator).to(dtype)
    label = (torch.rand(500, generator=generator) < 0.4).long()
    order = torch.randperm(500, generator=generator)
    want = auc(score, label)
    assert auc(score[order], label[order]) == want
    assert auc((score.double() / 7).exp(), label) == want
    assert auc(-score, 1 - label).mean == pytest.approx(want.mean, abs=1e-15)
    assert auc(score, label.bool()) == want
    assert auc(score, label.float()) == want


def test_infinite_scores_are_ordered_and_nan_is_not():
    score, label = torch.tensor([-math.inf, 0.0, math.inf, 1.0]), torch.tensor([0, 0, 1, 1])
    assert auc(score, label).mean == 1.0
    score[3] = math.nan
    assert auc(score, label).why == "1 of 4 scores are NaN"
    assert gauc(score, label, label).mean is None


def test_columns_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one length"):
        auc(torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match="one length"):
        gauc(torch.zeros(3), torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match="0 or 1"):
        auc(torch.zeros(3), torch.tensor([0, 1, 2]))

"""Log loss, calibration error and Platt scaling against scikit-learn and loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from cascade_kd.metrics import calibration_curve, churn, ece, logloss, platt

rows = st.lists(st.tuples(st.integers(-4, 4), st.integers(0, 1)), min_size=1, max_size=40)


def columns(drawn):
    table = torch.tensor(drawn, dtype=torch.int64)
    return table[:, 0].double() / 2, table[:, 1]


def sample(num, seed=0, slope=1.0, shift=0.0):
    """Rows whose true log-odds are ``slope * logit + shift``."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num, generator=generator, dtype=torch.float64)
    label = (torch.rand(num, generator=generator, dtype=torch.float64) < (slope * logits + shift).sigmoid()).long()
    return logits, label


@settings(deadline=None, max_examples=100)
@given(rows)
def test_logloss_equals_scikit_learn(drawn):
    logits, label = columns(drawn)
    got = logloss(logits, label)
    p, y = logits.sigmoid().numpy(), label.numpy()
    assert got.mean == pytest.approx(log_loss(y, p, labels=[0, 1]), rel=1e-12)
    assert got.n == len(drawn)
    per_row = -np.where(y == 1, np.log(p), np.log(1 - p))
    want = pytest.approx(np.std(per_row, ddof=1) / math.sqrt(len(drawn)), abs=1e-12) if len(drawn) > 1 else None
    assert got.stderr == want


def test_logloss_is_not_clipped():
    assert logloss(torch.tensor([300.0, -2.0]), torch.tensor([0, 0])).mean == pytest.approx(
        (300 + math.log1p(math.exp(-2))) / 2
    )
    lost = logloss(torch.tensor([math.inf, 0.0]), torch.tensor([0, 1]))
    assert (lost.mean, lost.stderr, lost.why) == (None, None, "the mean is inf")
    assert logloss(torch.tensor([math.nan]), torch.tensor([0])).why == "1 of 1 scores are NaN"
    assert logloss(torch.zeros(0), torch.zeros(0)).why == "no rows"


@pytest.mark.parametrize("bins", [1, 5, 20])
def test_ece_without_ties_equals_cutting_the_sorted_rows(bins):
    logits, label = sample(400)
    order = logits.argsort()
    want = 0.0
    for part in np.array_split(order.numpy(), bins):
        want += len(part) / 400 * abs(float(logits[part].sigmoid().mean()) - float(label[part].double().mean()))
    got = ece(logits, label, bins)
    assert got.mean == pytest.approx(want, abs=1e-12)
    assert (got.stderr, got.n, got.why) == (None, 400, "")


@settings(deadline=None, max_examples=100)
@given(rows, st.integers(1, 6))
def test_bins_by_their_definition(drawn, bins):
    logits, label = columns(drawn)
    by_bin = {}
    for x, y in zip(logits.tolist(), label.tolist(), strict=True):
        start, end = int((logits < x).sum()), int((logits <= x).sum())
        by_bin.setdefault(bins * (start + end) // (2 * len(drawn)), []).append((1 / (1 + math.exp(-x)), y))
    want = [(*np.mean(part, axis=0), len(part)) for _, part in sorted(by_bin.items())]
    curve = calibration_curve(logits, label, bins)
    assert curve.predicted_b.tolist() == pytest.approx([p for p, _, _ in want], abs=1e-12)
    assert curve.observed_b.tolist() == pytest.approx([y for _, y, _ in want], abs=1e-12)
    assert curve.count_b.tolist() == [n for _, _, n in want]
    assert ece(logits, label, bins).mean == pytest.approx(
        sum(n * abs(p - y) for p, y, n in want) / len(drawn), abs=1e-12
    )


@pytest.mark.parametrize("num", [20, 37, 399, 1001])
def test_bins_without_ties_differ_by_one_row_at_most(num):
    count = calibration_curve(*sample(num)).count_b
    assert len(count) == 20
    assert count.max() - count.min() <= 1
    assert count.sum() == num


def test_the_order_of_rows_does_not_matter_even_with_ties():
    logits, label = sample(300)
    logits = (logits * 2).round()
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    assert ece(logits[order], label[order]) == ece(logits, label)


def test_ece_of_known_predictions():
    logits = torch.full((10,), math.log(3.0), dtype=torch.float64)
    label = torch.tensor([1] * 5 + [0] * 5)
    assert ece(logits, label).mean == pytest.approx(3 / 4 - 1 / 2)
    true, _ = sample(50_000)
    assert ece(*sample(50_000)).mean < 0.01  # predictions that are true
    assert ece(3 * true, sample(50_000)[1]).mean > 0.05
    assert ece(torch.tensor([math.nan]), torch.tensor([1])).mean is None
    assert len(calibration_curve(torch.zeros(0), torch.zeros(0)).count_b) == 0


class Identity(LogisticRegression):
    """A 'classifier' whose decision function is its first feature."""

    def decision_function(self, X):
        return X[:, 0]


def test_platt_equals_scikit_learns_sigmoid_calibration():
    logits, label = sample(200, slope=0.4, shift=-1.0)
    X = logits.numpy()[:, None]
    fitted = CalibratedClassifierCV(FrozenEstimator(Identity().fit(X, label)), method="sigmoid").fit(X, label)
    a, b = platt(logits, label)
    got = (a * logits + b).sigmoid()
    assert got.numpy() == pytest.approx(fitted.predict_proba(X)[:, 1], abs=1e-4)  # sklearn stops early


def test_platt_finds_the_truth_and_the_minimum():
    logits, label = sample(100_000, slope=0.4, shift=-1.0)
    a, b = platt(logits, label)
    assert a == pytest.approx(0.4, abs=0.01)
    assert b == pytest.approx(-1.0, abs=0.02)
    at = logloss(a * logits + b, label).mean
    for da, db in ((0.01, 0), (-0.01, 0), (0, 0.01), (0, -0.01)):
        assert logloss((a + da) * logits + b + db, label).mean > at
    # At the minimum predictions and targets have the same sum, and the same sum weighted by the logit.
    positives = int(label.sum())
    target = label.double() * (positives + 1) / (positives + 2) + (1 - label).double() / (100_002 - positives)
    residual = (a * logits + b).sigmoid() - target
    assert residual.mean().item() == pytest.approx(0, abs=1e-13)
    assert (residual * logits).mean().item() == pytest.approx(0, abs=1e-13)


@pytest.mark.parametrize(("scale", "shift"), [(1e6, 0.0), (1e-6, 0.0), (1.0, 1e4), (-3.0, 2.0)])
def test_platt_does_not_depend_on_the_unit_of_the_scores(scale, shift):
    logits, label = sample(500, slope=0.5)
    a, b = platt(logits, label)
    c, d = platt(scale * logits + shift, label)
    assert c * scale == pytest.approx(a, rel=1e-6)
    assert c * shift + d == pytest.approx(b, rel=1e-6, abs=1e-6)


def test_platt_stays_finite_where_a_plain_fit_does_not():
    x = torch.tensor([-2.0, -1.0, 1.0, 2.0])
    a, b = platt(x, torch.tensor([0, 0, 1, 1]))  # separable
    assert 0 < a < 10
    assert abs(b) < 1e-6
    a, b = platt(x, torch.ones(4, dtype=torch.int64))  # one class: its smoothed rate, 5 / 6
    assert (a * x + b).sigmoid().tolist() == pytest.approx([5 / 6] * 4, abs=1e-6)
    a, b = platt(torch.full((4,), 7.0), torch.tensor([0, 0, 0, 1]))  # constant scores
    assert torch.tensor(7.0 * a + b).sigmoid().item() == pytest.approx((2 / 3 + 3 * 1 / 5) / 4)
    a, b = platt(torch.full((7,), 0.1, dtype=torch.float64), torch.tensor([0, 1] * 3 + [0]))
    assert abs(a) < 1e-6
    assert all(map(math.isfinite, platt(torch.tensor([1e-3, 1e3, 1e3, -1e3]), torch.tensor([1, 0, 1, 0]))))


@pytest.mark.parametrize("bad", [[], [math.nan, 1.0], [math.inf, 0.0]])
def test_platt_refuses_what_it_cannot_fit(bad):
    with pytest.raises(ValueError, match="finite logits"):
        platt(torch.tensor(bad), torch.zeros(len(bad)))


def test_churn_is_the_mean_distance_of_probabilities():
    a, b, c = (torch.tensor([math.log(p / (1 - p)) for p in column]) for column in ((0.5, 0.8), (0.6, 0.5), (0.1, 0.8)))
    assert churn(a, [b]).mean == pytest.approx((0.1 + 0.3) / 2)
    assert churn(b, [a]).mean == churn(a, [b]).mean
    assert churn(a, [a]).mean == 0.0
    assert churn(a, [b, c]).mean == pytest.approx(((0.1 + 0.4) / 2 + (0.3 + 0.0) / 2) / 2)
    assert (churn(a, [b]).n, churn(a, []).mean, churn(a, [b * math.nan]).why) == (2, None, "2 of 2 scores are NaN")

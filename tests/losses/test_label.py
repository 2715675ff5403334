"""Losses against labels: worked values and known equalities."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from cascade_kd.losses import bce, bpr, ccl, sampled_softmax


def test_bce_is_the_log_of_the_odds():
    got = bce(torch.tensor([math.log(3.0), math.log(3.0)]), torch.tensor([1, 0]))
    assert_close(got, torch.tensor([-math.log(3 / 4), -math.log(1 / 4)]))


def test_bce_of_a_soft_label_mixes_both():
    x = torch.tensor([0.3, -1.2])
    assert_close(bce(x, torch.tensor([0.25, 0.25])), 0.25 * bce(x, torch.ones(2)) + 0.75 * bce(x, torch.zeros(2)))


def test_bce_at_100_is_the_logit_itself():
    x = torch.tensor([100.0, -100.0, 100.0, -100.0])
    assert_close(bce(x, torch.tensor([0.0, 1.0, 1.0, 0.0])), torch.tensor([100.0, 100.0, 0.0, 0.0]))


def test_bce_is_scikit_learns_log_loss():
    from sklearn.metrics import log_loss

    x = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = (torch.rand(50, generator=torch.Generator().manual_seed(1)) < 0.4).long()
    assert bce(x, y).mean().item() == pytest.approx(log_loss(y, x.sigmoid()), rel=1e-12)


def test_sampled_softmax_over_all_columns_is_cross_entropy():
    score = torch.randn(4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.tensor([0, 6, 3, 3])
    got = sampled_softmax(score, target, log_q_N=None, where_BN=torch.ones(4, 7, dtype=torch.bool))
    assert_close(got, F.cross_entropy(score, target, reduction="none"))


def test_a_worked_value_with_the_correction():
    # Scores 0 and 0, drawn with probabilities 3/4 and 1/4: corrected odds of the first column are 4/3 to 4.
    got = sampled_softmax(
        torch.zeros(1, 2),
        torch.tensor([0]),
        log_q_N=torch.tensor([0.75, 0.25]).log(),
        where_BN=torch.tensor([[True, True]]),
    )
    assert_close(got, torch.tensor([-math.log((4 / 3) / (4 / 3 + 4))]))


def test_a_constant_log_q_is_no_correction():
    score, where = torch.tensor([[0.2, 1.0, -1.0]]), torch.tensor([[True, True, True]])
    plain = sampled_softmax(score, torch.tensor([1]), where_BN=where)
    assert_close(sampled_softmax(score, torch.tensor([1]), log_q_N=torch.full((3,), -4.0), where_BN=where), plain)


def test_the_correction_recovers_the_full_softmax_in_expectation():
    """Sums of exp(score - log q) over draws from q estimate the full partition function without bias."""
    generator = torch.Generator().manual_seed(0)
    score = torch.tensor([1.0, 0.0, -1.0, 0.5], dtype=torch.float64)
    q = torch.tensor([0.7, 0.1, 0.1, 0.1], dtype=torch.float64)
    columns = torch.multinomial(q, 200_000, replacement=True, generator=generator)
    columns[0] = 2  # the target
    got = sampled_softmax(
        score[columns][None],
        torch.tensor([0]),
        log_q_N=q[columns].log() + math.log(len(columns)),
        where_BN=torch.ones(1, len(columns), dtype=torch.bool),
    )
    # -log softmax = log Z - s with the target's own term -log(q N) on top.
    want = score.logsumexp(0) - score[2] + math.log(0.1 * len(columns))
    assert got.item() == pytest.approx(want.item(), abs=0.01)


def test_an_accidental_hit_masked_by_the_caller_does_not_count():
    score = torch.tensor([[2.0, 2.0, 0.0]])
    hit_out = sampled_softmax(score, torch.tensor([0]), where_BN=torch.tensor([[True, False, True]]))
    assert_close(hit_out, torch.tensor([math.log(1 + math.exp(-2.0))]))


def test_a_row_whose_target_is_masked_is_no_example():
    score = torch.tensor([[2.0, 1.0]], requires_grad=True)
    got = sampled_softmax(score, torch.tensor([0]), where_BN=torch.tensor([[False, True]]))
    got.sum().backward()
    assert got.item() == 0
    assert not score.grad.any()


def test_bpr_is_the_log_of_the_odds_that_the_target_comes_first():
    score = torch.tensor([[0.0, math.log(3.0), math.log(3.0) - math.log(7.0)]])
    got = bpr(score, torch.tensor([1]), where_BN=torch.tensor([[True, True, True]]))
    assert_close(got, torch.tensor([-(math.log(3 / 4) + math.log(7 / 8)) / 2]))
    assert_close(
        bpr(score, torch.tensor([1]), where_BN=torch.tensor([[True, True, False]])), torch.tensor([math.log(4 / 3)])
    )


def test_bpr_and_ccl_of_a_target_alone():
    score, alone = torch.tensor([[0.25, 9.0]]), torch.tensor([[True, False]])
    assert bpr(score, torch.tensor([0]), where_BN=alone).item() == 0
    assert ccl(score, torch.tensor([0]), margin=0.5, negative_weight=2.0, where_BN=alone).item() == 0.75


def test_a_worked_value_of_ccl():
    cosine = torch.tensor([[0.5, 0.95, 0.7, 0.91]], dtype=torch.float64)
    got = ccl(cosine, torch.tensor([2]), margin=0.9, negative_weight=150.0, where_BN=torch.ones(1, 4, dtype=torch.bool))
    assert got.item() == pytest.approx((1 - 0.7) + 150 / 3 * ((0.95 - 0.9) + (0.91 - 0.9)))


def test_ccl_has_no_gradient_from_negatives_below_the_margin():
    cosine = torch.tensor([[0.7, 0.5, 0.95]], requires_grad=True)
    ccl(
        cosine, torch.tensor([0]), margin=0.9, negative_weight=4.0, where_BN=torch.ones(1, 3, dtype=torch.bool)
    ).sum().backward()
    assert_close(cosine.grad, torch.tensor([[-1.0, 0.0, 2.0]]))

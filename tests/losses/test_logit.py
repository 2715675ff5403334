"""Distillation losses on logits: golden values (float64, as arithmetic where short), limits and equalities."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from cascade_kd.losses import (
    bce,
    clid_listwise,
    cross_entropy_binary,
    kl_binary,
    kl_listwise,
    mimic,
    mse_logits,
    mse_probabilities,
    mse_probabilities_listwise,
)

Z = torch.tensor([[2.0, 1.0, -1.0]], dtype=torch.float64)  # teacher
L = torch.tensor([[0.5, 0.2, -0.3]], dtype=torch.float64)  # student
WHERE = torch.ones(1, 3, dtype=torch.bool)
S4 = torch.tensor([[1.0, 0.5, -0.2, 0.3]], dtype=torch.float64)  # a student's list of four
T4 = torch.tensor([[2.0, 1.0, 0.0, -1.0]], dtype=torch.float64)  # its teacher's
BINARY = [(0.5, 2.0), (-3.0, 1.0), (20.0, -7.0), (0.0, 0.0)]


def kl(student, teacher, temperature=1.0):
    return kl_listwise(student, teacher, where_BK=torch.ones_like(student, dtype=torch.bool), temperature=temperature)


def value_and_gradient(loss, student):
    student = student.clone().requires_grad_()
    value = loss(student)
    return value.detach(), torch.autograd.grad(value.sum(), student)[0]


def test_kl_at_temperature_1():
    p = [math.exp(x) / sum(map(math.exp, (0.5, 0.2, -0.3))) for x in (0.5, 0.2, -0.3)]
    q = [math.exp(x) / sum(map(math.exp, (2.0, 1.0, -1.0))) for x in (2.0, 1.0, -1.0)]
    value, slope = value_and_gradient(lambda x: kl(x, Z), L)
    assert value.item() == pytest.approx(sum(b * math.log(b / a) for a, b in zip(p, q, strict=True)), rel=1e-12)
    assert value.item() == pytest.approx(0.1760471509, abs=5e-11)
    assert_close(slope[0], torch.tensor([a - b for a, b in zip(p, q, strict=True)], dtype=torch.float64))


def test_kl_at_temperature_4_carries_t_squared_in_value_and_gradient():
    value, slope = value_and_gradient(lambda x: kl(x, Z, 4.0), L)
    assert value.item() == pytest.approx(0.3667137333, abs=5e-11)
    want = torch.tensor([[-0.3204432, -0.0326394, 0.3530826]], dtype=torch.float64)
    assert_close(slope, want, rtol=0, atol=5e-8)


def test_kl_at_temperature_100_is_near_its_limit():
    value, slope = value_and_gradient(lambda x: kl(x, Z, 100.0), L)
    assert value.item() == pytest.approx(0.4195024702, abs=5e-11)
    gap = (L - L.mean()) - (Z - Z.mean())
    assert (gap.square().sum() / (2 * 3)).item() == pytest.approx(0.4211111111, abs=5e-11)
    assert_close(slope, gap / 3, rtol=0, atol=5e-3)


def test_the_full_loss_of_hinton():
    """alpha T^2 CE(q^T, p^T) + (1 - alpha) CE(y, p), alpha = .9, T = 4, y = 0; KL lacks the teacher's entropy."""
    q = (Z / 4).softmax(-1)
    entropy = -(q * q.log()).sum()
    soft = kl(L, Z, 4.0) + 16 * entropy
    assert soft.item() == pytest.approx(17.2516947863, abs=5e-11)
    hard = F.cross_entropy(L, torch.tensor([0]))
    assert (0.9 * soft + 0.1 * hard).item() == pytest.approx(15.6049221826, abs=5e-11)


def test_kl_against_torchs_batchmean():
    student, teacher = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    want = F.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="batchmean")
    assert_close(kl(student, teacher).mean(), want)


def test_mse_golden_values():
    assert mse_logits(L, Z).sum().item() == pytest.approx(1.5**2 + 0.8**2 + 0.7**2)  # 3.38
    _, slope = value_and_gradient(lambda x: mse_logits(x, Z), L)
    assert_close(slope, torch.tensor([[-3.0, -1.6, 1.4]], dtype=torch.float64))
    value, slope = value_and_gradient(lambda x: mse_probabilities_listwise(x, Z, where_BK=WHERE), L)
    assert value.item() == pytest.approx(0.0970144175, abs=5e-11)
    assert_close(slope, torch.tensor([[-0.1796419, 0.0885046, 0.0911372]], dtype=torch.float64), rtol=0, atol=5e-8)
    odds = mse_probabilities(torch.tensor([math.log(3.0)]), torch.tensor([0.0]))
    assert_close(odds, torch.tensor([(3 / 4 - 1 / 2) ** 2]))


def test_rocket_total_loss():
    """H(y, p) + H(y, q) + lambda |l - z|^2 of methods' golden, y = 0, lambda = .03."""
    target = torch.tensor([0])
    total = F.cross_entropy(L, target) + F.cross_entropy(Z, target) + 0.03 * mse_logits(L, Z).sum()
    assert total.item() == pytest.approx(1.2343809660, abs=5e-11)


@pytest.mark.parametrize("temperature", [1e3, 1e4])
def test_hot_lists_are_centred_squared_differences(temperature):
    student, teacher = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gap = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    value, slope = value_and_gradient(lambda x: kl(x, teacher, temperature), student)
    assert_close(value, gap.square().sum(-1) / (2 * 5), rtol=10 / temperature, atol=1e-6)
    assert_close(slope, gap / 5, rtol=0, atol=10 / temperature)


@pytest.mark.parametrize("temperature", [1e3, 1e4])
def test_hot_rows_are_squared_differences(temperature):
    student, teacher = torch.tensor(BINARY, dtype=torch.float64).T
    value, slope = value_and_gradient(lambda x: kl_binary(x, teacher, temperature=temperature), student)
    assert_close(value, (student - teacher).square() / 8, rtol=1e-3, atol=1e-6)
    assert_close(slope, (student - teacher) / 4, rtol=1e-3, atol=1e-9)


def test_a_certain_teacher_is_a_label():
    certain = torch.tensor([[0.0, 1e3, 0.0]], dtype=torch.float64)
    value, slope = value_and_gradient(lambda x: kl(x, certain), L)
    want, want_slope = value_and_gradient(lambda x: F.cross_entropy(x, torch.tensor([1]), reduction="none"), L)
    assert_close(value, want)
    assert_close(slope, want_slope)
    row, yes = torch.tensor([0.7, -0.7]), torch.tensor([1e3, -1e3])
    assert_close(kl_binary(row, yes), bce(row, torch.tensor([1.0, 0.0])))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_two_classes_are_one_logit_difference(temperature):
    student, teacher = torch.randn(2, 8, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 5
    want = kl_binary(student[:, 0] - student[:, 1], teacher[:, 0] - teacher[:, 1], temperature=temperature)
    assert_close(kl(student, teacher, temperature), want)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_binary_kl_written_out(temperature):
    for x, z in BINARY:
        p, q = (1 / (1 + math.exp(-y / temperature)) for y in (x, z))
        want = temperature**2 * (q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p)))
        got = kl_binary(torch.tensor([x]).double(), torch.tensor([z]).double(), temperature=temperature)
        assert got.item() == pytest.approx(want, rel=1e-6, abs=1e-12)


def test_kl_is_not_the_division_of_probabilities():
    """A known mistake: dividing probabilities by T instead of logits."""
    wrong = 16 * ((Z.softmax(-1) / 4) * ((Z.softmax(-1) / 4).log() - (L.softmax(-1) / 4).log())).sum()
    assert abs(kl(L, Z, 4.0).item() - wrong.item()) > 0.01


def test_a_list_far_from_0_keeps_its_digits():
    far = kl((L + 3e4).float(), (Z - 2e4).float())
    assert far.item() == pytest.approx(0.1760471509, rel=5e-3)  # the logits themselves are rounded to 1 / 512


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be"):
        kl(L, Z, temperature)
    with pytest.raises(ValueError, match="temperature must be"):
        kl_binary(L[0], Z[0], temperature=temperature)


def clid(student, teacher):
    return clid_listwise(student, teacher, where_BK=torch.ones_like(student, dtype=torch.bool))


def test_privileged_features_distillation():
    """f_s = .3, f_t = 1.2, y = 1, lambda = .5: half the label's loss, half the teacher's."""
    student, teacher, yes = (torch.tensor([x], dtype=torch.float64) for x in (0.3, 1.2, 1.0))
    p, q = 1 / (1 + math.exp(-0.3)), 1 / (1 + math.exp(-1.2))
    total = lambda x: 0.5 * bce(x, yes) + 0.5 * cross_entropy_binary(x, teacher)  # noqa: E731
    value, slope = value_and_gradient(total, student)
    assert value.item() == pytest.approx(-0.5 * (math.log(p) + q * math.log(p) + (1 - q) * math.log(1 - p)), rel=1e-12)
    assert value.item() == pytest.approx(0.5890765269, abs=5e-11)
    assert slope.item() == pytest.approx(0.5 * (p - 1) + 0.5 * (p - q), rel=1e-12)
    assert slope.item() == pytest.approx(-0.3098198749, abs=5e-11)
    assert_close(value, bce(student, 0.5 * yes + 0.5 * teacher.sigmoid()))


def test_binary_cross_entropy_is_kl_and_the_teachers_entropy():
    student, teacher = torch.tensor(BINARY, dtype=torch.float64).T
    entropy = torch.special.entr(teacher.sigmoid()) + torch.special.entr((-teacher).sigmoid())
    assert_close(cross_entropy_binary(student, teacher), kl_binary(student, teacher) + entropy)
    assert_close(cross_entropy_binary(teacher, teacher), entropy)


def test_a_mimics_target_is_the_standardised_logit():
    student, teacher = torch.tensor([0.5, 1.5, 0.0]), torch.tensor([2.0, 5.0, 0.5])
    value, slope = value_and_gradient(lambda x: mimic(x, teacher, mean=0.5, sd=3.0), student)
    assert_close(value, torch.tensor([0.0, (1.5 - (5.0 - 0.5) / 3) ** 2 / 2, 0.0]))
    assert_close(slope, torch.tensor([0.5 - 1.5 / 3, 1.5 - 4.5 / 3, 0.0]))
    far = mimic(torch.tensor([2.0]), torch.tensor([-4.0]), mean=2.0, sd=4.0)
    assert_close(far, torch.tensor([(2.0 - -6.0 / 4) ** 2 / 2]))  # 6.125


def test_hot_lists_are_mimicked():
    """Hinton et al., section 2.1: at a high temperature KD is the mimic of centred logits, divided by their number."""
    student, teacher = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    student, teacher = (x - x.mean(-1, keepdim=True) for x in (student, teacher))
    want = mimic(student, teacher, mean=0.0, sd=1.0).mean(-1)
    assert_close(kl(student, teacher, 1e4), want, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("mean", "sd"), [(0.0, 0.0), (0.0, -1.0), (0.0, float("inf")), (float("nan"), 1.0)])
def test_moments_that_standardise_nothing_are_refused(mean, sd):
    with pytest.raises(ValueError, match="mean must be finite and sd"):
        mimic(L, Z, mean=mean, sd=sd)


def test_listnet_is_kl_and_the_teachers_entropy():
    entropy = torch.special.entr(T4.softmax(-1)).sum(-1)
    assert (kl(S4, T4) + entropy).item() == pytest.approx(1.1227186469, abs=5e-11)


def test_clid_golden_value():
    p, q = ([1 / (1 + math.exp(-x)) for x in row] for row in (S4[0].tolist(), T4[0].tolist()))
    p, q = ([x / sum(row) for x in row] for row in (p, q))
    assert clid(S4, T4).item() == pytest.approx(sum(b * math.log(b / a) for a, b in zip(p, q, strict=True)), rel=1e-12)
    entropy = -sum(b * math.log(b) for b in q)
    assert clid(S4, T4).item() + entropy == pytest.approx(1.3580207857, abs=5e-11)


@pytest.mark.parametrize("factor", [0.5, 0.01, 1.1])
def test_clid_leaves_the_factor_of_a_lists_probabilities_to_the_label(factor):
    scaled = (factor * S4.sigmoid()).logit()
    assert_close(clid(scaled, T4), clid(S4, T4))
    value, slope = value_and_gradient(lambda x: clid(x, T4), (factor * T4.sigmoid()).logit())
    assert_close(value, torch.zeros(1).double(), rtol=0, atol=1e-15)
    assert_close(slope, torch.zeros(1, 4).double(), rtol=0, atol=1e-15)


def test_clid_is_not_the_softmax_of_the_logits():
    assert abs(clid(S4, T4).item() - kl(S4, T4).item()) > 0.01


def test_clid_of_unlikely_items_is_the_softmax():
    """sigmoid(l) -> exp(l) as l falls."""
    assert_close(clid(S4 - 30, T4 - 30), kl(S4, T4))

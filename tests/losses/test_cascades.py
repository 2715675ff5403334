"""Cascade objectives: worked values, limits, and the plain formulas written out. Laws are in test_order_laws.py."""

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from cascade_kd.losses import (
    arf,
    arf_global,
    arf_relax,
    copr,
    fused_score,
    icc,
    lcron,
    lcron_end_to_end,
    lcron_single,
    neural_sort,
    rankflow_tutoring,
    stage_pairwise,
    top_places,
)

S = torch.tensor([[1.0, 0.5, -0.2, 0.3]], dtype=torch.float64)
S2 = torch.tensor([[0.2, 0.9, 0.1, -0.4]], dtype=torch.float64)
WHERE = torch.ones(1, 4, dtype=torch.bool)
FIRST = torch.tensor([[True, False, False, False]])


def noise(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def full(score):
    return torch.ones_like(score, dtype=torch.bool)


def softplus(x):
    return math.log1p(math.exp(x))


def gradients(loss, *scores):
    scores = [score.clone().requires_grad_() for score in scores]
    return torch.autograd.grad(loss(*scores).sum(), scores)


# NeuralSort


def plain_neural_sort(score, temperature):
    n = score.shape[1]
    gaps = (score[:, :, None] - score[:, None, :]).abs().sum(dim=2)
    slope = torch.tensor([n + 1 - 2 * r for r in range(1, n + 1)], dtype=score.dtype)
    return ((slope[:, None] * score[:, None, :] - gaps[:, None, :]) / temperature).softmax(dim=2)


def test_neural_sort():
    p = neural_sort(S, where_BK=WHERE, temperature=1.0)
    assert_close(p, plain_neural_sort(S, 1.0))
    gaps = [sum(abs(a - b) for b in S[0].tolist()) for a in S[0].tolist()]
    first = [math.exp(3 * a - gap) for a, gap in zip(S[0].tolist(), gaps, strict=True)]
    assert p[0, 0].tolist() == pytest.approx([x / sum(first) for x in first], rel=1e-12)
    assert p[0, 0].tolist() == pytest.approx([0.5084594, 0.3083962, 0.0138930, 0.1692514], abs=5e-8)
    assert p.sum(dim=1)[0].tolist() == pytest.approx([0.8249716, 1.1750284, 0.8249716, 1.1750284], abs=5e-8)
    assert_close(p.sum(dim=2), torch.ones(1, 4, dtype=torch.float64))


def test_neural_sort_at_low_temperature_is_the_permutation_of_the_order():
    score = noise(5, 7)
    p = neural_sort(score, where_BK=full(score), temperature=1e-5)
    order = score.argsort(dim=1, descending=True)
    assert_close(p, torch.nn.functional.one_hot(order, 7).double(), rtol=0, atol=1e-3)


def test_neural_sort_of_a_padded_list_is_that_of_the_list():
    where = torch.tensor([[True, False, True, True]])
    p = neural_sort(S, where_BK=where, temperature=0.5)[0]
    left = [0, 2, 3]
    assert_close(p[:3][:, left], plain_neural_sort(S[:, left], 0.5)[0])
    assert not p[3].any()
    assert not p[:, 1].any()


# LCRON


def plain_memberships(score, q, temperature):
    """The rows up to q and those beyond it, over their column's sum under stop-gradient."""
    p = plain_neural_sort(score, temperature)
    column = p.sum(dim=1).detach()
    return p[:, :q].sum(dim=1) / column, p[:, q:].sum(dim=1) / column


def plain_end_to_end(scores, truth, keeps, temperature):
    stages = [plain_memberships(s, q, temperature) for s, q in zip(scores, keeps, strict=True)]
    survives = math.prod(stage[0] for stage in stages)
    lost = 1 - math.prod(1 - stage[1] for stage in stages)
    return -torch.where(truth, survives.log(), lost.log()).mean(dim=1)


def test_lcron_end_to_end():
    p = plain_memberships(S, 2, 1.0)[0] * plain_memberships(S2, 1, 1.0)[0]
    assert p[0].tolist() == pytest.approx([0.1948231, 0.4049720, 0.0162447, 0.0081111], abs=5e-8)
    got = lcron_end_to_end([S, S2], FIRST, where_BK=WHERE, keeps=[2, 1], temperature=1.0).item()
    assert -math.log(p[0, 0]) == pytest.approx(1.6356632, abs=5e-8)
    assert 4 * got == pytest.approx(-math.log(p[0, 0]) - sum(math.log(1 - x) for x in p[0, 1:].tolist()), rel=1e-12)
    assert 4 * got == pytest.approx(2.1793322, abs=5e-8)


@pytest.mark.parametrize("temperature", [0.3, 5.0])
def test_lcron_has_the_value_and_the_gradient_of_the_plain_formula(temperature):
    scores, truth = [noise(6, 7, seed=seed) for seed in range(3)], noise(6, 7, seed=9) > 0.3
    keeps = [5, 4, 2]

    def ours(*scores):
        return lcron_end_to_end(scores, truth, where_BK=full(truth), keeps=keeps, temperature=temperature)

    def plain(*scores):
        return plain_end_to_end(scores, truth, keeps, temperature)

    assert_close(ours(*scores), plain(*scores))
    for got, want in zip(gradients(ours, *scores), gradients(plain, *scores), strict=True):
        assert_close(got, want)
        assert got.abs().sum() > 0  # reaches every stage

    def single(score):
        return lcron_single(score, truth, where_BK=full(truth), keep=3, temperature=temperature)

    def plain_single(score):
        inside, outside = plain_memberships(score, 3, temperature)
        return -torch.where(truth, inside, outside).log().mean(dim=1)

    assert_close(single(scores[0]), plain_single(scores[0]))
    assert_close(gradients(single, scores[0]), gradients(plain_single, scores[0]))


def test_identical_stages_survive_by_a_power():
    score = noise(3, 5)
    inside, _ = plain_memberships(score, 2, 1.0)
    truth = full(score)
    for n in (1, 2, 3):
        got = lcron_end_to_end([score] * n, truth, where_BK=truth, keeps=[2] * n, temperature=1.0)
        assert_close(got, -n * inside.log().mean(dim=1))


def test_lcron_weighs_its_parts_by_learnable_weights():
    truth, weight = top_places(WHERE, 2), torch.tensor([0.8, 2.0], dtype=torch.float64)
    parts = [lcron_single(s, truth, where_BK=WHERE, keep=2, temperature=1.0) for s in (S, S2)]
    joint = lcron_end_to_end([S, S2], truth, where_BK=WHERE, keeps=[2, 2], temperature=1.0)
    got = lcron([S, S2], truth, weight, where_BK=WHERE, keeps=[2, 2], temperature=1.0)
    assert_close(got, parts[0] / (2 * 0.8**2) + parts[1] / (2 * 2.0**2) + joint + math.log(0.8 * 2.0))
    (slope,) = gradients(lambda w: lcron([S, S2], truth, w, where_BK=WHERE, keeps=[2, 2], temperature=1.0), weight)
    assert_close(slope, torch.stack([-part[0] / w**3 + 1 / w for part, w in zip(parts, weight, strict=True)]))


def test_a_stage_that_keeps_the_whole_list_cuts_nothing():
    for keep in (4, 9):
        assert not lcron_single(S, FIRST, where_BK=WHERE, keep=keep, temperature=1.0).any()
        got = lcron_end_to_end([S, S2], FIRST, where_BK=WHERE, keeps=[keep, 1], temperature=1.0)
        assert_close(got, lcron_end_to_end([S2], FIRST, where_BK=WHERE, keeps=[1], temperature=1.0))
        (slope,) = gradients(
            lambda s, keep=keep: lcron_end_to_end([s, S2], FIRST, where_BK=WHERE, keeps=[keep, 1], temperature=1.0), S
        )
        assert not slope.any()
    with pytest.raises(ValueError, match="every stage needs"):
        lcron_end_to_end([S, S2], FIRST, where_BK=WHERE, keeps=[1], temperature=1.0)


def test_a_positive_that_is_surely_lost_is_still_pulled_up():
    """Scores of +-100 in float32: the plain formula is log 0 there."""
    score = torch.tensor([[-100.0, 100.0, 50.0, 0.0]])
    (slope,) = gradients(
        lambda s: lcron_end_to_end([s, s], FIRST, where_BK=WHERE, keeps=[2, 1], temperature=1.0), score
    )
    assert slope.isfinite().all()
    assert slope[0, 0] < -1


def test_the_chance_to_survive_is_at_least_the_product():
    """Two stages, independent Plackett draws of each, every pair of orders: the bound behind L_e2e."""

    def orders(score):
        for order in itertools.permutations(range(len(score))):
            weights = [math.exp(score[x]) for x in order]
            yield order, math.prod(w / sum(weights[i:]) for i, w in enumerate(weights))

    for q1, q2 in ((3, 2), (2, 1), (3, 1)):
        survive, inside_1, inside_2 = [0.0] * 4, [0.0] * 4, [0.0] * 4
        for first, p1 in orders(S[0].tolist()):
            for second, p2 in orders(S2[0].tolist()):
                left = [x for x in second if x in first[:q1]][:q2]
                for item in range(4):
                    survive[item] += p1 * p2 * (item in left)
                    inside_1[item] += p1 * p2 * (item in first[:q1])
                    inside_2[item] += p1 * p2 * (item in second[:q2])
        assert all(s >= a * b - 1e-12 for s, a, b in zip(survive, inside_1, inside_2, strict=True))


# ARF


def test_arf_is_the_plain_formula():
    score, truth = noise(6, 7), noise(6, 7, seed=3) > 0.2

    def plain_relax(score):
        mean = plain_neural_sort(score, 2.0)[:, :3].mean(dim=1)
        return (-mean.log() * truth).mean(dim=1)

    def plain_global(score):
        return -plain_neural_sort(score, 2.0).diagonal(dim1=1, dim2=2).log().sum(dim=1) / 49

    def relax(score):
        return arf_relax(score, truth, where_BK=full(truth), keep=3, temperature=2.0)

    def permutation(score):
        return arf_global(score, where_BK=full(truth), temperature=2.0)

    for ours, plain in ((relax, plain_relax), (permutation, plain_global)):
        assert_close(ours(score), plain(score))
        assert_close(gradients(ours, score), gradients(plain, score))
    weight = torch.tensor(1.7, dtype=torch.float64)
    got = arf(score, truth, weight, where_BK=full(truth), keep=3, temperature=2.0)
    assert_close(got, relax(score) + permutation(score) / (2 * 1.7**2) + math.log(1.7))
    got = arf(score, truth, weight, where_BK=full(truth), keep=3, temperature=2.0, two_sided=True)
    single = lcron_single(score, truth, where_BK=full(truth), keep=3, temperature=2.0)
    assert_close(got, single + permutation(score) / (2 * 1.7**2) + math.log(1.7))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_arf_of_the_teachers_own_order(k):
    score = torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
    where = full(score)
    assert arf_global(score, where_BK=where, temperature=0.01).item() == pytest.approx(0, abs=1e-12)
    least = arf_relax(score, top_places(where, k), where_BK=where, keep=k, temperature=0.01)
    assert 5 * least.item() / k == pytest.approx(math.log(k), abs=1e-12)  # log k for each positive
    other = arf_relax(score.flip(1), top_places(where, k), where_BK=where, keep=k, temperature=1.0)
    assert other.item() > least.item()


def test_lists_no_longer_than_the_budget_teach_arf_nothing():
    where = torch.tensor([[True, True, False, False]])
    weight = torch.tensor(1.5, dtype=torch.float64)
    for two_sided in (False, True):
        got = arf(S, FIRST, weight, where_BK=where, keep=2, temperature=1.0, two_sided=two_sided)
        assert not got.any()


# ICC


def test_fused_scores():
    width, kappa_1, kappa_2 = 0.5, 0.3, 0.2  # the third of S, the second of S2
    gate_1 = [1 / (1 + math.exp(-(s - kappa_1) / width)) for s in S[0].tolist()]
    gate_2 = [1 / (1 + math.exp(-(s - kappa_2) / width)) for s in S2[0].tolist()]
    want = [(1 - a) * s + a * b * t for a, b, s, t in zip(gate_1, gate_2, S[0].tolist(), S2[0].tolist(), strict=True)]
    got = fused_score([S, S2], where_BK=WHERE, keeps=[3, 2], width=width)
    assert got[0].tolist() == pytest.approx(want, rel=1e-12)
    clipped = [(1 + max(-1, min(1, (s - kappa_1) / width))) / 2 * s for s in S[0].tolist()]
    got = fused_score([S], where_BK=WHERE, keeps=[3], width=width, gate="clip")
    assert got[0].tolist() == pytest.approx(clipped, rel=1e-12)


@pytest.mark.parametrize("gate", ["sigmoid", "clip"])
def test_a_narrow_gate_is_the_hard_cascade_but_for_the_last_kept(gate):
    first, second = noise(4, 8, seed=1), noise(4, 8, seed=2)
    fused = fused_score([first, second], where_BK=full(first), keeps=[5, 3], width=1e-9, gate=gate)
    for row in range(4):
        kept_1 = first[row].argsort(descending=True)[:5].tolist()
        kept_2 = second[row].argsort(descending=True)[:3].tolist()
        for place in range(8):
            half_1, half_2 = 1 - (place == kept_1[-1]) / 2, 1 - (place == kept_2[-1]) / 2
            gate_1, gate_2 = (place in kept_1) * half_1, (place in kept_2) * half_2
            want = (1 - gate_1) * first[row, place] + gate_1 * gate_2 * second[row, place]
            assert fused[row, place].item() == pytest.approx(want.item(), abs=1e-9)


def test_icc_moves_with_a_permutation_of_the_list_and_reaches_both_stages():
    first, second, level = noise(3, 6, seed=1), noise(3, 6, seed=2), noise(3, 6, seed=3)
    order = torch.tensor([4, 2, 0, 5, 1, 3])

    def slopes(first, second, level):
        return gradients(lambda a, b: icc([a, b], level, where_BK=full(level), keeps=[4, 2], width=0.4), first, second)

    want = slopes(first, second, level)
    got = slopes(first[:, order], second[:, order], level[:, order])
    for a, b in zip(got, want, strict=True):
        assert_close(a, b[:, order])
        assert (b.abs().sum(dim=1) > 0).all()


def test_icc_of_stages_that_cut_nothing_is_ranknet_of_the_last():
    level = torch.tensor([[4, 3, 2, 1]])
    got = icc([S, S2], level, where_BK=WHERE, keeps=[4, 7])
    assert_close(got, stage_pairwise(S2, level, where_BK=WHERE))


# FS, RankFlow, COPR


def test_stage_pairs_are_those_of_different_levels():
    level, weight = torch.tensor([[0, 2, 1, 2]]), torch.tensor([[9.0, 2.0, 0.5, 3.0]], dtype=torch.float64)
    s = S[0].tolist()
    ordered = [(1, 0), (1, 2), (3, 0), (3, 2), (2, 0)]
    got = stage_pairwise(S, level, where_BK=WHERE)
    assert got.item() == pytest.approx(sum(softplus(s[v] - s[u]) for u, v in ordered) / 5, rel=1e-12)
    got = stage_pairwise(S, level, where_BK=WHERE, weight_BK=weight)
    want = sum(weight[0, u].item() * softplus(s[v] - s[u]) for u, v in ordered) / 5
    assert got.item() == pytest.approx(want, rel=1e-12)
    assert not stage_pairwise(S, torch.ones_like(level), where_BK=WHERE).any()


def test_rankflow_tutoring():
    got = rankflow_tutoring(S, S2, where_BK=WHERE, k=2, mix=0.2)
    order = softplus(-((1.0 + 0.5) / 2 - (-0.2 + 0.3) / 2))
    square = (S.sigmoid() - S2.sigmoid()).square().mean().item()
    assert got.item() == pytest.approx(0.2 * order + 0.8 * square, rel=1e-12)
    for k in (4, 10):  # nothing is left to be below the top
        assert rankflow_tutoring(S, S2, where_BK=WHERE, k=k, mix=0.2).item() == pytest.approx(0.8 * square, rel=1e-12)
    assert not rankflow_tutoring(S, S, where_BK=WHERE, k=2, mix=0.0).any()


def logit(*probabilities):
    return torch.tensor([probabilities], dtype=torch.float64).logit()


def test_copr_of_a_pair():
    bid = torch.tensor([[2.0, 2.2]], dtype=torch.float64)
    pair = logit(0.1, 0.08)
    got = copr(pair, where_BC=full(pair), bid_BC=bid).item()
    assert got == pytest.approx(softplus(-(0.1 * 2 / (0.08 * 2.2) - 1)), rel=1e-12)
    assert got == pytest.approx(0.6272879439, abs=5e-11)
    assert copr(pair, where_BC=full(pair), bid_BC=50 * bid).item() == pytest.approx(got, rel=1e-12)


def test_copr_weighs_pairs_by_what_a_swap_does_to_ndcg():
    y = [0.3, 0.5, 0.2]
    gain, discount = [1, 2 / 3, 1 / 3], [1 / math.log2(2), 1 / math.log2(3), 1 / math.log2(4)]
    pairs = [(0, 1), (0, 2), (1, 2)]
    weight = [(gain[i] - gain[j]) * (discount[i] - discount[j]) for i, j in pairs]
    loss = [softplus(-(y[i] / y[j] - 1)) for i, j in pairs]
    got = copr(logit(*y), where_BC=full(logit(*y))).item()
    assert got == pytest.approx(sum(w * x for w, x in zip(weight, loss, strict=True)) / sum(weight), rel=1e-12)


def test_copr_of_equal_values_is_log_2_and_refuses_bids_of_0():
    same = logit(0.2, 0.2, 0.2)
    assert copr(same, where_BC=full(same)).item() == pytest.approx(math.log(2), rel=1e-12)
    with pytest.raises(ValueError, match="bids"):
        copr(same, where_BC=full(same), bid_BC=torch.zeros_like(same))

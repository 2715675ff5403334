"""Losses from a teacher's order: worked values, identities, enumerations. The laws are in test_order_laws.py."""

import itertools
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from cascade_kd.losses import (
    collaborative_distillation,
    decay_weight,
    delta_ndcg,
    draw_pairs,
    estimated_rank,
    first_places,
    gap_weight,
    kl_listwise,
    listmle,
    listnet,
    position_weight,
    positions,
    rankdistil,
    ranking_distillation,
    relaxed_ranking,
    sampled_pairwise,
    student_rank,
    teacher_order,
    top_places,
    topk_pairwise,
    topk_pointwise,
)

S = torch.tensor([[1.0, 0.5, -0.2, 0.3]], dtype=torch.float64)
PI = [2, 0, 3, 1]
T = torch.tensor([[2.0, 1.0, 0.0, -1.0]], dtype=torch.float64)


def row(*values):
    return torch.tensor([values], dtype=torch.float64)


def full(score):
    return torch.ones_like(score, dtype=torch.bool)


def softplus(x):
    return math.log1p(math.exp(x))


def value_and_gradient(loss, score):
    score = score.clone().requires_grad_()
    value = loss(score)
    return value.detach(), torch.autograd.grad(value.sum(), score)[0]


# Places


def test_the_teacher_order_puts_ties_by_smaller_code_and_padding_last():
    score = torch.tensor([[1.0, 3.0, 3.0, float("-inf"), 9.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    item = torch.tensor([[5, 8, 2, 1, 0], [4, 2, 9, 1, 7]])
    where = torch.tensor([[True, True, True, True, False], [True, True, False, True, True]])
    order = teacher_order(score, item, where)
    assert item.gather(1, order).tolist() == [[2, 8, 5, 1, 0], [1, 2, 4, 7, 9]]


def test_a_nan_has_no_order():
    nan = torch.tensor([[1.0, float("nan")]])
    item = torch.tensor([[1, 2]])
    with pytest.raises(ValueError, match="NaN"):
        teacher_order(nan, item, torch.tensor([[True, True]]))
    assert teacher_order(nan, item, torch.tensor([[True, False]])).tolist() == [[0, 1]]


def test_positions_count_the_places_that_count():
    where = torch.tensor([[True, False, True, True], [False, False, False, False]])
    assert positions(where).tolist() == [[1, 0, 2, 3], [0, 0, 0, 0]]
    assert top_places(where, 2).tolist() == [[True, False, True, False], [False] * 4]
    assert top_places(where, None).tolist() == where.tolist()
    assert first_places(where, 2).tolist() == [[0, 2], [0, 1]]
    assert first_places(where, 9).shape == (2, 4)
    with pytest.raises(ValueError, match="k must be"):
        top_places(where, 0)


def test_student_ranks_count_from_1_and_give_ties_to_the_earlier_place():
    score = torch.tensor([[0.5, 2.0, 0.5, 7.0, float("nan")]])
    where = torch.tensor([[True, True, True, False, False]])
    assert student_rank(score, where)[0, :3].tolist() == [2, 1, 3]


def test_the_position_weight():
    position = torch.arange(1, 11, dtype=torch.float64)
    assert_close(position_weight(position, 1.0)[:3], torch.tensor([2, 1.5, 1 + 1 / 3], dtype=torch.float64))
    assert position_weight(position, 1.0)[-1].item() == pytest.approx(1.1)
    assert torch.equal(position_weight(position, 0.0), torch.ones_like(position))
    with pytest.raises(ValueError, match="alpha"):
        position_weight(position, -0.1)


# Pointwise


def test_topk_pointwise_is_a_weighted_mean_of_cross_entropies():
    behind = torch.cat([S, row(-0.4, 2.0)], dim=1)
    got = topk_pointwise(behind, where_BK=full(behind), k=2, alpha=1.0)
    want = 2 * softplus(-1.0) + 1.5 * softplus(-0.5) + softplus(-0.2) + softplus(0.3) + softplus(-0.4) + softplus(2.0)
    assert got.item() == pytest.approx(want / (2 + 1.5 + 4), rel=1e-12)
    plain = topk_pointwise(S, where_BK=full(S), k=2)
    assert plain.item() == pytest.approx(F.binary_cross_entropy_with_logits(S, row(1, 1, 0, 0)).item(), rel=1e-12)


def test_a_list_of_at_most_k_has_no_negatives_of_its_own():
    for k in (4, 5, 100):
        assert topk_pointwise(S, where_BK=full(S), k=k).item() == pytest.approx(
            F.binary_cross_entropy_with_logits(S, torch.ones_like(S)).item(), rel=1e-12
        )
    behind, where = torch.cat([S, row(1, 5)], dim=1), torch.tensor([[True] * 5 + [False]])
    masked = topk_pointwise(behind, where_BK=where, k=torch.tensor([4]))
    assert masked.item() == pytest.approx((sum(map(softplus, (-1, -0.5, 0.2, -0.3))) + softplus(1)) / 5, rel=1e-12)


@pytest.mark.parametrize(
    "loss",
    [
        partial(topk_pointwise, alpha=1.0),
        partial(topk_pairwise, alpha=1.0),
        partial(topk_pairwise, lambdas=True),
        partial(listmle, alpha=1.0),
    ],
)
def test_a_k_of_every_list_is_every_list_alone(loss):
    generator = torch.Generator().manual_seed(0)
    score = torch.randn(5, 6, dtype=torch.float64, generator=generator)
    where = torch.rand(5, 6, generator=generator) < 0.7
    k = torch.tensor([1, 2, 3, 6, 2])
    alone = [loss(score[[i]], where_BK=where[[i]], k=int(k[i])) for i in range(5)]
    assert_close(loss(score, where_BK=where, k=k), torch.cat(alone))
    with pytest.raises(ValueError, match="k must be"):
        loss(score, where_BK=where, k=k - 1)


def test_pairs_are_drawn_above_a_k_of_every_list():
    where = torch.ones(2, 5, dtype=torch.bool)
    k = torch.tensor([1, 3])
    upper, lower, there = draw_pairs(where, 400, k=k, generator=torch.Generator().manual_seed(0))
    assert there.all()
    assert [set(row) for row in upper.tolist()] == [{0}, {0, 1, 2}]
    assert [set(row) for row in lower.tolist()] == [{1, 2, 3, 4}] * 2


# Pairwise


def test_ranknet_is_bpr_of_a_pair():
    pair = row(-0.2, 1.0)
    assert topk_pairwise(pair, where_BK=full(pair)).item() == pytest.approx(1.4632824673, abs=5e-11)
    assert softplus(1.0 - -0.2) == pytest.approx(1.4632824673, abs=5e-11)


def by_hand(score, k, loss, alpha=0.0, weight=lambda upper, lower: 1.0):
    terms = [
        ((1 + alpha / (u + 1)) * weight(u, v), loss(score[u] - score[v]))
        for u in range(min(k, len(score)))
        for v in range(u + 1, len(score))
    ]
    return sum(w * x for w, x in terms) / sum(w for w, _ in terms)


@pytest.mark.parametrize("k", [1, 2, 3, 9])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize(("margin", "loss"), [(None, lambda d: softplus(-d)), (0.6, lambda d: max(0.0, 0.6 - d))])
def test_topk_pairs_are_those_whose_upper_place_is_in_the_top_k(k, alpha, margin, loss):
    got = topk_pairwise(S, where_BK=full(S), k=k, alpha=alpha, margin=margin)
    assert got.item() == pytest.approx(by_hand(S[0].tolist(), k, loss, alpha), rel=1e-12)


def test_all_pairs_are_the_pairs_of_k_as_long_as_the_list():
    for k in (3, 4, 50):
        assert torch.equal(topk_pairwise(S, where_BK=full(S)), topk_pairwise(S, where_BK=full(S), k=k))


def ndcg(gains):
    """nDCG of gains in the order of the student."""
    discounted = [gain / math.log2(2 + place) for place, gain in enumerate(gains)]
    ideal = [gain / math.log2(2 + place) for place, gain in enumerate(sorted(gains, reverse=True))]
    return sum(discounted) / sum(ideal)


@pytest.mark.parametrize("k", [2, 3, None])
def test_lambda_weights_are_what_a_swap_does_to_ndcg(k):
    score = torch.tensor([0.3, 1.0, -0.2, 0.5], dtype=torch.float64)
    top = 4 if k is None else k
    gains = [max(0, top - place) / top for place in range(4)]
    by_student = score.argsort(descending=True).tolist()
    got = delta_ndcg(score[None], where_BK=full(score[None]), k=k)[0]
    for upper, lower in itertools.combinations(range(4), 2):
        if upper < top:
            swapped = list(by_student)
            a, b = swapped.index(upper), swapped.index(lower)
            swapped[a], swapped[b] = swapped[b], swapped[a]
            change = ndcg([gains[x] for x in swapped]) - ndcg([gains[x] for x in by_student])
            assert got[upper, lower].item() == pytest.approx(abs(change), abs=1e-12)
    want = by_hand(score.tolist(), top, lambda d: softplus(-d), 0.5, lambda u, v: got[u, v].item())
    loss = topk_pairwise(score[None], where_BK=full(score[None]), k=k, alpha=0.5, lambdas=True)
    assert loss.item() == pytest.approx(want, rel=1e-12)


def test_sampled_pairs_of_all_pairs_are_all_pairs():
    upper, lower = torch.triu_indices(4, 4, offset=1)
    got = sampled_pairwise(S, upper[None], lower[None], where_BP=torch.ones(1, 6, dtype=torch.bool))
    assert_close(got, topk_pairwise(S, where_BK=full(S)))
    half = torch.tensor([[True, False, True, False, False, False]])
    got = sampled_pairwise(S, upper[None], lower[None], where_BP=half, margin=1.0)
    assert got.item() == pytest.approx((max(0, 1 - 0.5) + max(0, 1 - 0.7)) / 2, rel=1e-12)


# Listwise


def test_listmle():
    score = S[:, PI]
    want = sum(math.log(sum(math.exp(S[0, j]) for j in PI[i:])) - S[0, PI[i]].item() for i in range(4))
    assert listmle(score, where_BK=full(score)).item() == pytest.approx(want, rel=1e-12)
    assert want == pytest.approx(3.6188219396, abs=5e-11)


def test_listmle_of_two_is_ranknet():
    pair = row(0.7, -1.3)
    assert_close(listmle(pair, where_BK=full(pair)), topk_pairwise(pair, where_BK=full(pair)))


@pytest.mark.parametrize("k", [1, 2, 3, 4, 7])
def test_the_chances_of_all_orders_sum_to_1(k):
    orders = torch.tensor(list(itertools.permutations(range(4))))
    score = S[0][orders]
    chance = (-listmle(score, where_BK=full(score), k=k)).exp().sum().item()
    assert chance == pytest.approx(math.factorial(max(0, 4 - k)), rel=1e-12)  # once for every completion


def test_listmle_weights_have_mean_1():
    score = S[:, PI]
    parts = [listmle(score, where_BK=full(score), k=k).item() for k in (1, 2, 3, 4)]
    terms = [parts[0], parts[1] - parts[0], parts[2] - parts[1], parts[3] - parts[2]]
    weights = [1 + 2 / i for i in (1, 2, 3)]
    want = sum(w * x for w, x in zip(weights, terms, strict=False)) * 3 / sum(weights)
    assert listmle(score, where_BK=full(score), k=3, alpha=2.0).item() == pytest.approx(want, rel=1e-12)
    assert_close(listmle(score, where_BK=full(score), alpha=0.0), listmle(score, where_BK=full(score)))


def test_listmle_of_a_long_list_far_from_0_in_float32():
    score = torch.linspace(-100, 100, 5000)[None]  # the worst order there is
    value, slope = value_and_gradient(lambda x: listmle(x, where_BK=full(x)), score)
    exact, exact_slope = value_and_gradient(lambda x: listmle(x, where_BK=full(x)), score.double())
    assert value.item() == pytest.approx(exact.item(), rel=1e-5)
    assert_close(slope.double(), exact_slope, rtol=2e-3, atol=2e-3)


def test_listnet_is_kl_but_for_the_teachers_entropy():
    target = T.softmax(1)
    want = -(target * S.log_softmax(1)).sum()
    value, slope = value_and_gradient(lambda x: listnet(x, T, where_BK=full(S)), S)
    assert value.item() == pytest.approx(want.item(), rel=1e-12)
    assert value.item() == pytest.approx(1.1227186469, abs=5e-11)
    kl, kl_slope = value_and_gradient(lambda x: kl_listwise(x, T, where_BK=full(S)), S)
    assert_close(value - kl, -(target * target.log()).sum()[None])
    assert_close(slope, kl_slope)


def test_listnet_position_weights_tilt_the_target():
    tilted = T.softmax(1) * row(2, 1.5, 4 / 3, 1.25)
    target = tilted / tilted.sum()
    assert_close(listnet(S, T, where_BK=full(S), alpha=1.0), -(target * S.log_softmax(1)).sum(1))


def plackett(score, order, k):
    return math.prod(math.exp(score[order[i]]) / sum(math.exp(score[j]) for j in order[i:]) for i in range(k))


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_expectation_of_rankdistil_is_the_cross_entropy_of_topk_plackett(k):
    """Its N! orders weighed by the teacher's chances against the sum over ordered k-tuples."""
    orders = list(itertools.permutations(range(4)))
    each = [rankdistil(S, torch.tensor([[order]]), where_BK=full(S), k=k).item() for order in orders]
    chances = [plackett(T[0].tolist(), order, 4) for order in orders]
    assert sum(chances) == pytest.approx(1)
    expected = sum(p * x for p, x in zip(chances, each, strict=True))
    tuples = [tup + tuple(x for x in range(4) if x not in tup) for tup in itertools.permutations(range(4), k)]
    cross = -sum(plackett(T[0].tolist(), o, k) * math.log(plackett(S[0].tolist(), o, k)) for o in tuples)
    assert expected == pytest.approx(cross, rel=1e-12)
    if k == 1:
        assert expected == pytest.approx(listnet(S, T, where_BK=full(S)).item(), rel=1e-12)
    together = rankdistil(S, torch.tensor([orders]), where_BK=full(S), k=k)
    assert together.item() == pytest.approx(sum(each) / len(each), rel=1e-12)


def test_relaxed_ranking():
    got = relaxed_ranking(S[:, [2, 0]], S[:, [3, 1]], where_BK=full(S[:, :2]), where_BL=full(S[:, :2]))
    rest = math.exp(0.3) + math.exp(0.5)
    want = math.log(math.exp(-0.2) + math.exp(1.0) + rest) + 0.2 + math.log(math.exp(1.0) + rest) - 1.0
    assert got.item() == pytest.approx(want, rel=1e-12)
    assert got.item() == pytest.approx(2.8206830702, abs=5e-11)


def test_relaxed_ranking_limits():
    one, none = S[:, [2]], S[:, :0]
    got = relaxed_ranking(one, S[:, [0, 1, 3]], where_BK=full(one), where_BL=full(S[:, :3]))
    assert_close(got, F.cross_entropy(S, torch.tensor([2]), reduction="none"))
    whole = S[:, PI]
    for rest, where in ((none, full(none)), (row(5.0, 6.0), ~full(row(5.0, 6.0)))):  # no place, or no place that counts
        value, slope = value_and_gradient(
            lambda x, rest=rest, where=where: relaxed_ranking(x, rest, where_BK=full(x), where_BL=where), whole
        )
        want, want_slope = value_and_gradient(lambda x: listmle(x, where_BK=full(x)), whole)
        assert_close(value, want)
        assert_close(slope, want_slope)


def test_relaxed_ranking_ignores_the_order_of_uninteresting_items():
    head, tail = S[:, :2], row(0.3, -2.0, 1.1)
    want = relaxed_ranking(head, tail, where_BK=full(head), where_BL=full(tail))
    assert_close(relaxed_ranking(head, tail[:, [2, 0, 1]], where_BK=full(head), where_BL=full(tail)), want)
    assert not torch.allclose(relaxed_ranking(head.flip(1), tail, where_BK=full(head), where_BL=full(tail)), want)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_relaxed_ranking_over_ordered_tuples_sums_to_1(k):
    orders = torch.tensor(
        [tup + tuple(x for x in range(4) if x not in tup) for tup in itertools.permutations(range(4), k)]
    )
    score = S[0][orders]
    head, tail = score[:, :k], score[:, k:]
    loss = relaxed_ranking(head, tail, where_BK=full(head), where_BL=full(tail))
    assert (-loss).exp().sum().item() == pytest.approx(1, rel=1e-12)


# RD and CD


def test_rd_position_weights():
    weight = decay_weight(torch.ones(1, 30, dtype=torch.bool), 1.0, k=10)[0]
    want = [math.exp(-r) / sum(math.exp(-i) for i in range(1, 11)) for r in range(1, 11)]
    assert weight[:10].tolist() == pytest.approx(want, rel=1e-12)
    assert weight[:4].tolist() == pytest.approx([0.6321493, 0.2325547, 0.0855521, 0.0314729], abs=5e-8)
    assert not weight[10:].any()
    assert weight.sum().item() == pytest.approx(1)
    short = decay_weight(torch.tensor([[True, False, True]]), 2.0, k=10)[0]
    assert short.tolist() == pytest.approx([1 / (1 + math.exp(-0.5)), 0, 1 / (1 + math.exp(0.5))])


def test_rd_rank_weights_are_0_where_the_student_ranks_no_lower():
    gap = torch.tensor([[-50, -1, 0, 1, 30]])
    assert gap_weight(gap, 0.1)[0].tolist() == pytest.approx([0, 0, 0, math.tanh(0.1), math.tanh(3.0)])


def test_the_rank_estimated_from_all_items_is_the_rank():
    catalogue = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    rank = student_rank(catalogue, full(catalogue))
    others = torch.stack([torch.cat([catalogue[:, :i], catalogue[:, i + 1 :]], dim=1) for i in range(3)], dim=1)
    for i in range(3):
        sample = others[:, i]
        got = estimated_rank(catalogue[:, i : i + 1], sample, where_BN=full(sample), num_items=40)
        assert torch.equal(got, rank[:, i : i + 1])
    # 3 of 4 sampled scores above, of 101 items: 1 + floor(100 * 3 / 4); a masked one is no sample.
    got = estimated_rank(row(0.0), row(1, 2, 3, -1, 9), where_BN=row(1, 1, 1, 1, 0).bool(), num_items=101)
    assert got.tolist() == [[76]]


def test_rd_sends_no_gradient_into_its_weights():
    weight = decay_weight(full(S), 1.0, k=2).requires_grad_()
    value, slope = value_and_gradient(lambda x: ranking_distillation(x, weight, where_BK=full(S)), S)
    share = 1 / (1 + math.exp(-1))
    assert value.item() == pytest.approx(share * softplus(-1.0) + (1 - share) * softplus(-0.5), rel=1e-12)
    want = row(-share / (1 + math.exp(1)), -(1 - share) / (1 + math.exp(0.5)), 0, 0)
    assert_close(slope, want)
    assert weight.grad is None


def test_the_gradient_of_cd_is_the_difference_of_probabilities():
    where = torch.tensor([[True, True, False, True]])
    _, slope = value_and_gradient(lambda x: collaborative_distillation(x, T, where_BM=where, offset=0.3), S)
    want = (S.sigmoid() - ((T + 0.3) / 2).sigmoid()) / 3
    assert_close(slope, want.masked_fill(~where, 0.0))


# UnKD is sampled_pairwise over draw_group_pairs and DCD relaxed_ranking over draw_places by gap_weight: test_draws.py.

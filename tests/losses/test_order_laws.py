"""Laws that hold for every loss on a teacher's list and every cascade objective. A new loss joins by one line."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch.testing import assert_close

from cascade_kd.losses import (
    arf,
    arf_global,
    arf_relax,
    collaborative_distillation,
    copr,
    decay_weight,
    icc,
    lcron,
    lcron_end_to_end,
    lcron_single,
    listmle,
    listnet,
    positions,
    rankdistil,
    rankflow_tutoring,
    ranking_distillation,
    relaxed_ranking,
    sampled_pairwise,
    stage_pairwise,
    teacher_order,
    top_places,
    topk_pairwise,
    topk_pointwise,
)

B, K = 6, 5


@dataclass(frozen=True)
class Case:
    """``loss(score_BK, other_BK, where_BK)`` gives [B]; scores stand in the teacher's order.

    ``other`` holds the teacher's logits, a second block of scores or another stage's, as the loss wants.
    """

    loss: Callable
    shift: bool = True  # adding a number to a whole list changes nothing, so that gradients sum to 0
    teacher: bool = False  # other is a teacher: a gradient is refused
    order_only: bool = True  # nothing of the teacher but its order
    exact: bool = True  # autograd is the true gradient: nothing that depends on the scores is detached


def pairs(where):
    """All pairs of neighbouring places, masked where one of the two is."""
    upper = torch.arange(where.shape[1] - 1).expand(len(where), -1)
    return {"upper_BP": upper, "lower_BP": upper + 1, "where_BP": where[:, 1:] & where[:, :-1]}


def some_orders(z, where):
    """Two orders of the places: as they are, and by z."""
    last = z.masked_fill(~where[: len(z)], -torch.inf)
    return torch.stack([torch.arange(z.shape[1]).expand_as(z), last.argsort(dim=1, descending=True)], dim=1)


def relevance(where):
    return -positions(where)


ones = torch.ones(2, dtype=torch.float64)

CASES = {
    "pointwise": Case(lambda x, z, w: topk_pointwise(x, where_BK=w, k=2, alpha=1.0), shift=False),
    "pointwise with negatives": Case(
        lambda x, z, w: topk_pointwise(torch.cat([x, z], 1), where_BK=torch.cat([w, w], 1), k=w.sum(1).clamp(min=1)),
        shift=False,
        order_only=False,
    ),
    "ranknet": Case(lambda x, z, w: topk_pairwise(x, where_BK=w)),
    "ranknet top 2 alpha 1": Case(lambda x, z, w: topk_pairwise(x, where_BK=w, k=2, alpha=1.0)),
    "ranknet lambdas": Case(lambda x, z, w: topk_pairwise(x, where_BK=w, lambdas=True)),
    "ranknet top 2 lambdas": Case(lambda x, z, w: topk_pairwise(x, where_BK=w, k=2, lambdas=True)),
    "hinge": Case(lambda x, z, w: topk_pairwise(x, where_BK=w, k=3, margin=1.0)),
    "sampled ranknet": Case(lambda x, z, w: sampled_pairwise(x, **pairs(w))),
    "sampled hinge": Case(lambda x, z, w: sampled_pairwise(x, **pairs(w), margin=0.5)),
    "listmle": Case(lambda x, z, w: listmle(x, where_BK=w)),
    "listmle top 2 alpha 1": Case(lambda x, z, w: listmle(x, where_BK=w, k=2, alpha=1.0)),
    "listnet": Case(lambda x, z, w: listnet(x, z, where_BK=w), teacher=True, order_only=False),
    "listnet alpha 1": Case(lambda x, z, w: listnet(x, z, where_BK=w, alpha=1.0), teacher=True, order_only=False),
    "rankdistil": Case(lambda x, z, w: rankdistil(x, some_orders(z, w), where_BK=w, k=2), order_only=False),
    "rrd": Case(
        lambda x, z, w: relaxed_ranking(x[:, :3], x[:, 3:], where_BK=w[:, :3], where_BL=w[:, 3:]),
    ),
    "rd": Case(lambda x, z, w: ranking_distillation(x, decay_weight(w, 1.0, k=3), where_BK=w), shift=False),
    "cd": Case(
        lambda x, z, w: collaborative_distillation(x, z, where_BM=w), shift=False, teacher=True, order_only=False
    ),
    "fs": Case(lambda x, z, w: stage_pairwise(x, -(positions(w) // 2), where_BK=w)),
    "icc": Case(
        lambda x, z, w: icc([x, z], relevance(w), where_BK=w, keeps=[3, 2], width=0.3), shift=False, order_only=False
    ),
    "icc clip": Case(
        lambda x, z, w: icc([z, x], relevance(w), where_BK=w, keeps=[3, 2], width=0.7, gate="clip"),
        shift=False,
        order_only=False,
    ),
    "rankflow": Case(
        lambda x, z, w: rankflow_tutoring(x, z, where_BK=w, k=2, mix=0.4), shift=False, teacher=True, order_only=False
    ),
    "copr": Case(lambda x, z, w: copr(x, where_BC=w, bid_BC=z.sigmoid() + 0.5), shift=False, order_only=False),
    "lcron single": Case(
        lambda x, z, w: lcron_single(x, top_places(w, 2), where_BK=w, keep=2, temperature=2.0), exact=False
    ),
    "lcron end to end": Case(
        lambda x, z, w: lcron_end_to_end([x, z], top_places(w, 2), where_BK=w, keeps=[3, 2], temperature=2.0),
        order_only=False,
        exact=False,
    ),
    "lcron": Case(
        lambda x, z, w: lcron([z, x], top_places(w, 2), ones.to(x), where_BK=w, keeps=[2, 2], temperature=2.0),
        order_only=False,
        exact=False,
    ),
    "arf relax": Case(lambda x, z, w: arf_relax(x, top_places(w, 2), where_BK=w, keep=2, temperature=2.0)),
    "arf global": Case(lambda x, z, w: arf_global(x, where_BK=w, temperature=2.0)),
    "arf": Case(lambda x, z, w: arf(x, top_places(w, 2), ones[0].to(x), where_BK=w, keep=2, temperature=2.0)),
    "arf-v2": Case(
        lambda x, z, w: arf(x, top_places(w, 2), ones[0].to(x), where_BK=w, keep=2, temperature=2.0, two_sided=True),
        exact=False,
    ),
}


def over(cases):
    return pytest.mark.parametrize("case", cases.values(), ids=cases)


def chosen(flag):
    return over({name: case for name, case in CASES.items() if getattr(case, flag)})


ALL = over(CASES)


def scores(seed, scale=1.0, dtype=torch.float64):
    return scale * torch.randn(B, K, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def holes():
    """Lists of 5, 4, 4, 3, 2 and 1 places, padding anywhere."""
    where = torch.ones(B, K, dtype=torch.bool)
    for row, gone in enumerate([[], [1], [4], [0, 3], [2, 3, 4], [0, 1, 3, 4]]):
        where[row, gone] = False
    return where


def gradient(case, score, other, where):
    score = score.detach().requires_grad_()
    return torch.autograd.grad(case.loss(score, other, where).sum(), score)[0]


@ALL
def test_one_value_per_list_with_a_gradient(case):
    where = torch.ones(B, K, dtype=torch.bool)
    assert case.loss(scores(0), scores(1), where).shape == (B,)
    assert (gradient(case, scores(0), scores(1), where).abs().sum(dim=1) > 0).all()


@ALL
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_type_of_the_scores_is_kept(case, dtype):
    assert case.loss(scores(0, dtype=dtype), scores(1, dtype=dtype), holes()).dtype == dtype


@chosen("teacher")
def test_a_teacher_with_a_gradient_is_refused(case):
    with pytest.raises(ValueError, match="carry a gradient"):
        case.loss(scores(0), scores(1).requires_grad_(), holes())


@ALL
def test_other_shapes_are_refused(case):
    with pytest.raises(ValueError, match=r"one shape|orders must be"):
        case.loss(scores(0)[:1], scores(1)[:1], holes()[:3])


@chosen("exact")
@pytest.mark.parametrize("scale", [1.0, 15.0])
def test_autograd_equals_finite_differences(case, scale):
    other, where = scores(1, scale), holes()
    assert torch.autograd.gradcheck(lambda x: case.loss(x, other, where), scores(0, scale).requires_grad_())


@ALL
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_scores_of_100_give_no_nan_and_no_infinity(case, dtype):
    corners = torch.tensor([100.0, -100.0, 0.0], dtype=dtype)
    lists = torch.cartesian_prod(*[corners] * K)
    other = lists.flip(0).roll(7, 0)
    where = torch.ones_like(lists, dtype=torch.bool)
    assert case.loss(lists, other, where).isfinite().all()
    assert gradient(case, lists, other, where).isfinite().all()
    where = holes().repeat(len(lists) // B + 1, 1)[: len(lists)]
    assert case.loss(lists, other, where).isfinite().all()
    assert gradient(case, lists, other, where).isfinite().all()


@ALL
def test_float32_equals_float64_at_scores_of_100(case):
    lists = torch.tensor([[100.0, -100.0, 50.0, -50.0, 0.0], [-100.0, -99.0, 0.0, 99.0, 100.0]], dtype=torch.float64)
    other, where = lists.flip(1) + 0.5, torch.ones_like(lists, dtype=torch.bool)
    for x in (lists, lists.flip(1)):
        assert_close(
            case.loss(x.float(), other.float(), where).double(), case.loss(x, other, where), rtol=1e-4, atol=1e-4
        )
        assert_close(
            gradient(case, x.float(), other.float(), where).double(),
            gradient(case, x, other, where),
            rtol=1e-4,
            atol=1e-4,
        )


@ALL
def test_the_value_of_a_list_does_not_depend_on_its_batch(case):
    score, other, where = scores(0), scores(1), holes()
    whole = case.loss(score, other, where)
    parts = [case.loss(score[part], other[part], where[part]) for part in (slice(0, 4), slice(4, 6))]  # short last
    assert_close(torch.cat(parts), whole, rtol=0, atol=1e-14)


@ALL
def test_masking_equals_removing(case):
    score, other, where = scores(0), scores(1), torch.ones(B, K, dtype=torch.bool)
    where[:, 1] = where[:, 3] = False
    whole, slope = case.loss(score, other, where), gradient(case, score, other, where)
    if case is CASES["rrd"]:  # its two blocks are cut at a place
        score[:, 1], where[:, 1] = score[:, 2], True
        where[:, 2] = False
        assert_close(case.loss(score, other, where), whole)
        return
    left = [0, 2, 4]
    if case in (CASES["sampled ranknet"], CASES["sampled hinge"]):
        left = [0, 1, 2, 3, 4]  # its pairs are given, not made of the list
    short = (score[:, left], other[:, left], where[:, left])
    assert_close(whole, case.loss(*short))
    assert_close(slope[:, left], gradient(case, *short))
    assert not slope[:, [1, 3]].any()


@ALL
@pytest.mark.parametrize("rubbish", [float("nan"), -float("inf"), float("inf"), 1e30])
def test_what_stands_under_the_mask_does_not_matter(case, rubbish):
    score, other, where = scores(0), scores(1), holes()
    dirty, dirty_other = score.masked_fill(~where, rubbish), other.masked_fill(~where, rubbish)
    assert torch.equal(case.loss(dirty, dirty_other, where), case.loss(score, other, where))
    slope = gradient(case, dirty, dirty_other, where)
    assert torch.equal(slope, gradient(case, score, other, where))
    assert not slope[~where].any()


@ALL
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_list_without_a_place_is_0_with_gradient_0(case, dtype):
    nowhere = torch.zeros(B, K, dtype=torch.bool)
    assert not case.loss(scores(0, dtype=dtype), scores(1, dtype=dtype), nowhere).any()
    assert not gradient(case, scores(0, dtype=dtype), scores(1, dtype=dtype), nowhere).any()


@ALL
def test_lists_shorter_than_every_k_do_not_crash(case):
    score, other = scores(0)[:, :1], scores(1)[:, :1]
    if case is CASES["rrd"]:
        return
    where = torch.ones(B, 1, dtype=torch.bool)
    assert case.loss(score, other, where).isfinite().all()
    assert gradient(case, score, other, where).isfinite().all()


@chosen("shift")
def test_adding_a_number_to_a_list_changes_nothing(case):
    score, other, where = scores(0), scores(1), holes()
    slope = gradient(case, score, other, where)
    assert_close(case.loss(score + 3.0, other, where), case.loss(score, other, where))
    assert_close(gradient(case, score + 3.0, other, where), slope)
    if case.exact:
        assert_close(slope.sum(dim=1), torch.zeros(B, dtype=torch.float64))


@chosen("order_only")
def test_a_strictly_increasing_transform_of_the_teacher_changes_nothing_bit_for_bit(case):
    student, teacher, where = scores(0), scores(1).round(decimals=1), holes()  # rounding makes ties
    item = torch.randperm(30, generator=torch.Generator().manual_seed(2)).view(B, K)

    def run(z):
        order = teacher_order(z, item, where)
        ordered = student.gather(1, order)
        there = where.gather(1, order)
        return case.loss(ordered, ordered, there), gradient(case, ordered, ordered, there)

    want, slope = run(teacher)
    for other in (7 * teacher - 3, teacher.exp(), teacher**3 + teacher, teacher.float()):
        got, got_slope = run(other)
        assert torch.equal(got, want)
        assert torch.equal(got_slope, slope)
    assert not torch.equal(run(-teacher)[0], want)

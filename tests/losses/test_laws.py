"""Laws that hold for every loss. A new loss joins by one line of CASES."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch.testing import assert_close

from cascade_kd.losses import (
    bce,
    bpr,
    ccl,
    clid_listwise,
    cross_entropy_binary,
    kl_binary,
    kl_listwise,
    mimic,
    mse_logits,
    mse_probabilities,
    mse_probabilities_listwise,
    sampled_softmax,
)

B, K = 6, 5


@dataclass(frozen=True)
class Case:
    """``loss(student_BK, other_BK, where_BK)`` gives [B] for lists, [B, K] for rows; ``other`` is teacher or label."""

    loss: Callable
    listwise: bool = False
    teacher: bool = True  # against a teacher: gradient 0 at student == teacher, refuses the teacher's gradients
    entropy: bool = False  # the value at student == teacher is the teacher's entropy instead of 0
    shift: bool = False  # adding a number to a whole list of the student changes nothing


def hot(temperature, loss):
    return lambda x, z, where: loss(x, z, where_BK=where, temperature=temperature)


CASES = {
    "kl_listwise T=1": Case(hot(1.0, kl_listwise), listwise=True, shift=True),
    "kl_listwise T=4": Case(hot(4.0, kl_listwise), listwise=True, shift=True),
    "kl_listwise T=.5": Case(hot(0.5, kl_listwise), listwise=True, shift=True),
    "kl_binary T=1": Case(lambda x, z, where: kl_binary(x, z)),
    "kl_binary T=4": Case(lambda x, z, where: kl_binary(x, z, temperature=4.0)),
    "cross_entropy_binary": Case(lambda x, z, where: cross_entropy_binary(x, z), entropy=True),
    "clid_listwise": Case(lambda x, z, where: clid_listwise(x, z, where_BK=where), listwise=True),
    "mimic": Case(lambda x, z, where: mimic(x, z, mean=0.0, sd=1.0)),
    "mse_logits": Case(lambda x, z, where: mse_logits(x, z)),
    "mse_probabilities": Case(lambda x, z, where: mse_probabilities(x, z)),
    "mse_probabilities_listwise": Case(
        lambda x, z, where: mse_probabilities_listwise(x, z, where_BK=where),
        listwise=True,
        shift=True,
    ),
    "bce": Case(lambda x, z, where: bce(x, z.sigmoid()), teacher=False),
    "sampled_softmax": Case(
        # The target is a column that the masks below never remove; log_q is any function of the column.
        lambda x, z, where: sampled_softmax(
            x, torch.zeros(len(x), dtype=torch.int64), log_q_N=-z[0].abs(), where_BN=where
        ),
        listwise=True,
        teacher=False,
        shift=True,
    ),
    "bpr": Case(
        lambda x, z, where: bpr(x, torch.zeros(len(x), dtype=torch.int64), where_BN=where),
        listwise=True,
        teacher=False,
        shift=True,
    ),
    "ccl": Case(
        lambda x, z, where: ccl(
            x, torch.zeros(len(x), dtype=torch.int64), margin=0.5, negative_weight=3.0, where_BN=where
        ),
        listwise=True,
        teacher=False,
    ),
}


def over(cases):
    return pytest.mark.parametrize("case", cases.values(), ids=cases)


ALL = over(CASES)
LISTS = over({name: case for name, case in CASES.items() if case.listwise})
TEACHERS = over({name: case for name, case in CASES.items() if case.teacher})
SHIFTS = over({name: case for name, case in CASES.items() if case.shift})


def logits(seed, scale=1.0, dtype=torch.float64):
    return scale * torch.randn(B, K, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def everywhere():
    return torch.ones(B, K, dtype=torch.bool)


def gradient(case, student, other, where):
    student = student.detach().requires_grad_()
    return torch.autograd.grad(case.loss(student, other, where).sum(), student)[0]


@ALL
def test_one_value_per_row_or_list(case):
    assert case.loss(logits(0), logits(1), everywhere()).shape == ((B,) if case.listwise else (B, K))


@TEACHERS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_a_student_equal_to_its_teacher_has_value_and_gradient_exactly_0(case, dtype, scale):
    same = logits(0, scale, dtype)
    where = logits(1) > -0.5
    assert case.entropy or not case.loss(same, same.clone(), where).any()
    assert not gradient(case, same, same.clone(), where).any()


@TEACHERS
def test_another_student_has_a_positive_value_and_a_gradient(case):
    assert (case.loss(logits(0), logits(1), everywhere()) > 0).all()
    assert (gradient(case, logits(0), logits(1), everywhere()) != 0).all()


@TEACHERS
def test_a_teacher_with_a_gradient_is_refused(case):
    with pytest.raises(ValueError, match="carry a gradient"):
        case.loss(logits(0), logits(1).requires_grad_(), everywhere())


@ALL
def test_other_shapes_are_refused(case):
    other = logits(1)[:, :1] if case.loss is not CASES["sampled_softmax"].loss else logits(1)
    with pytest.raises(ValueError, match="one shape"):
        case.loss(logits(0), other, everywhere()[:, :1])


@ALL
@pytest.mark.parametrize("scale", [1.0, 15.0])
def test_autograd_equals_finite_differences(case, scale):
    student, other, where = logits(0, scale), logits(1, scale), logits(2) > -0.8
    where[:, 0] = True
    assert torch.autograd.gradcheck(lambda x: case.loss(x, other, where), student.requires_grad_())


@ALL
def test_central_differences_at_large_logits(case):
    student, other = logits(0, 10.0), logits(1, 10.0)
    student[0, :3] = torch.tensor([50.0, -50.0, 49.0])
    student[1, :3] = torch.tensor([-50.0, 50.0, 0.0])
    other[0, :3] = torch.tensor([-50.0, 50.0, 50.0])
    other[1, :3] = torch.tensor([50.0, 50.0, -50.0])
    where = everywhere()
    exact = gradient(case, student, other, where)
    for row in range(2):
        for column in range(K):
            step = torch.zeros(B, K, dtype=torch.float64)
            step[row, column] = h = 1e-5
            up, down = case.loss(student + step, other, where), case.loss(student - step, other, where)
            numeric = ((up - down).sum() / (2 * h)).item()
            # The error of the difference itself: rounding of values up to 1e4 divided by h.
            assert numeric == pytest.approx(exact[row, column].item(), rel=1e-6, abs=2e-7)


@ALL
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_logits_of_100_give_no_nan_and_no_infinity(case, dtype):
    corners = torch.tensor([100.0, -100.0, 0.0], dtype=dtype)
    pairs = torch.cartesian_prod(corners, corners, corners, corners)
    where = torch.ones(len(pairs), 2, dtype=torch.bool)
    student, other = pairs[:, :2], pairs[:, 2:]
    assert case.loss(student, other, where).isfinite().all()
    assert gradient(case, student, other, where).isfinite().all()
    if case.teacher:
        # KL is a difference of numbers up to 100 (times T^2 = 16): negative by a rounding at most.
        assert (case.loss(student, other, where) >= -16 * 100 * torch.finfo(dtype).eps).all()


@ALL
def test_permuting_the_places_changes_nothing(case):
    order = torch.tensor([0, 3, 1, 4, 2])  # place 0 is the target of sampled_softmax
    student, other, where = logits(0), logits(1), logits(2) > -0.8
    where[:, 0] = True
    got = case.loss(student[:, order], other[:, order], where[:, order])
    want = case.loss(student, other, where)
    assert_close(got, want if case.listwise else want[:, order])


@ALL
def test_the_value_of_a_row_does_not_depend_on_its_batch(case):
    student, other, where = logits(0), logits(1)[:1].expand(B, K).contiguous(), everywhere()
    whole = case.loss(student, other, where)
    parts = [case.loss(student[part], other[part], where[part]) for part in (slice(0, 4), slice(4, 6))]  # short last
    assert_close(torch.cat(parts), whole, rtol=0, atol=1e-15)
    assert_close((4 * parts[0].mean() + 2 * parts[1].mean()) / 6, whole.mean())


@LISTS
def test_masking_equals_removing(case):
    student, other, where = logits(0), logits(1), everywhere()
    where[:, [1, 4]] = False
    left = [0, 2, 3]
    assert_close(case.loss(student, other, where), case.loss(student[:, left], other[:, left], where[:, left]))
    got = gradient(case, student, other, where)
    assert_close(got[:, left], gradient(case, student[:, left], other[:, left], where[:, left]))
    assert not got[:, [1, 4]].any()


@LISTS
@pytest.mark.parametrize("rubbish", [float("nan"), -float("inf"), 1e30])
def test_what_stands_under_the_mask_does_not_matter(case, rubbish):
    student, other, where = logits(0), logits(1), everywhere()
    where[:, [1, 4]] = False
    dirty, dirty_other = student.masked_fill(~where, rubbish), other.masked_fill(~where, rubbish)
    assert torch.equal(case.loss(dirty, dirty_other, where), case.loss(student, other, where))
    assert torch.equal(gradient(case, dirty, dirty_other, where), gradient(case, student, other, where))


@LISTS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_list_without_a_place_is_0_with_gradient_0(case, dtype):
    nowhere = ~everywhere()
    assert not case.loss(logits(0, dtype=dtype), logits(1, dtype=dtype), nowhere).any()
    assert not gradient(case, logits(0, dtype=dtype), logits(1, dtype=dtype), nowhere).any()


@SHIFTS
def test_adding_a_number_to_a_list_changes_nothing(case):
    student, other, where = logits(0), logits(1), everywhere()
    want, slope = case.loss(student, other, where), gradient(case, student, other, where)
    assert_close(case.loss(student + 3.0, other, where), want)
    assert_close(gradient(case, student + 3.0, other, where), slope)
    assert_close(slope.sum(dim=1), torch.zeros(B, dtype=torch.float64))
    if case.teacher:
        assert_close(case.loss(student, other - 7.0, where), want)
        assert_close(gradient(case, student - 2.0, other + 1e3, where), slope)

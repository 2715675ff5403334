"""Losses on hidden states: laws over all of them by the lines of CASES, laws of each, golden values."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch.testing import assert_close

from cascade_kd.losses import attention_transfer, hint, relational

N = 6


@dataclass(frozen=True)
class Case:
    """``loss(student, teacher, where_N)`` gives [N]; the widths are those of a state's axes but the first."""

    loss: Callable
    student: tuple[int, ...] = (5,)
    teacher: tuple[int, ...] = (5,)
    batch: bool = False  # a row's value depends on the other rows of its batch; it takes a mask of rows
    scale: bool = False  # a positive factor on any row of the student or of the teacher changes nothing


def relations(x, z, where):
    return relational(x, z, where_N=where)


CASES = {
    "hint": Case(lambda x, z, where: hint(x, z)),
    "hint of fields": Case(lambda x, z, where: hint(x, z), (3, 4), (3, 4)),
    "attention_transfer": Case(lambda x, z, where: attention_transfer(x, z), scale=True),
    "attention_transfer of fields": Case(lambda x, z, where: attention_transfer(x, z), (3, 4), (3, 4), scale=True),
    "attention_transfer D != D": Case(lambda x, z, where: attention_transfer(x, z), (3, 4), (3, 2), scale=True),
    "relational": Case(relations, batch=True, scale=True),
    "relational W != V": Case(relations, (5,), (3,), batch=True, scale=True),
}


def over(cases):
    return pytest.mark.parametrize("case", cases.values(), ids=cases)


ALL = over(CASES)
EQUAL = over({name: case for name, case in CASES.items() if case.student == case.teacher})
ROWS = over({name: case for name, case in CASES.items() if not case.batch})
BATCHES = over({name: case for name, case in CASES.items() if case.batch})
SCALES = over({name: case for name, case in CASES.items() if case.scale})
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


def states(width, seed, scale=1.0, dtype=torch.float64):
    return scale * torch.randn(N, *width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def pair(case, scale=1.0, dtype=torch.float64):
    return states(case.student, 0, scale, dtype), states(case.teacher, 1, scale, dtype)


def everyone(rows=N):
    return torch.ones(rows, dtype=torch.bool)


def gradient(case, student, teacher, where):
    student = student.detach().requires_grad_()
    return torch.autograd.grad(case.loss(student, teacher, where).sum(), student)[0]


def along(factor_N, state):
    return factor_N.view(-1, *[1] * (state.dim() - 1)) * state


@ALL
def test_one_value_per_row(case):
    assert case.loss(*pair(case), everyone()).shape == (N,)


@EQUAL
@DTYPES
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e-6])
def test_a_student_equal_to_its_teacher_has_value_and_gradient_exactly_0(case, dtype, scale):
    same = states(case.student, 0, scale, dtype)
    same[2] = 0.0
    same[3] = same[4]
    where = torch.tensor([True, True, True, True, True, False])
    assert not case.loss(same, same.clone(), where).any()
    assert not gradient(case, same, same.clone(), where).any()


@ALL
def test_another_student_has_a_positive_value_and_a_gradient(case):
    assert (case.loss(*pair(case), everyone()) > 0).all()
    assert (gradient(case, *pair(case), everyone()) != 0).all()


@ALL
def test_a_teacher_with_a_gradient_is_refused(case):
    student, teacher = pair(case)
    with pytest.raises(ValueError, match="the teacher's hidden states carry a gradient"):
        case.loss(student, teacher.requires_grad_(), everyone())


@ALL
def test_autograd_equals_finite_differences(case):
    student, teacher = pair(case, 3.0)
    where = torch.tensor([True, True, False, True, True, True])
    assert torch.autograd.gradcheck(lambda x: case.loss(x, teacher, where), student.requires_grad_())


@ALL
def test_central_differences_at_large_activations(case):
    student, teacher = pair(case, 10.0)
    student[0].view(-1)[:2] = torch.tensor([50.0, -50.0])
    teacher[0].view(-1)[:2] = torch.tensor([-50.0, 50.0])
    exact = gradient(case, student, teacher, everyone())[0].view(-1)
    for unit in range(len(exact)):
        step = torch.zeros_like(student)
        step[0].view(-1)[unit] = h = 1e-4
        up, down = case.loss(student + step, teacher, everyone()), case.loss(student - step, teacher, everyone())
        # The error of the difference itself: rounding of values up to 1e4 divided by h.
        assert ((up - down).sum() / (2 * h)).item() == pytest.approx(exact[unit].item(), rel=1e-6, abs=2e-8)


@ALL
@DTYPES
def test_activations_of_100_give_no_nan_and_no_infinity(case, dtype):
    corners = torch.tensor([100.0, -100.0, 0.0], dtype=dtype)
    student, teacher = pair(case, dtype=dtype)
    for x, z in ((x, z) for x in corners for z in corners):
        filled = student.clone(), teacher.clone()
        filled[0][:3], filled[1][:3] = x, z
        assert case.loss(*filled, everyone()).isfinite().all()
        assert gradient(case, *filled, everyone()).isfinite().all()


@SCALES
@DTYPES
@pytest.mark.parametrize("scale", [1e30, 1e-18])
def test_huge_and_tiny_activations_are_those_of_size_1(case, dtype, scale):
    student, teacher = pair(case, dtype=dtype)
    want, slope = case.loss(student, teacher, everyone()), gradient(case, student, teacher, everyone())
    assert_close(case.loss(scale * student, scale * teacher, everyone()), want)
    assert_close(scale * gradient(case, scale * student, scale * teacher, everyone()), slope)


@SCALES
@pytest.mark.parametrize("side", ["student", "teacher", "both"])
def test_a_row_of_zeros_or_of_next_to_nothing_has_no_direction(case, side):
    student, teacher = pair(case)
    if side != "teacher":
        student[1] = 0.0
        student[2] *= 1e-200
    if side != "student":
        teacher[1] = 0.0
    slope = gradient(case, student, teacher, everyone())
    assert case.loss(student, teacher, everyone()).isfinite().all()
    assert slope.isfinite().all()
    assert side == "teacher" or not slope[1:3].any()


@SCALES
@pytest.mark.parametrize("side", [0, 1])
def test_a_positive_factor_on_a_row_changes_nothing(case, side):
    scaled = list(pair(case))
    want, slope = case.loss(*scaled, everyone()), gradient(case, *scaled, everyone())
    factor_N = torch.tensor([1e-3, 0.5, 1.0, 2.0, 7.0, 1e4], dtype=torch.float64)
    scaled[side] = along(factor_N, scaled[side])
    assert_close(case.loss(*scaled, everyone()), want)
    got = gradient(case, *scaled, everyone())
    assert_close(along(factor_N, got) if side == 0 else got, slope)
    assert_close((pair(case)[0] * slope).flatten(1).sum(1), torch.zeros(N).double())  # no pull along the row itself


@ALL
def test_permuting_the_rows_permutes_the_values(case):
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    student, teacher = pair(case)
    where = torch.tensor([True, True, False, True, True, True])
    got = case.loss(student[order], teacher[order], where[order])
    assert_close(got, case.loss(student, teacher, where)[order])


@EQUAL
def test_permuting_the_units_of_both_changes_nothing(case):
    student, teacher = pair(case)
    order = torch.randperm(case.student[0], generator=torch.Generator().manual_seed(0))
    got = case.loss(student[:, order], teacher[:, order], everyone())
    assert_close(got, case.loss(student, teacher, everyone()))


@ROWS
def test_the_value_of_a_row_does_not_depend_on_its_batch(case):
    student, teacher = pair(case)
    whole = case.loss(student, teacher, everyone())
    parts = [case.loss(student[part], teacher[part], everyone()) for part in (slice(0, 4), slice(4, 6))]  # short last
    assert_close(torch.cat(parts), whole, rtol=0, atol=1e-15)
    assert_close((4 * parts[0].mean() + 2 * parts[1].mean()) / 6, whole.mean())
    # Hence dropping rows before the loss is masking them after it.
    left = torch.tensor([True, False, True, True, False, True])
    assert_close(case.loss(student[left], teacher[left], everyone()), whole[left])


@BATCHES
def test_masking_rows_equals_removing_them(case):
    student, teacher = pair(case)
    left = torch.tensor([True, False, True, True, False, True])
    masked = case.loss(student, teacher, left)
    assert_close(masked[left], case.loss(student[left], teacher[left], everyone(4)))
    assert not masked[~left].any()
    slope = gradient(case, student, teacher, left)
    assert_close(slope[left], gradient(case, student[left], teacher[left], everyone(4)))
    assert not slope[~left].any()


@BATCHES
@pytest.mark.parametrize("rubbish", [float("nan"), -float("inf"), 1e300])
def test_what_stands_under_the_mask_does_not_matter(case, rubbish):
    student, teacher = pair(case)
    left = torch.tensor([True, False, True, True, False, True])
    dirty = student.masked_fill(~left[:, None], rubbish), teacher.masked_fill(~left[:, None], rubbish)
    assert torch.equal(case.loss(*dirty, left), case.loss(student, teacher, left))
    assert torch.equal(gradient(case, *dirty, left), gradient(case, student, teacher, left))


@BATCHES
@pytest.mark.parametrize("left", [0, 1])
def test_a_row_alone_and_no_row_are_0(case, left):
    where = torch.arange(N) < left
    assert not case.loss(*pair(case), where).any()
    assert not gradient(case, *pair(case), where).any()
    assert case.loss(*(state[:0] for state in pair(case)), everyone(0)).shape == (0,)


@pytest.mark.parametrize(
    ("loss", "student", "teacher"),
    [
        (hint, (4, 5), (4, 3)),
        (hint, (4, 5), (3, 5)),
        (hint, (4, 5), (4, 1)),
        (attention_transfer, (4, 5), (4, 3)),
        (attention_transfer, (4, 5), (3, 5)),
        (attention_transfer, (4, 3, 5), (4, 2, 5)),
        (attention_transfer, (4, 3, 5), (4, 3)),
        (attention_transfer, (4,), (4,)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(loss, student, teacher):
    with pytest.raises(ValueError, match=r"one shape|one N"):
        loss(torch.zeros(student), torch.zeros(teacher))


@pytest.mark.parametrize(
    ("student", "teacher", "where"), [((4, 5), (3, 5), 4), ((4, 5), (4, 5, 1), 4), ((4, 5), (4, 5), 1)]
)
def test_rows_that_do_not_fit_are_refused(student, teacher, where):
    with pytest.raises(ValueError, match=r"one N|one shape"):
        relational(torch.zeros(student), torch.zeros(teacher), where_N=everyone(where))


def test_a_worked_hint():
    student = torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 3.0, 4.0], [0.0, 0.0, 2.0]])
    value = hint(student, teacher)
    assert_close(value.detach(), torch.tensor([(1 + 1 + 4) / 2, 4 / 2]))
    value.sum().backward()
    assert_close(student.grad, torch.tensor([[1.0, -1.0, -2.0], [0.0, 0.0, -2.0]]))
    assert_close(hint(student.detach()[:, :, None], teacher[:, :, None]), value.detach())


def test_a_worked_attention_transfer():
    """A_S = (1, 2, 2), A_T = (0, 3, 4): the golden value of three units."""
    student = torch.tensor([[1.0, 2.0, 2.0]], dtype=torch.float64)
    teacher = torch.tensor([[0.0, 3.0, 4.0]], dtype=torch.float64)
    value = attention_transfer(student, teacher).item()
    cosine = (1 * 0 + 4 * 9 + 4 * 16) / math.sqrt((1 + 16 + 16) * (0 + 81 + 256))
    assert value == pytest.approx(2 - 2 * cosine, rel=1e-12)
    assert value == pytest.approx(0.1034771689, abs=5e-11)
    assert value / 3 == pytest.approx(0.0344923896, abs=5e-11)


def test_attention_sums_the_channels_of_a_place():
    """Two fields with channels (3, 4) and (0, 12): squares 25 and 144, the map of (5, 12)."""
    student = torch.tensor([[[3.0, 4.0], [0.0, 12.0]]])
    teacher = torch.tensor([[1.0, 0.5]])
    want = attention_transfer(torch.tensor([[5.0, 12.0]]), teacher)
    assert_close(attention_transfer(student, teacher[:, :, None]), want)


def test_attention_sees_neither_the_order_nor_the_sign_of_channels():
    student, teacher = states((3, 4), 0), states((3, 4), 1)
    want = attention_transfer(student, teacher)
    sign = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    assert_close(attention_transfer(student[:, :, [2, 0, 3, 1]] * sign, teacher), want)
    assert_close(attention_transfer(student, -teacher[:, :, [3, 2, 1, 0]]), want)
    units, other = student[:, :, 0], teacher[:, :, 0]
    assert_close(attention_transfer(-units, other), attention_transfer(units, other))


def test_attention_of_proportional_and_of_disjoint_states():
    student = states((5,), 0)
    assert_close(attention_transfer(student, 3 * student), torch.zeros(N).double(), rtol=0, atol=1e-30)
    apart = attention_transfer(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 2.0], [0.0, 2.0]]))
    assert_close(apart, torch.tensor([2.0, 1.0]))


def test_a_worked_relation():
    """Three rows: cosines 0, 0.6, 0.8 against 0, 0, 1."""
    student = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 4.0]], dtype=torch.float64)
    teacher = torch.tensor([[1.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.5, 0.0]], dtype=torch.float64)
    got = relational(student, teacher, where_N=everyone(3))
    want = [(0 + 0.6**2) / 2, (0 + 0.2**2) / 2, (0.6**2 + 0.2**2) / 2]
    assert_close(got, torch.tensor(want, dtype=torch.float64))
    assert got.mean().item() == pytest.approx((0 + 0.36 + 0.04) / 3)  # the mean over the three pairs


def test_relations_written_out():
    student, teacher = states((5,), 0), states((3,), 1)
    got = relational(student, teacher, where_N=everyone())
    for i in range(N):
        others = [j for j in range(N) if j != i]
        gaps = [
            torch.cosine_similarity(student[i], student[j], dim=0)
            - torch.cosine_similarity(teacher[i], teacher[j], dim=0)
            for j in others
        ]
        assert got[i].item() == pytest.approx(sum(gap.item() ** 2 for gap in gaps) / len(others), rel=1e-12)


def test_relations_see_no_rotation_of_either_side():
    student, teacher = states((5,), 0), states((5,), 1)
    rotation = torch.linalg.qr(states((N,), 2)[:5, :5])[0]
    want = relational(student, teacher, where_N=everyone())
    assert_close(relational(student @ rotation, teacher, where_N=everyone()), want)
    assert_close(relational(student, teacher @ rotation, where_N=everyone()), want)
    assert_close(hint(student @ rotation, teacher @ rotation), hint(student, teacher))
    assert_close(
        relational(student @ rotation, student, where_N=everyone()), torch.zeros(N).double(), rtol=0, atol=1e-28
    )


def test_a_row_of_zeros_has_cosine_0():
    student = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    teacher = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    assert_close(relational(student, teacher, where_N=everyone(2)), torch.full((2,), 0.5))

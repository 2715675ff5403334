"""Folding under a mask, and membership in ragged sets."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from cascade_kd.masked import is_member, masked_log_softmax, masked_mean, masked_sum

FOLDS = {"log_softmax": masked_log_softmax, "sum": masked_sum, "mean": masked_mean}
WHERE = torch.tensor([[True, False, True, True], [False, False, False, False], [False, True, False, False]])


def values(seed=0):
    return torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_log_softmax_is_that_of_the_places_left():
    x = values()
    got = masked_log_softmax(x, WHERE)
    assert_close(got[0, [0, 2, 3]], torch.log_softmax(x[0, [0, 2, 3]], 0))
    assert got[0, 1] == 0
    assert got[2].tolist() == [0, 0, 0, 0]  # one place: probability 1


def test_sum_and_mean_are_those_of_the_places_left():
    x = values()
    assert_close(masked_sum(x, WHERE), torch.stack([x[0, 0] + x[0, 2] + x[0, 3], 0 * x[0, 0], x[2, 1]]))
    assert_close(masked_mean(x, WHERE), masked_sum(x, WHERE) / torch.tensor([3, 1, 1]))
    assert_close(masked_mean(x[0], WHERE[0]), x[0, [0, 2, 3]].mean())  # a column of rows


@pytest.mark.parametrize("fold", FOLDS.values(), ids=FOLDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rubbish", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_what_stands_under_the_mask_changes_nothing(fold, dtype, rubbish):
    clean = values().to(dtype).requires_grad_()
    dirty = clean.detach().masked_fill(~WHERE, rubbish).requires_grad_()
    weight = torch.arange(1.0, 5.0, dtype=dtype)
    for x in (clean, dirty):
        out = fold(x, WHERE)
        (out * (weight if out.ndim == 2 else 1)).sum().backward()
    assert torch.equal(fold(clean, WHERE), fold(dirty, WHERE))
    assert torch.equal(clean.grad, dirty.grad)
    assert not clean.grad[~WHERE].any()


@pytest.mark.parametrize("fold", FOLDS.values(), ids=FOLDS)
def test_an_empty_row_is_0_with_gradient_0(fold):
    x = values().requires_grad_()
    out = fold(x, torch.zeros_like(WHERE))
    out.sum().backward()
    assert not out.any()
    assert not x.grad.any()
    assert torch.equal(fold(torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool)).sum(), torch.tensor(0.0))


ragged = st.lists(st.lists(st.integers(0, 12), max_size=6).map(sorted), min_size=1, max_size=5)


@settings(deadline=None, max_examples=100)
@given(ragged, st.data())
def test_membership_equals_a_loop(sets, data):
    width = data.draw(st.integers(0, 5))
    line = st.lists(st.integers(-1, 14), min_size=width, max_size=width)
    items = data.draw(st.lists(line, min_size=len(sets), max_size=len(sets)))
    offsets = torch.tensor([0, *(len(row) for row in sets)]).cumsum(0)
    members = torch.tensor([x for row in sets for x in row], dtype=torch.int64)
    got = is_member(torch.tensor(items, dtype=torch.int64).reshape(len(sets), width), offsets, members)
    assert got.tolist() == [[x in row for x in places] for places, row in zip(items, sets, strict=True)]


def test_padding_is_not_the_largest_item_of_the_row_before():
    items = torch.tensor([[5], [-1]])  # with keys row * 6 + item both would be 5
    assert is_member(items, torch.tensor([0, 1, 2]), torch.tensor([5, 3])).tolist() == [[True], [False]]


def test_membership_refuses_sets_that_it_would_misread():
    items = torch.tensor([[1], [2]])
    with pytest.raises(ValueError, match="must ascend"):
        is_member(items, torch.tensor([0, 2, 3]), torch.tensor([3, 1, 2]))
    with pytest.raises(ValueError, match="B \\+ 1 = 3 entries from 0 to 3"):
        is_member(items, torch.tensor([0, 3]), torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="from 0 to 2"):
        is_member(items, torch.tensor([0, 1, 2]), torch.tensor([1, 2, 3]))

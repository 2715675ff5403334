"""Embedding tables: a row-sparse gradient is the dense one's touched rows; no step sees the whole table."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cascade_kd.models import FieldEmbedding, Table
from cascade_kd.models.table import take_rows
from cascade_kd.types import Feature


def table(rows: int = 7, dim: int = 3, *, sparse: bool, seed: int = 0) -> Table:
    torch.manual_seed(seed)
    made = Table(rows, dim, std=1.0).to(torch.float64)
    if sparse:
        made.touched = []
    return made


def gradient(made: Table) -> Tensor:
    """[V, D], from whichever place the table leaves it in."""
    if made.touched is None:
        return torch.zeros_like(made.weight) if made.weight.grad is None else made.weight.grad
    assert made.weight.grad is None
    dense_VD = torch.zeros_like(made.weight)
    taken = made.take_touched()
    if taken is not None:
        row_U, grad_UD = taken
        assert torch.equal(row_U, row_U.unique())
        dense_VD[row_U] = grad_UD
    return dense_VD.detach()


def loss_of(made: Table, codes: list[Tensor], pooled: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Uses every look-up with factors of its own, so that no two gradients are alike."""
    looked = [made(code) for code in codes] + [made.weighted_sum(code, weight) for code, weight in pooled]
    parts = [(x * torch.arange(1.0, x.numel() + 1).view_as(x)).sum() + x.square().sum() for x in looked]
    return torch.stack([*parts, made.weight.new_zeros(())]).sum()


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_row_sparse_gradient_is_the_dense_one(data: st.DataObject) -> None:
    rows, dim = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    shapes = data.draw(st.lists(st.sampled_from([(5,), (4, 3), (2, 3, 2), (0, 3)]), max_size=3))
    codes = [torch.randint(0, rows, shape, generator=generator) for shape in shapes]
    pooled = [
        (
            torch.randint(0, rows, (n, 4), generator=generator),
            torch.randint(0, 2, (n, 4), generator=generator) * torch.rand(n, 4, generator=generator).double(),
        )
        for n in data.draw(st.lists(st.integers(1, 6), max_size=2))
    ]
    dense, sparse = table(rows, dim, sparse=False), table(rows, dim, sparse=True)
    for made in (dense, sparse):
        loss = loss_of(made, codes, pooled)
        if loss.requires_grad:
            loss.backward()
    for code in codes:
        assert torch.equal(dense(code), sparse(code))
    for code, weight in pooled:
        assert torch.equal(dense.weighted_sum(code, weight), sparse.weighted_sum(code, weight))
    read = torch.cat(
        [code.flatten() for code in codes] + [code[weight > 0] for code, weight in pooled] or [torch.empty(0)]
    )
    touched = {int(row) for share in sparse.touched or () for row in share.code_E}
    assert touched == {int(row) for row in read}  # neither more (padding) nor less
    torch.testing.assert_close(gradient(sparse), gradient(dense), rtol=1e-12, atol=1e-12)
    assert sparse.touched == []


def test_gradients_are_those_of_finite_differences() -> None:
    codes, pooled = (
        torch.tensor([[1, 1], [4, 0]]),
        (torch.tensor([[2, 1, 0]]), torch.tensor([[0.5, 2.0, 0.0]]).double()),
    )
    dense = table(sparse=False)

    def value(weight_VD: Tensor) -> Tensor:
        named = {"weight": weight_VD}
        looked = torch.func.functional_call(dense, named, (codes,))
        return (looked.sum(1) * torch.ones(3).double()).sin()

    assert torch.autograd.gradcheck(value, (dense.weight.detach().clone().requires_grad_(),))
    sparse = table(sparse=True)
    loss_of(sparse, [codes], [pooled]).backward()
    analytic_VD, h = gradient(sparse), 1e-6
    with torch.no_grad():
        for row in range(7):
            for d in range(3):
                ends = []
                for step in (h, -2 * h):
                    sparse.weight[row, d] += step
                    ends.append(loss_of(sparse, [codes], [pooled]).item())
                sparse.weight[row, d] += h
                assert analytic_VD[row, d].item() == pytest.approx((ends[0] - ends[1]) / (2 * h), abs=1e-6)


def test_two_backward_passes_add_up_as_in_a_dense_gradient() -> None:
    made, dense = table(sparse=True), table(sparse=False)
    for each in (made, dense):
        loss_of(each, [torch.tensor([3, 3, 1])], []).backward()
        loss_of(each, [torch.tensor([1, 5])], []).backward()
    torch.testing.assert_close(gradient(made), gradient(dense))


def test_nothing_is_collected_without_a_backward_pass() -> None:
    made = table(sparse=True)
    with torch.no_grad():
        assert not made(torch.tensor([1])).requires_grad
        assert not made.weighted_sum(torch.tensor([[1, 2]]), torch.ones(1, 2).double()).requires_grad
    made(torch.tensor([2])).sum()
    assert made.touched == []
    assert made.take_touched() is None


def test_padding_alone_touches_nothing() -> None:
    made = table(sparse=True)
    made.weighted_sum(torch.tensor([[1, 2]]), torch.zeros(1, 2).double()).sum().backward()
    assert made.take_touched() is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 8, 17])
def test_take_rows(dtype: torch.dtype, width: int) -> None:
    rows = torch.randn(50, width, dtype=dtype)
    code = torch.tensor([49, 0, 7, 7, 31])
    assert torch.equal(take_rows(rows, code), rows[code])
    assert torch.equal(take_rows(rows, code.to(torch.int32)), rows[code])
    assert take_rows(rows, code[:0]).shape == (0, width)
    assert not take_rows(rows.requires_grad_(), code).requires_grad


def test_a_copy_collects_for_itself_and_names_stay() -> None:
    made = table(sparse=True)
    twin = copy.deepcopy(made)
    twin(torch.tensor([1])).sum().backward()
    assert made.touched == []
    assert len(twin.touched or ()) == 1
    assert list(made.state_dict()) == ["weight"]


def test_first_weights_are_one_draw_of_the_normal_distribution() -> None:
    for rows, dim in ((3, 2), (40_001, 16)):
        torch.manual_seed(5)
        plain = nn.init.normal_(torch.empty(rows, dim), std=0.3)
        torch.manual_seed(5)
        assert torch.equal(Table(rows, dim, std=0.3).weight, plain)


PEAK = """
import sys
import torch
from cascade_kd.models import FieldEmbedding, Table
from cascade_kd.train.row_optimizers import RowAdagrad

def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024

def train(rows):
    table = Table(rows, 8, std=0.1)
    made = status("VmHWM")
    optimizer = RowAdagrad([table], lr=0.1, rowwise=True)
    for _ in range(5):
        optimizer.zero_grad()
        table(torch.randint(0, rows, (64, 8))).square().sum().backward()
        optimizer.step()
    return made, status("VmHWM")

train(1000)  # loads what torch loads on first use
before = status("VmRSS")
print(*(peak - before for peak in train(int(sys.argv[1]))))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_there_is_never_a_second_copy_of_a_table() -> None:
    rows = 3_000_000
    size = rows * 8 * 4
    done = subprocess.run([sys.executable, "-c", PEAK, str(rows)], capture_output=True, text=True, check=True)
    made, trained = (int(word) for word in done.stdout.split())
    assert size * 0.9 < made < size * 1.15
    assert trained < size * (1 + 1 / 8) * 1.15


LARGE = (
    Feature("user_id", "categorical", "user", "recall", size=23, vocabulary="user_id"),
    Feature("sex", "categorical", "user", "recall", size=3, vocabulary="sex"),
    Feature("liked", "history", "user", "recall", size=30, length=4, vocabulary="item_id"),
    Feature("item_id", "categorical", "item", "recall", size=30, vocabulary="item_id"),
)


@pytest.mark.parametrize("sparse", [False, True])
def test_compressed_vocabularies_sum_a_row_of_the_remainder_and_one_of_the_quotient(sparse: bool) -> None:
    torch.manual_seed(0)
    fields = FieldEmbedding(LARGE, 4, 0.5, max_rows=7)
    if sparse:
        fields.table.touched = []
    assert len(fields.table.weight) == (7 + 4) + 3 + (7 + 5)
    weight = fields.table.weight

    def value(vocabulary: str, code: int) -> Tensor:
        first = fields.offsets[vocabulary]
        if vocabulary == "sex":
            return weight[first + code]
        return weight[first + code % 7] + weight[first + 7 + code // 7]

    user = {
        "user_id": torch.tensor([0, 22, 8]),
        "sex": torch.tensor([1, 2, 0]),
        "liked": torch.tensor([[29, 7, 0, 0], [0, 0, 0, 0], [1, 8, 15, 22]]),
    }
    looked = fields.user_fields(user)
    assert fields.user.names == ("user_id", "sex", "liked")
    for n in range(3):
        torch.testing.assert_close(looked[n, 0], value("user_id", int(user["user_id"][n])))
        torch.testing.assert_close(looked[n, 1], value("sex", int(user["sex"][n])))
        items = [value("item_id", code) for code in user["liked"][n].tolist() if code]
        torch.testing.assert_close(looked[n, 2], torch.stack(items).mean(0) if items else torch.zeros(4))
    items_R = torch.arange(30)
    looked_RFD = fields.item_fields({"item_id": items_R})
    torch.testing.assert_close(looked_RFD[:, 0], torch.stack([value("item_id", code) for code in range(30)]))
    torch.testing.assert_close(fields.values("item_id", items_R), looked_RFD[:, 0])
    assert len(looked_RFD[:, 0].unique(dim=0)) == 30  # no two values alike


def test_a_vocabulary_that_fits_is_not_compressed() -> None:
    for most in (None, 30, 31):
        torch.manual_seed(0)
        fields = FieldEmbedding(LARGE, 4, max_rows=most)
        assert len(fields.table.weight) == 23 + 3 + 30
        assert torch.equal(fields.values("item_id", torch.tensor([29]))[0], fields.table.weight[-1])

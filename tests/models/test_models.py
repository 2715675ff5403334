"""Models on made-up features: look-ups against plain torch, hidden states, gradients, what each side sees."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cascade_kd.errors import UserError
from cascade_kd.models import DCNv2, TwoTower
from cascade_kd.models.table import Table
from cascade_kd.types import Feature, Inputs

USER = Feature("user_id", "categorical", "user", "recall", size=6, vocabulary="user_id")
ITEM = Feature("item_id", "categorical", "item", "recall", size=9, vocabulary="item_id")
LIKED = Feature("liked", "history", "user", "recall", size=9, length=4, vocabulary="item_id")
TAGS = Feature("tags", "tags", "item", "recall", size=5, length=3, vocabulary="tags")
HOUR = Feature("hour", "numeric", "context", "recall")
RATE = Feature("rate", "statistic", "pair", "rank")
SHALLOW = (USER, ITEM, LIKED, TAGS, HOUR)
B, R = 3, 5


def inputs() -> Inputs:
    g = torch.Generator().manual_seed(0)
    user = {
        "user_id": torch.tensor([1, 2, 5]),
        "liked": torch.tensor([[3, 8, 0, 0], [0, 0, 0, 0], [1, 2, 3, 4]]),
        "hour": torch.randn(B, generator=g),
    }
    item = {
        "item_id": torch.tensor([1, 8, 3, 3, 2]),
        "tags": torch.tensor([[1, 2, 0], [0, 0, 0], [4, 0, 0], [4, 0, 0], [1, 2, 3]]),
        "rate": torch.randn(R, generator=g),
    }
    return Inputs(user, item, torch.tensor([0, 0, 1, 2, 2]))


def dcn() -> DCNv2:
    torch.manual_seed(0)
    return DCNv2(DCNv2.Config(embedding_size=4, hidden=(6, 5), cross_layers=2), (*SHALLOW, RATE))


def tower(**keys: object) -> TwoTower:
    torch.manual_seed(0)
    return TwoTower(TwoTower.Config(embedding_size=4, hidden=(6,), output_size=3, **keys), SHALLOW)


@pytest.mark.parametrize("dim", [1, 3])
def test_pooled_and_plain_look_ups_have_the_gradient_of_embedding(dim: int) -> None:
    table = Table(11, dim, std=1.0).double()
    codes = torch.randint(0, 11, (7, 5))
    weight = torch.rand(7, 5, dtype=torch.float64)
    for mine, plain in (
        (lambda: table(codes), lambda: F.embedding(codes, table.weight)),
        (
            lambda: table.weighted_sum(codes, weight),
            lambda: (F.embedding(codes, table.weight) * weight.unsqueeze(2)).sum(1),
        ),
    ):
        torch.testing.assert_close(mine(), plain())
        grads = [torch.autograd.grad(looked().square().sum(), table.weight)[0] for looked in (mine, plain)]
        torch.testing.assert_close(*grads)


def test_pooled_fields_are_means_without_padding() -> None:
    model = tower()
    fields = model.fields.user_fields(inputs().user)
    row = model.fields.user.names.index("liked")
    offset = model.fields.offsets["item_id"]
    table = model.fields.table.weight
    torch.testing.assert_close(fields[0, row], (table[offset + 3] + table[offset + 8]) / 2)
    assert torch.equal(fields[1, row], torch.zeros(4))
    assert "liked" not in model.fields.offsets  # the history reads the items' own rows


@pytest.mark.parametrize("model", [dcn(), tower(), tower(similarity="cosine", temperature=0.1)], ids=str)
def test_rows_do_not_see_each_other(model: DCNv2 | TwoTower) -> None:
    x = inputs()
    logits = model(x).logits_R
    for r in range(R):
        one = Inputs(x.user, {name: column[r : r + 1] for name, column in x.item.items()}, x.row_R[r : r + 1])
        torch.testing.assert_close(model(one).logits_R, logits[r : r + 1])


@pytest.mark.parametrize("model", [dcn(), tower()], ids=["dcnv2", "two-tower"])
def test_hidden_states_come_only_when_asked_for(model: DCNv2 | TwoTower) -> None:
    assert model(inputs()).hidden == {}
    for name in model.hidden_names:
        assert set(model(inputs(), [name]).hidden) == {name}
    assert set(model(inputs(), model.hidden_names).hidden) == set(model.hidden_names)


@pytest.mark.parametrize("model", [dcn(), tower()], ids=["dcnv2", "two-tower"])
def test_every_parameter_learns(model: DCNv2 | TwoTower) -> None:
    model.zero_grad()
    model(inputs()).logits_R.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if name.endswith(("weight", "weight_FD")):
            assert parameter.grad.abs().sum() > 0, name


def test_dcn_cross_is_the_papers_formula() -> None:
    model = dcn()
    states = model(inputs(), ["embedding", "interaction"]).hidden
    x0: Tensor = states["embedding"]
    x = x0
    for layer in model.cross:
        x = x0 * (x @ layer.weight.T + layer.bias) + x
    torch.testing.assert_close(states["interaction"], x)


@pytest.mark.parametrize("keys", [{}, {"similarity": "cosine", "temperature": 0.1}], ids=["dot", "cosine"])
def test_tower_logit_is_the_inner_product_that_an_index_computes(keys: dict[str, object]) -> None:
    model, x = tower(**keys), inputs()
    with torch.no_grad():
        model.bias.fill_(0.5)
    user, item = model.user_vectors(x.user), model.item_vectors(x.item)
    torch.testing.assert_close((user[x.row_R] * item).sum(1) + 0.5, model(x).logits_R)
    if keys:
        torch.testing.assert_close(item.norm(dim=1), torch.ones(R))


def test_two_tower_refuses_pair_features() -> None:
    with pytest.raises(UserError, match=r"pair features \['rate'\]"):
        TwoTower(TwoTower.Config(), (*SHALLOW, RATE))


def test_unseen_features_do_not_matter() -> None:
    x = inputs()
    model = tower()
    before = model(x).logits_R
    x.item["rate"].fill_(1e9)
    assert torch.equal(model(x).logits_R, before)
    assert torch.equal(model(x.drop(frozenset({"rate"}))).logits_R, before)

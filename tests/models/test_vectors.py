"""Models with precomputed vectors: the projection, its gradient, and that something is learned through it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cascade_kd.models import DCNv2, TwoTower
from cascade_kd.types import Feature, Inputs

USER = Feature("taste", "vector", "user", "recall", length=3)
ITEM = Feature("picture", "vector", "item", "recall", length=5)
SEX = Feature("sex", "categorical", "user", "recall", size=3, vocabulary="sex")
PRICE = Feature("price", "numeric", "item", "recall")
FEATURES = (USER, SEX, PRICE, ITEM)
MODELS = ["dcnv2", "two-tower"]


def made(name: str) -> DCNv2 | TwoTower:
    torch.manual_seed(0)
    if name == "dcnv2":
        return DCNv2(DCNv2.Config(embedding_size=4, hidden=(8,), cross_layers=1), FEATURES)
    return TwoTower(TwoTower.Config(embedding_size=4, hidden=(8,), output_size=4), FEATURES)


def inputs(seed: int, rows: int = 400, users: int = 60) -> Inputs:
    g = torch.Generator().manual_seed(seed)
    user = {"taste": torch.randn(users, 3, generator=g), "sex": torch.randint(0, 3, (users,), generator=g)}
    item = {"picture": torch.randn(rows, 5, generator=g), "price": torch.randn(rows, generator=g)}
    return Inputs(user, item, torch.randint(0, users, (rows,), generator=g))


@pytest.mark.parametrize("name", MODELS)
def test_a_vector_is_one_projected_field(name: str) -> None:
    fields = made(name).fields
    x = inputs(1)
    assert fields.user.names == ("sex", "taste")
    assert fields.item.names == ("price", "picture")
    assert fields.offsets == {"sex": 0}, "a vector takes no row of the table"
    weight, bias = fields.item.projections[0].weight, fields.item.projections[0].bias
    item_RFD = fields.item_fields(x.item)
    assert item_RFD.shape == (400, 2, 4)
    torch.testing.assert_close(item_RFD[:, 1], x.item["picture"] @ weight.T + bias)
    nothing = fields.item_fields({"picture": torch.zeros(1, 5), "price": torch.zeros(1)})
    assert torch.equal(nothing[0, 1], bias), "a missing vector is the bias"


@pytest.mark.parametrize("name", MODELS)
def test_a_model_learns_from_vectors(name: str) -> None:
    """The label is the sign of <taste, the first three numbers of picture>, which nothing else tells."""
    model = made(name)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    x, unseen = inputs(1, rows=2000), inputs(2, rows=500)

    def label(of: Inputs) -> torch.Tensor:
        return ((of.user["taste"][of.row_R] * of.item["picture"][:, :3]).sum(1) > 0).float()

    def loss(of: Inputs) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(model(of).logits_R, label(of))

    first = loss(x)
    first.backward()
    for side in (model.fields.user, model.fields.item):
        assert side.projections[0].weight.grad.abs().min() > 0
    for _ in range(250):
        optimizer.zero_grad()
        loss(x).backward()
        optimizer.step()
    assert first > 0.65
    assert loss(x) < 0.4
    assert loss(unseen) < 0.5

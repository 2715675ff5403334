"""A two-tower model without hidden layers and projection is matrix factorisation."""

from __future__ import annotations

import pytest
import torch

from cascade_kd.errors import UserError
from cascade_kd.models import TwoTower
from cascade_kd.types import Feature, Inputs

USER = Feature("user_id", "categorical", "user", "recall", size=5, vocabulary="user")
ITEM = Feature("item_id", "categorical", "item", "recall", size=7, vocabulary="item")
PLAIN = TwoTower.Config(embedding_size=4, hidden=(), output_size=0)


def test_the_logit_is_the_product_of_two_rows_and_one_bias() -> None:
    torch.manual_seed(0)
    model = TwoTower(PLAIN, (USER, ITEM))
    with torch.no_grad():
        model.bias.fill_(0.25)
    inputs = Inputs({"user_id": torch.tensor([1, 4])}, {"item_id": torch.tensor([6, 2, 2])}, torch.tensor([0, 0, 1]))
    user = model.user_vectors(inputs.user)
    item = model.item_vectors(inputs.item)
    assert user.shape == (2, 4)
    torch.testing.assert_close(model(inputs).logits_R, (user[[0, 0, 1]] * item).sum(1) + 0.25)
    table = [p for name, p in model.named_parameters() if name != "bias"]
    assert sum(p.numel() for p in table) == (5 + 7) * 4  # the rows and nothing else
    assert all(any(torch.equal(row, known) for known in table[0]) for row in (*user, *item))


def test_towers_of_two_widths_are_refused() -> None:
    sex = Feature("sex", "categorical", "user", "recall", size=3, vocabulary="sex")
    with pytest.raises(UserError, match="user vectors of width 8 and item vectors of width 4; want output_size >= 1"):
        TwoTower(PLAIN, (USER, sex, ITEM))
    TwoTower(TwoTower.Config(embedding_size=4, hidden=(8,), output_size=0), (USER, sex, ITEM))

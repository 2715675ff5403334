"""History encoders: what they read, in what order, and what padding does."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from cascade_kd.models import TwoTower
from cascade_kd.models.history import AttentionPooling, LastItems, Transformer, make_encoder
from cascade_kd.models.settings import HistoryConfig
from cascade_kd.types import Feature

D, L = 4, 6
CONFIGS = {
    "last": HistoryConfig(kind="last", last=2),
    "attention": HistoryConfig(kind="attention"),
    "transformer": HistoryConfig(kind="transformer", heads=2),
}


@pytest.fixture(params=CONFIGS)
def encoder(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return make_encoder(CONFIGS[request.param], D, L)


def history(length: int, width: int = L, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """One history of ``length`` items, padded to ``width`` with rubbish that nobody may read."""
    items = torch.randn(1, length, D, generator=torch.Generator().manual_seed(seed))
    padded = torch.cat([items, torch.full((1, width - length, D), 1e3)], dim=1)
    return padded, torch.arange(width).unsqueeze(0) < length


@pytest.mark.parametrize("length", [1, 3, 6])
def test_padding_is_as_if_it_were_not_there(encoder: nn.Module, length: int) -> None:
    torch.testing.assert_close(encoder(*history(length)), encoder(*history(length, width=length)))


def test_an_empty_history_is_zero_and_its_gradient_finite(encoder: nn.Module) -> None:
    items, valid = history(0)
    items.requires_grad_()
    encoded = encoder(items, valid)
    assert torch.equal(encoded, torch.zeros(1, D))
    encoded.sum().backward()
    assert items.grad is not None
    assert torch.equal(items.grad, torch.zeros_like(items))
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())


def test_rows_do_not_see_each_other(encoder: nn.Module) -> None:
    parts = [history(n, seed=n) for n in (2, 6, 0)]
    together = encoder(torch.cat([items for items, _ in parts]), torch.cat([valid for _, valid in parts]))
    for row, (items, valid) in enumerate(parts):
        torch.testing.assert_close(together[row : row + 1], encoder(items, valid))


def test_last_items_are_the_first_places() -> None:
    items, valid = history(4)
    torch.testing.assert_close(LastItems(2)(items, valid), items[:, :2].mean(1))
    torch.testing.assert_close(LastItems(9)(items, valid), items[:, :4].mean(1))


def test_attention_pooling_is_its_formula_and_ignores_the_order() -> None:
    torch.manual_seed(0)
    pool = AttentionPooling(D)
    items, valid = history(4)
    weight = torch.stack([pool.query(pool.project(x).tanh())[0] for x in items[0, :4]]).softmax(0)
    torch.testing.assert_close(pool(items, valid)[0], (weight.unsqueeze(1) * items[0, :4]).sum(0))
    turned = torch.cat([items[:, :4].flip(1), items[:, 4:]], dim=1)
    torch.testing.assert_close(pool(turned, valid), pool(items, valid))


def test_transformer_is_causal() -> None:
    """What a place outputs depends on itself and on earlier items (higher places) alone."""
    torch.manual_seed(0)
    transformer = Transformer(D, L, blocks=2, heads=1, dropout=0.0)
    items = torch.randn(1, L, D, requires_grad=True)
    earlier = torch.ones(L, L, dtype=torch.bool).triu()
    x = items * D**0.5 + transformer.position_LD
    for block in transformer.blocks:
        x = block(x, earlier[None, None])
    for place in range(L):
        (grad,) = torch.autograd.grad(x[0, place].sum(), items, retain_graph=True)
        reads = grad[0].abs().sum(1) > 0
        assert reads.tolist() == [other >= place for other in range(L)]
    torch.testing.assert_close(transformer(items, torch.ones(1, L, dtype=torch.bool)), transformer.norm(x[:, 0]))


def test_transformer_minds_the_order() -> None:
    torch.manual_seed(0)
    transformer = Transformer(D, L, blocks=1, heads=1, dropout=0.0)
    items, valid = history(4)
    turned = torch.cat([items[:, :1], items[:, 1:4].flip(1), items[:, 4:]], dim=1)
    assert not torch.allclose(transformer(turned, valid), transformer(items, valid))


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_tower_reads_its_encoder(kind: str) -> None:
    features = (
        Feature("user_id", "categorical", "user", "recall", size=6, vocabulary="user_id"),
        Feature("item_id", "categorical", "item", "recall", size=9, vocabulary="item_id"),
        Feature("liked", "history", "user", "recall", size=9, length=L, vocabulary="item_id"),
    )
    torch.manual_seed(0)
    tower = TwoTower(TwoTower.Config(embedding_size=D, hidden=(5,), output_size=3, history=CONFIGS[kind]), features)
    columns = {"user_id": torch.tensor([1, 2]), "liked": torch.tensor([[3, 8, 1, 0, 0, 0], [0] * L])}
    tower.user_vectors(columns).square().sum().backward()
    for name, parameter in tower.encoders.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all()
    assert "history" in tower.hidden_names


def test_heads_must_divide_the_embedding() -> None:
    with pytest.raises(ValidationError, match="heads = 3 does not divide embedding_size = 4"):
        TwoTower.Config(embedding_size=4, history={"kind": "transformer", "heads": 3})


@pytest.mark.parametrize("kind", [kind for kind, config in CONFIGS.items() if config.causal])
@pytest.mark.parametrize("length", [1, 4, L])
def test_along_a_history_is_every_history_that_ends_in_it(kind: str, length: int) -> None:
    """Without positions; at the last place with them too."""
    torch.manual_seed(0)
    encoder = make_encoder(CONFIGS[kind], D, L).double()
    items, valid = (x.double() if x.is_floating_point() else x for x in history(length))
    for zeroed in (False, True):
        if zeroed and isinstance(encoder, Transformer):
            nn.init.zeros_(encoder.position_LD)
        along = encoder.along(items, valid)
        for end in range(1, length + 1) if zeroed else (length,):
            alone = encoder(items[:, :end].flip(1), valid[:, :end])
            torch.testing.assert_close(along[:, end - 1], alone, rtol=1e-12, atol=1e-12)


def test_last_items_along_a_short_history() -> None:
    items, valid = history(3)
    along = LastItems(9).along(items, valid)
    for end in (1, 2, 3):
        torch.testing.assert_close(along[:, end - 1], items[:, :end].mean(1))

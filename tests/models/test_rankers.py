"""Rankers against their formulas, written as loops; and what every ranker must do."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from cascade_kd.errors import UserError
from cascade_kd.models import DIN, DCNv2, FinalMLP, Model, Ranker
from cascade_kd.models.din import AttentionUnit
from cascade_kd.models.interaction import CompressedInteraction, FactorizationMachine, SelfAttention
from cascade_kd.types import Feature, Inputs

USER = Feature("user_id", "categorical", "user", "recall", size=6, vocabulary="user_id")
ITEM = Feature("item_id", "categorical", "item", "recall", size=9, vocabulary="item_id")
LIKED = Feature("liked", "history", "user", "recall", size=9, length=4, vocabulary="item_id")
TAGS = Feature("tags", "tags", "item", "recall", size=5, length=3, vocabulary="tags")
HOUR = Feature("hour", "numeric", "context", "recall")
RATE = Feature("rate", "statistic", "pair", "rank")
FEATURES = (USER, ITEM, LIKED, TAGS, HOUR, RATE)
R = 5


def inputs() -> Inputs:
    g = torch.Generator().manual_seed(0)
    user = {
        "user_id": torch.tensor([1, 2, 5]),
        "liked": torch.tensor([[3, 8, 0, 0], [0, 0, 0, 0], [1, 2, 3, 4]]),
        "hour": torch.randn(3, generator=g),
    }
    item = {
        "item_id": torch.tensor([1, 8, 3, 3, 2]),
        "tags": torch.tensor([[1, 2, 0], [0, 0, 0], [4, 0, 0], [4, 0, 0], [1, 2, 3]]),
        "rate": torch.randn(R, generator=g),
    }
    return Inputs(user, item, torch.tensor([0, 0, 1, 2, 2]))


def ranker(**keys: object) -> Ranker:
    torch.manual_seed(0)
    return Ranker(Ranker.Config(**{"embedding_size": 4, "hidden": (6, 5), "layers": 2} | keys), FEATURES)


def din() -> DIN:
    torch.manual_seed(0)
    return DIN(DIN.Config(embedding_size=4, hidden=(6,), attention_hidden=(5, 3)), FEATURES)


def final_mlp(**keys: object) -> FinalMLP:
    torch.manual_seed(0)
    return FinalMLP(FinalMLP.Config(**{"embedding_size": 4, "hidden": (6, 4)} | keys), FEATURES)


RANKERS = {
    "lr": lambda: ranker(linear=True, hidden=()),
    "fm": lambda: ranker(linear=True, hidden=(), interaction="fm"),
    "dnn": lambda: ranker(),
    "wide-deep": lambda: ranker(linear=True),
    "deepfm": lambda: ranker(linear=True, interaction="fm"),
    "dcnv2": lambda: ranker(interaction="cross"),
    "xdeepfm": lambda: ranker(linear=True, interaction="cin", maps=3),
    "autoint": lambda: ranker(interaction="attention", heads=2, attention_size=3),
    "final-mlp": lambda: final_mlp(fusion_heads=2, second_hidden=(8,), gate_hidden=3),
    "din": din,
}


@pytest.fixture(params=RANKERS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return RANKERS[request.param]()


def test_is_a_model(model: nn.Module) -> None:
    assert isinstance(model, Model)


def test_rows_do_not_see_each_other(model: nn.Module) -> None:
    x = inputs()
    logits = model(x).logits_R
    assert logits.shape == (R,)
    for r in range(R):
        one = Inputs(x.user, {name: column[r : r + 1] for name, column in x.item.items()}, x.row_R[r : r + 1])
        torch.testing.assert_close(model(one).logits_R, logits[r : r + 1])


def test_hidden_states_come_only_when_asked_for(model: nn.Module) -> None:
    assert model(inputs()).hidden == {}
    for name in model.hidden_names:
        assert set(model(inputs(), [name]).hidden) == {name}
    assert set(model(inputs(), model.hidden_names).hidden) == set(model.hidden_names)


def test_every_parameter_learns(model: nn.Module) -> None:
    model(inputs()).logits_R.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if name.endswith(("weight", "weight_FD", "fusion_HVW")):
            assert parameter.grad.abs().sum() > 0, name


def test_no_rows(model: nn.Module) -> None:
    x = inputs()
    none = Inputs(x.user, {name: column[:0] for name, column in x.item.items()}, x.row_R[:0])
    assert model(none).logits_R.shape == (0,)


def test_logistic_regression_is_a_sum_of_weights() -> None:
    model, x = ranker(linear=True, hidden=()), inputs()
    nn.init.constant_(model.bias, 0.25)
    first = model.first_order
    assert first is not None
    table, offset = first.table.weight[:, 0], first.offsets
    row = 1  # of request 0: liked 3 and 8, item 8 without tags
    item_row = x.item["item_id"][row]
    expected = (
        0.25
        + table[offset["user_id"] + 1]
        + (table[offset["item_id"] + 3] + table[offset["item_id"] + 8]) / 2
        + x.user["hour"][0] * first.user.weight_FD[0, 0]
        + table[offset["item_id"] + item_row]
        + x.item["rate"][row] * first.item.weight_FD[0, 0]
    )
    torch.testing.assert_close(model(x).logits_R[row], expected)


def test_factorization_machine_is_all_pairs() -> None:
    fields = torch.randn(3, 5, 4, dtype=torch.float64)
    pairs = torch.stack([(fields[:, i] * fields[:, j]).sum(1) for i, j in combinations(range(5), 2)]).sum(0)
    state, logit = FactorizationMachine()(fields)
    torch.testing.assert_close(logit, pairs)
    torch.testing.assert_close(state.sum(1), pairs)


def test_compressed_interaction_is_the_papers_sum() -> None:
    torch.manual_seed(0)
    layer = CompressedInteraction(3, [2, 4])
    x0 = torch.randn(2, 3, 5)
    x, pooled = x0, []
    for linear in layer.layers:
        maps = []
        for weight in linear.weight:  # one map: a weight for every pair of (map before, field)
            w = weight.view(x.shape[1], 3)
            maps.append(sum(w[i, j] * x[:, i] * x0[:, j] for i in range(x.shape[1]) for j in range(3)))
        x = torch.stack(maps, dim=1)
        pooled.append(x.sum(2))
    state, logit = layer(x0)
    torch.testing.assert_close(state, torch.cat(pooled, dim=1))
    torch.testing.assert_close(logit, layer.head(torch.cat(pooled, dim=1))[:, 0])


def test_self_attention_is_the_papers_formula() -> None:
    torch.manual_seed(0)
    layer = SelfAttention(3, 4, layers=1, heads=2, size=5)
    x = torch.randn(2, 3, 4)
    query, key, value, residual = layer.project[0](x).chunk(4, dim=2)
    heads: list[Tensor] = []
    for h in (slice(0, 5), slice(5, 10)):
        weight = (query[..., h] @ key[..., h].transpose(1, 2)).softmax(2)
        heads.append(weight @ value[..., h])
    torch.testing.assert_close(layer(x)[0], (torch.cat(heads, dim=2) + residual).relu().flatten(1))


def test_cross_ranker_is_dcn_v2() -> None:
    """The parallel DCN-V2 with its joint head is the sum of two heads and a bias."""
    torch.manual_seed(1)
    config = DCNv2.Config(embedding_size=4, hidden=(6, 5), cross_layers=2)
    paper, parts = DCNv2(config, FEATURES), ranker(interaction="cross")
    assert parts.fields is not None
    assert parts.head is not None
    parts.fields.load_state_dict(paper.fields.state_dict())
    parts.mlp.load_state_dict(paper.mlp.state_dict())
    with torch.no_grad():
        parts.interaction.layers.load_state_dict(paper.cross.state_dict())
        parts.interaction.head.weight.copy_(paper.head.weight[:, :24])
        parts.head.weight.copy_(paper.head.weight[:, 24:])
        parts.bias.copy_(paper.head.bias[0])
    torch.testing.assert_close(parts(inputs()).logits_R, paper(inputs()).logits_R)


def test_final_mlp_fuses_head_by_head() -> None:
    model = final_mlp(fusion_heads=2)
    states = model(inputs(), ["mlp.1", "second.1"]).hidden
    x, y = states["mlp.1"], states["second.1"]
    fused = sum(
        torch.einsum("rv,vu,ru->r", x[:, h : h + 2], model.fusion_HVW[k], y[:, h : h + 2]) for k, h in ((0, 0), (1, 2))
    )
    expected = model.linear_x(x)[:, 0] + model.linear_y(y)[:, 0] + fused
    torch.testing.assert_close(model(inputs()).logits_R, expected)


def test_final_mlp_refuses_heads_that_do_not_divide() -> None:
    with pytest.raises(ValidationError, match="fusion_heads = 3 does not divide the last of hidden, 4"):
        final_mlp(fusion_heads=3)


def test_attention_unit_reads_key_query_difference_and_product() -> None:
    """The split first layer is the paper's g(k, k - q, k * q, q) of some weights."""
    torch.manual_seed(0)
    unit = AttentionUnit(4, (5, 3))
    key, query, row = torch.randn(2, 6, 4), torch.randn(3, 4), torch.tensor([0, 1, 1])
    weight = unit(query, key, row)
    for r in range(3):
        for place in range(6):
            k, q = key[row[r], place], query[r]
            first = unit.of_key(k) + unit.of_query(q) + unit.of_product(k * q)
            torch.testing.assert_close(weight[r, place], unit.out(unit.rest(first.relu()[None])[0])[0, 0])


def test_din_weighs_what_is_there_and_shares_the_items_rows() -> None:
    model, x = din(), inputs()
    states = model(x, ["history"]).hidden["history"]
    assert torch.equal(states[2], torch.zeros(4))  # request 1 has no history
    table = model.fields.table.weight[model.fields.offsets["item_id"] :]
    key = table[x.user["liked"]]
    weight = model.units[0](table[x.item["item_id"]], key, x.row_R)
    torch.testing.assert_close(states[0], weight[0, 0] * table[3] + weight[0, 1] * table[8])


def test_din_needs_a_history_and_the_item() -> None:
    with pytest.raises(UserError, match="need a history and 'item_id'"):
        DIN(DIN.Config(), (USER, ITEM))


def test_ranker_needs_a_part() -> None:
    with pytest.raises(UserError, match="a ranker needs a part"):
        ranker(hidden=())

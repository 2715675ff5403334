"""Several labels by one network: against the papers' formulas, written as loops; the losses of all labels."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from pydantic import ValidationError
from sklearn.metrics import log_loss
from torch import nn

from cascade_kd.data import Dataset
from cascade_kd.models import Model, MultiTask
from cascade_kd.models.multi_task import logit_of_product
from cascade_kd.streams import scoped_seed
from cascade_kd.train import SampleSource, Task, TrainConfig, make_sampler
from cascade_kd.train.objective import row_inputs
from cascade_kd.train.task import make_loss
from cascade_kd.types import Feature, Inputs

Kind = Literal["shared-bottom", "mmoe", "esmm"]
KINDS: tuple[Kind, ...] = ("shared-bottom", "mmoe", "esmm")
FEATURES = (
    Feature("user_id", "categorical", "user", "recall", size=6, vocabulary="user_id"),
    Feature("item_id", "categorical", "item", "recall", size=9, vocabulary="item_id"),
    Feature("rate", "statistic", "pair", "rank"),
)


def make(kind: Kind, features: tuple[Feature, ...] = FEATURES, **keys: object) -> MultiTask:
    given = {"kind": kind, "auxiliary": {"click": 0.5}, "embedding_size": 3, "hidden": (5,), "head_hidden": (4,)} | keys
    with scoped_seed(0):
        model = MultiTask(MultiTask.Config(**given), features)  # type: ignore[arg-type]
        nn.init.normal_(model.fields.table.weight)
    return model


def inputs() -> Inputs:
    item = {"item_id": torch.tensor([1, 8, 3, 3, 2]), "rate": torch.tensor([0.1, -1.0, 2.0, 0.0, 0.4])}
    return Inputs({"user_id": torch.tensor([1, 2, 5])}, item, torch.tensor([0, 0, 1, 2, 2]))


@pytest.mark.parametrize("kind", KINDS)
def test_is_a_model_whose_states_come_when_asked_for(kind: Kind) -> None:
    model, x = make(kind), inputs()
    assert isinstance(model, Model)
    assert model.auxiliary == {"click": 0.5}
    plain = model(x)
    assert plain.hidden == {}
    for name in model.hidden_names:
        asked = model(x, [name])
        assert set(asked.hidden) == {name}
        assert torch.equal(asked.logits_R, plain.logits_R)
    assert model(x, ["head.click"]).hidden["head.click"].shape == plain.logits_R.shape == (5,)
    for r in range(5):
        one = Inputs(x.user, {name: column[r : r + 1] for name, column in x.item.items()}, x.row_R[r : r + 1])
        torch.testing.assert_close(model(one).logits_R, plain.logits_R[r : r + 1])


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns_from_one_of_the_labels(kind: Kind) -> None:
    model = make(kind)
    output = model(inputs(), ["head.click"])
    (output.logits_R.square().sum() + output.hidden["head.click"].square().sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name


def test_a_shared_bottom_is_shared() -> None:
    model = make("shared-bottom")
    x = model(inputs(), ["embedding", "head.click"])
    bottom = (model.bottoms[0].linear[0](x.hidden["embedding"])).relu()
    for label, logits in enumerate([x.logits_R, x.hidden["head.click"]]):
        top = model.tops[label].linear[0](bottom).relu()
        torch.testing.assert_close(model.out[label](top).squeeze(1), logits)


def test_a_mixture_of_experts_is_the_papers_sum() -> None:
    model = make("mmoe", experts=3, auxiliary={"click": 1.0, "share": 2.0})
    x = model(inputs(), model.hidden_names)
    embedding = x.hidden["embedding"]
    logits = [x.logits_R, x.hidden["head.click"], x.hidden["head.share"]]
    for label, want in enumerate(logits):
        for r in range(5):
            gate = model.gates[label](embedding[r])
            share = [math.exp(g) / sum(map(math.exp, gate.tolist())) for g in gate.tolist()]
            mixed = sum(share[e] * model.bottoms[e].linear[0](embedding[r]).relu() for e in range(3))
            top = model.tops[label].linear[0](mixed).relu()
            torch.testing.assert_close(model.out[label](top)[0], want[r])


def test_the_entire_space_multiplies_probabilities() -> None:
    model = make("esmm", head_hidden=())
    x = model(inputs(), model.hidden_names)
    click, conversion = x.hidden["head.click"].sigmoid(), x.hidden["conversion"].sigmoid()
    torch.testing.assert_close(x.logits_R.sigmoid(), click * conversion)


def test_the_logit_of_a_product() -> None:
    # Odds 3 and 1: probabilities 3/4 and 1/2, product 3/8, odds 3/5.
    got = logit_of_product(torch.tensor([math.log(3.0)]), torch.tensor([0.0]))
    assert got.item() == pytest.approx(math.log(3 / 5))
    corners = torch.cartesian_prod(*[torch.tensor([-100.0, 0.0, 100.0])] * 2).double().requires_grad_()
    found = logit_of_product(corners[:, 0], corners[:, 1])
    found.sum().backward()
    assert found.isfinite().all()
    assert corners.grad is not None
    assert corners.grad.isfinite().all()
    assert found[0].item() == pytest.approx(-200.0)
    a, b = (torch.randn(6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(logit_of_product, (a, b))


def test_one_step_before_the_label() -> None:
    with pytest.raises(ValidationError, match="one step before its label"):
        make("esmm", auxiliary={"click": 1.0, "cart": 1.0})
    with pytest.raises(ValidationError):
        make("mmoe", auxiliary={})


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_has_a_term_a_label(dataset: Dataset, kind: Kind) -> None:
    """Sampled rows are false in every label; each term is scikit-learn's log loss times its weight."""
    features = dataset.online("rank")
    model = make(kind, features)
    samples = (SampleSource(source="impressions"), SampleSource(source="uniform", per_positive=2))
    train = TrainConfig(label="conversion", samples=samples, batch_size=1500)
    task = Task("rank", model, features, dataset, train, dataset.rows("train"), seed=7)
    sampler = make_sampler(task)
    batch = sampler.batch(0)
    parts = make_loss(task, sampler)(batch, 0, 10)
    assert parts.keys() == {"label", "head.click"}
    output = model(row_inputs(dataset, task.names, batch), ["head.click"])
    labels = dataset.events.labels
    for name, logits_R, weight in (("conversion", output.logits_R, 1.0), ("click", output.hidden["head.click"], 0.5)):
        label = [float(labels[name][event]) if event >= 0 else 0.0 for event in batch.event_R.tolist()]
        assert 0 < sum(label) < len(label)
        want = weight * log_loss(label, logits_R.double().sigmoid().detach().numpy())
        assert parts["label" if name == "conversion" else "head.click"].item() == pytest.approx(want, rel=1e-5)

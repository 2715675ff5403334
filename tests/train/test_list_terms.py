"""Terms on lists: what reads the order alone, what is drawn from elsewhere, what a padded place does."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cascade_kd.config.tables import DISTILLERS
from cascade_kd.data import Dataset
from cascade_kd.losses import cross_entropy_binary, topk_pointwise
from cascade_kd.masked import masked_mean
from cascade_kd.models import TwoTower
from cascade_kd.models.settings import TwoTowerConfig
from cascade_kd.streams import scoped_seed
from cascade_kd.train.list_terms import list_term
from cascade_kd.train.lists import end_of_training_requests
from cascade_kd.train.teacher_lists import TeacherLists
from cascade_kd.train.terms import Moment, Term
from cascade_kd.types import Output

K = 12
ORDER_ALONE: dict[str, dict[str, Any]] = {
    "pointwise": {"method": "topk-pointwise", "k": 3, "negatives": 6},
    "pairwise": {"method": "topk-pairwise", "k": 3, "negatives": 6, "negatives_from": "popularity"},
    "hinge": {"method": "topk-pairwise", "k": 3, "loss": "hinge"},
    "pairs": {"method": "topk-pairwise", "k": 3, "pairs": 9},
    "lambdas": {"method": "topk-pairwise", "k": 3, "lambdas": True},
    "listmle": {"method": "topk-listwise", "k": 3, "negatives": 6},
    "rd": {"method": "rd", "k": 4, "hybrid_from": 0, "sampled": 20},
    "rrd": {"method": "rrd", "k": 4, "negatives": 6},
    "rrd first": {"method": "rrd", "k": 4, "negatives": 6, "interesting": "first"},
    "dcd": {"method": "dcd", "k": 4, "sampled": 20, "epsilon": 0.1},
    "unkd": {"method": "unkd", "pairs": 5, "groups": 3},
}
SCORES: dict[str, dict[str, Any]] = {
    "listnet": {"method": "topk-listwise", "k": 3, "loss": "listnet", "temperature": 2.0},
    "rankdistil": {"method": "topk-listwise", "k": 3, "loss": "rankdistil"},
    "cd": {"method": "cd", "sampled": 5},
    "cd by the student": {"method": "cd", "sampled": 5, "guide": "student"},
    "kl": {"method": "logit", "loss": "kl", "lists": "upstream", "temperature": 2.0},
    "prob-mse": {"method": "logit", "loss": "prob-mse", "lists": "upstream"},
    "clid": {"method": "logit", "loss": "clid"},
}
ALL = ORDER_ALONE | SCORES
every = pytest.mark.parametrize("keys", ALL.values(), ids=ALL)


@pytest.fixture
def model(dataset: Dataset) -> TwoTower:
    with scoped_seed(1):
        config = TwoTowerConfig(embedding_size=4, embedding_std=1.0, hidden=(8,), output_size=4, temperature=0.5)
        return TwoTower(config, dataset.online("recall"))


@pytest.fixture
def lists(dataset: Dataset) -> TeacherLists:
    """Twenty lists of 3 to 12 unseen items in a random order, with descending scores, -inf behind the end."""
    requests = end_of_training_requests(dataset)[:20]
    generator = torch.Generator().manual_seed(0)
    item = torch.stack([torch.randperm(dataset.num_items, generator=generator) + 1 for _ in range(20)])
    item[dataset.is_seen(requests.user_B, item, part="train")] = 0
    item = item.gather(1, (item == 0).to(torch.uint8).argsort(dim=1, stable=True))[:, :K]
    item[torch.arange(K) >= torch.randint(3, K + 1, (20, 1), generator=generator)] = 0
    score = torch.randn(20, K, generator=generator).sort(dim=1, descending=True).values
    columns = {"item": item.int(), "score": score.masked_fill(item == 0, -torch.inf)}
    assert ((item > 0).sum(1) >= 2).all()
    return TeacherLists(requests, columns, torch.arange(20), 0)


def term_of(
    keys: dict[str, Any], lists: TeacherLists, model: nn.Module, dataset: Dataset, kind: str = "upstream"
) -> Term:
    pair = DISTILLERS[keys["method"]].model_validate(
        {"teacher": "rank", "student": "stage", "lists_per_step": 8} | keys
    )
    names = [feature.name for feature in dataset.online("recall")]
    return list_term(pair, lists, model, names, dataset, 5, kind=kind, epochs=2)  # type: ignore[arg-type]


def value(term: Term, step: int = 0) -> Tensor:
    return term.loss(Moment(None, Output(torch.empty(0)), {}, step, 100))  # type: ignore[arg-type]


def gradients(term: Term, model: nn.Module, step: int = 0) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    value(term, step).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def changed(lists: TeacherLists, **columns: Tensor) -> TeacherLists:
    return TeacherLists(lists.requests, dict(lists.columns) | columns, lists.number_L, 0)


@pytest.mark.parametrize("keys", ORDER_ALONE.values(), ids=ORDER_ALONE)
def test_an_increasing_transform_of_the_scores_changes_no_bit(
    dataset: Dataset, model: TwoTower, lists: TeacherLists, keys: dict[str, Any]
) -> None:
    score = lists.columns["score"]
    ours = gradients(term_of(keys, lists, model, dataset), model)
    theirs = gradients(term_of(keys, changed(lists, score=(score / 3).exp() - 5), model, dataset), model)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    no_scores = TeacherLists(lists.requests, {"item": lists.columns["item"]}, lists.number_L, 0)
    assert torch.equal(value(term_of(keys, no_scores, model, dataset)), value(term_of(keys, lists, model, dataset)))


@pytest.mark.parametrize("keys", SCORES.values(), ids=SCORES)
def test_what_reads_scores_sees_their_size(
    dataset: Dataset, model: TwoTower, lists: TeacherLists, keys: dict[str, Any]
) -> None:
    other = changed(lists, score=lists.columns["score"] / 3 - 1)
    assert not torch.equal(value(term_of(keys, lists, model, dataset)), value(term_of(keys, other, model, dataset)))


@every
def test_a_step_is_a_function_of_its_number_and_teaches(
    dataset: Dataset, model: TwoTower, lists: TeacherLists, keys: dict[str, Any]
) -> None:
    term = term_of(keys, lists, model, dataset)
    assert not term.on_rows
    first, other = value(term), value(term, 1)
    assert torch.isfinite(first)
    assert not torch.equal(first, other)
    assert torch.equal(first, value(term))  # whatever ran before
    assert torch.equal(first, value(term_of(keys, lists, model, dataset)))
    learnt = gradients(term, model)
    assert all(torch.isfinite(gradient).all() for gradient in learnt.values())
    assert sum(float(gradient.abs().sum()) for gradient in learnt.values()) > 0


@every
def test_padding_behind_the_lists_changes_nothing(
    dataset: Dataset, model: TwoTower, lists: TeacherLists, keys: dict[str, Any]
) -> None:
    wider = {
        "item": torch.cat([lists.columns["item"], torch.zeros(20, 4, dtype=torch.int32)], dim=1),
        "score": torch.cat([lists.columns["score"], torch.full((20, 4), -torch.inf)], dim=1),
    }
    assert torch.equal(
        value(term_of(keys, lists, model, dataset)), value(term_of(keys, changed(lists, **wider), model, dataset))
    )


def test_pointwise_without_negatives_is_the_loss_of_the_students_logits(
    dataset: Dataset, model: TwoTower, lists: TeacherLists
) -> None:
    keys = {"method": "topk-pointwise", "k": 3, "alpha": 2.0, "negatives": 0, "lists_per_step": 20}
    item = lists.columns["item"].long()
    names = [feature.name for feature in dataset.online("recall")]
    row, place = item.nonzero(as_tuple=True)
    inputs = dataset.inputs(names, lists.requests, item[row, place], row, part="valid")
    score = torch.zeros(item.shape).index_put((row, place), model(inputs).logits_R)
    wanted = topk_pointwise(score, where_BK=item > 0, k=3, alpha=2.0).mean()
    torch.testing.assert_close(value(term_of(keys, lists, model, dataset)), wanted)


def test_cd_is_the_cross_entropy_of_softened_probabilities(
    dataset: Dataset, model: TwoTower, lists: TeacherLists
) -> None:
    # Every place is drawn when more are asked for than there are.
    keys = {"method": "cd", "sampled": 50, "temperature": 2.0, "offset": 0.5, "lists_per_step": 20}

    class Zero(nn.Module):
        def forward(self, inputs: Any, hidden: Any = ()) -> Output:
            return Output(torch.zeros(len(inputs.row_R)) + 0.3)

    where, score = lists.columns["item"] > 0, lists.columns["score"]
    student, teacher = torch.full(score.shape, 0.3), (score.masked_fill(~where, 0.0) + 0.5) / 2
    wanted = masked_mean(cross_entropy_binary(student.flatten(), teacher.flatten()).view(score.shape), where).mean()
    torch.testing.assert_close(value(term_of(keys, lists, Zero(), dataset)), wanted)


@pytest.mark.parametrize("source", ["uniform", "popularity"])
def test_negatives_are_neither_on_the_list_nor_in_training_nor_twice(
    dataset: Dataset, lists: TeacherLists, source: str
) -> None:
    asked: list[Any] = []

    class Scores(nn.Module):
        def forward(self, inputs: Any, hidden: Any = ()) -> Output:
            asked.append(inputs)
            return Output(torch.zeros(len(inputs.row_R)))

    keys = {"method": "topk-pointwise", "k": 3, "negatives": 40, "negatives_from": source, "lists_per_step": 20}
    term = term_of(keys, lists, Scores(), dataset, kind="catalogue")
    drawn = torch.zeros(dataset.num_items + 1, dtype=torch.int64)
    for step in range(40):
        value(term, step)
        inputs = asked[-1]
        user, item = inputs.user["user_id"][inputs.row_R], inputs.item["item_id"]
        assert not dataset.is_seen(user, item.unsqueeze(1), part="train").any()
        pair = inputs.row_R * (dataset.num_items + 1) + item
        assert len(pair.unique()) == len(pair)
        drawn += torch.bincount(item, minlength=dataset.num_items + 1)
    never = dataset.training_counts() == 0
    assert (drawn[1:][~never[1:]] > 0).all()


def test_the_second_weight_of_rd_waits_for_its_epoch(dataset: Dataset, model: TwoTower, lists: TeacherLists) -> None:
    early = term_of({"method": "rd", "hybrid_from": 0}, lists, model, dataset)
    late = term_of({"method": "rd", "hybrid_from": 1}, lists, model, dataset)
    plain = term_of({"method": "rd", "hybrid_from": 2}, lists, model, dataset)
    assert torch.equal(value(late, 49), value(plain, 49))  # two epochs of 50 steps
    assert torch.equal(value(late, 50), value(early, 50))
    assert not torch.equal(value(late, 50), value(plain, 50))


@pytest.mark.parametrize("keys", [ORDER_ALONE["pointwise"], ORDER_ALONE["pairs"], ORDER_ALONE["listmle"]])
def test_a_negative_behind_a_list_shorter_than_k_is_no_positive(
    dataset: Dataset, lists: TeacherLists, keys: dict[str, Any]
) -> None:
    """A student that tells the list from the rest has nothing to learn but the order within."""
    item = lists.columns["item"].long()
    on_list = torch.zeros(dataset.num_users + 1, dataset.num_items + 1, dtype=torch.bool)
    on_list[lists.requests.user_B.unsqueeze(1), item] = True

    class Knows(nn.Module):
        def forward(self, inputs: Any, hidden: Any = ()) -> Output:
            known = on_list[inputs.user["user_id"][inputs.row_R], inputs.item["item_id"]]
            return Output(torch.where(known, 40.0, -40.0))

    length = (item > 0).sum(1)
    assert (length < 50).all()
    term = term_of({**keys, "k": 50, "alpha": 0.0, "negatives": 6, "lists_per_step": 20}, lists, Knows(), dataset)
    got = float(value(term))
    if keys["method"] == "topk-pointwise":
        assert got < 1e-9
    elif keys["method"] == "topk-pairwise":  # log 2 of a pair within the list, nothing of others
        assert 0 < got < math.log(2)
    else:  # minus the log-chance of one order of n equal items, log n!
        assert got == pytest.approx(float(torch.lgamma(length.float() + 1).mean()), rel=1e-5)

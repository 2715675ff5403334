"""The loss of several stages on the same lists: laws over all objectives, then worked values. Trainings: experiment."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cascade_kd.config.tables import OBJECTIVES
from cascade_kd.distill.objectives import AnyObjective
from cascade_kd.train.cascade_terms import ListsMoment, objective_loss, truths
from cascade_kd.train.teacher_lists import ListBatch
from cascade_kd.types import Requests

SHORT, LONG = 4, 7  # places of the two lists


def made(method: str, **keys: Any) -> AnyObjective:
    given: dict[str, Any] = {"method": method, "stages": ("a", "b"), "teacher": "c", "k": 2}
    if "budgets" in OBJECTIVES[method].model_fields:
        given["budgets"] = (3, 2)
    if method == "icc":
        given["width"] = 0.3
    if method == "copr":
        given["chunks"] = 3
    return OBJECTIVES[method].model_validate(given | keys)


def batch(item_BK: Tensor, **columns: Tensor | None) -> ListBatch:
    some_B = torch.arange(len(item_BK))
    requests = Requests(some_B + 1, some_B, {}, None, "train")
    return ListBatch(some_B, requests, item_BK, columns.get("score"), columns.get("event"))


def items(*lengths: int) -> Tensor:
    place_K = torch.arange(max(lengths))
    return torch.stack([torch.where(place_K < length, place_K + 1, 0) for length in lengths])


def value(config: AnyObjective, lists: ListBatch, scores: list[Tensor], served: list[Tensor] | None = None) -> Tensor:
    """[B]."""
    truth_BK, level_BK = truths(config, lists, {})
    taught = [score.detach().flip(1) if served is None else served[0] for score in scores]
    moment = ListsMoment(
        lists,
        tuple(scores),
        tuple(taught if served is None else served),
        truth_BK,
        level_BK,
        torch.full((len(scores),), 1.25),
        torch.Generator().manual_seed(1),
    )
    return objective_loss(config)(moment)


def drawn(width: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, width, generator=generator, requires_grad=True) for _ in range(4)]


@pytest.mark.parametrize("method", OBJECTIVES)
def test_masking_equals_removing(method: str) -> None:
    config = made(method)
    first, second, served_a, served_b = drawn(LONG)
    served = [served_a.detach(), served_b.detach()]
    whole = value(config, batch(items(SHORT, LONG)), [first, second], served)
    short = [x[:1, :SHORT] for x in (first, second)]
    cut = value(config, batch(items(SHORT)), short, [x[:1, :SHORT] for x in served])
    torch.testing.assert_close(whole[:1], cut)
    for gradient in torch.autograd.grad(whole.sum(), (first, second)):
        assert gradient.isfinite().all()
        assert not gradient[0, SHORT:].any()


@pytest.mark.parametrize("method", OBJECTIVES)
def test_every_stage_gets_a_gradient_and_its_tutor_none(method: str) -> None:
    first, second, served_a, served_b = drawn(LONG)
    loss = value(made(method), batch(items(LONG, LONG)), [first, second], [served_a.detach(), served_b.detach()])
    for gradient in torch.autograd.grad(loss.sum(), (first, second)):
        assert gradient.abs().sum() > 0


LEVELS = torch.tensor([[3.0, 3.0, 2.0, 2.0, 0.0, -math.inf, -math.inf]])


def test_truths_of_an_order_and_levels_with_ties() -> None:
    lists = batch(items(5, 7)[:1], score=LEVELS)
    truth_BK, level_BK = truths(made("fs", k=3), lists, {})
    assert truth_BK.tolist() == [[True, True, True, False, False, False, False]]
    assert level_BK.tolist() == [[3.0, 3.0, 2.0, 2.0, 0.0, 0.0, 0.0]]
    _, by_place = truths(made("fs", k=3), batch(items(5, 7)[:1]), {})
    assert by_place.tolist() == [[-1.0, -2.0, -3.0, -4.0, -5.0, 0.0, 0.0]]


def test_truths_of_labels() -> None:
    config = made("lcron", truth="label", teacher=None, k=None, label="click")
    lists = batch(items(3, 4)[:1], event=torch.tensor([[2, 0, 3, -1]]))
    truth_BK, level_BK = truths(config, lists, {"click": torch.tensor([1.0, 1.0, 0.0, 1.0])})
    assert truth_BK.tolist() == [[False, True, True, False]]
    assert level_BK.tolist() == [[0.0, 1.0, 1.0, 0.0]]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def bce(logit: float, true: bool) -> float:
    return -math.log(sigmoid(logit if true else -logit))


def test_rankflow_by_hand() -> None:
    """Four places, two truths; the first stage of the round before passes places 0, 2, 3, the second puts 3 on top."""
    config = made("rankflow", budgets=(3, 1), mix=0.25)
    one, two = torch.tensor([[1.0, -0.5, 0.2, 0.0]]), torch.tensor([[0.3, 2.0, -1.0, 0.4]])
    served = [torch.tensor([[0.9, -2.0, 0.1, 0.5]]), torch.tensor([[0.1, 5.0, -0.3, 0.6]])]
    got = value(config, batch(items(4)), [one, two], served)
    own = sum(bce(x, place < 2) for place, x in enumerate(one[0].tolist())) / 4
    passed = [0, 2, 3]
    behind = sum(bce(float(two[0, place]), place < 2) for place in passed) / 3
    top, rest = float(one[0, 3]), (float(one[0, 0]) + float(one[0, 2])) / 2
    pair = bce(top - rest, True)
    square = sum((sigmoid(float(one[0, p])) - sigmoid(float(served[1][0, p]))) ** 2 for p in passed) / 3
    assert got.item() == pytest.approx(own + behind + 0.25 * pair + 0.75 * square)


@pytest.mark.parametrize("method", ["fs", "copr"])
def test_stages_that_learn_by_themselves_add_up(method: str) -> None:
    first, second, *_ = drawn(LONG)
    lists, config = batch(items(SHORT, LONG)), made(method)
    both, one, other = (value(config, lists, list(x)) for x in ((first, second), (first, first), (second, second)))
    torch.testing.assert_close(2 * both, one + other)


def test_equal_levels_are_no_pair() -> None:
    score = torch.tensor([[0.5, -1.0, 2.0]])
    got = value(made("fs"), batch(items(3), score=torch.tensor([[1.0, 1.0, 0.0]])), [score, score])
    expected = 2 * (bce(0.5 - 2.0, True) + bce(-1.0 - 2.0, True)) / 2
    assert got.item() == pytest.approx(expected)

"""Tracing finds the inputs that reach the logits, whatever way they take, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from cascade_kd.data import Dataset
from cascade_kd.errors import UserError
from cascade_kd.models.dcnv2 import DCNv2, DCNv2Config
from cascade_kd.models.two_tower import TwoTower, TwoTowerConfig
from cascade_kd.serve import prove_availability, traced_inputs
from cascade_kd.stages import RetrievalStage, ScoringStage
from cascade_kd.types import Feature, Inputs, Level, Output

Score = Callable[[Inputs], Tensor]


def ranker(dataset: Dataset, level: Level, features: tuple[Feature, ...]) -> ScoringStage:
    model = DCNv2(DCNv2Config(embedding_size=4, hidden=(8,), cross_layers=1), features)
    return ScoringStage("rank", level, 4, features, model, dataset)


def towers(dataset: Dataset) -> RetrievalStage:
    features = tuple(f for f in dataset.online("recall") if f.side != "pair")
    model = TwoTower(TwoTowerConfig(embedding_size=4, hidden=(8,), output_size=4), features)
    return RetrievalStage("recall", "recall", 4, features, model, dataset)


class Written(nn.Module):
    """A model whose logits are a function of the test."""

    def __init__(self, score: Score) -> None:
        super().__init__()
        self.score = score

    def forward(self, inputs: Inputs, hidden: object = ()) -> Output:
        return Output(self.score(inputs))


def written(dataset: Dataset, score: Score, level: Level = "never") -> ScoringStage:
    features = dataset.online("never")
    stage = ScoringStage("mine", "never", 4, features, Written(score), dataset)  # type: ignore[arg-type]
    object.__setattr__(stage, "level", level)  # around the check at construction
    return stage


@pytest.mark.parametrize("level", ["recall", "prerank", "rank", "never"])
def test_a_ranker_reads_all_its_features(dataset: Dataset, level: Level) -> None:
    stage = ranker(dataset, level, dataset.online(level))
    assert prove_availability(stage) == {f.name for f in dataset.online(level)}


def test_both_towers_are_traced(dataset: Dataset) -> None:
    stage = towers(dataset)
    assert prove_availability(stage) == {f.name for f in stage.features}


def test_the_vectors_of_a_recall_stage_count(dataset: Dataset) -> None:
    stage = towers(dataset)
    stage.model.forward = lambda inputs: Output(inputs.item["price"])  # type: ignore[method-assign]
    assert traced_inputs(stage) == {f.name for f in stage.features}


WAYS: dict[str, tuple[Score, set[str]]] = {
    "plainly": (lambda x: x.item["dwell"] * 2, {"dwell"}),
    "by the weights of a sum": (lambda x: torch.where(x.item["dwell"] > 0, x.item["price"], 1.0), {"dwell", "price"}),
    "by an index": (lambda x: torch.randn(99)[x.item["category"]], {"category"}),
    "in place": (lambda x: torch.zeros(len(x.row_R)).add_(x.item["dwell"]), {"dwell"}),
    "through a view": (lambda x: _through_a_view(x), {"dwell"}),
    "through out=": (lambda x: _through_out(x), {"dwell"}),
    "through a list of tensors": (lambda x: torch.stack([x.item["dwell"], x.item["price"]]).sum(0), {"dwell", "price"}),
    "through a sparse matrix": (lambda x: _through_sparse(x), {"dwell"}),
    "by what it decides": (lambda x: torch.ones(4) if x.item["dwell"].sum() > 0 else torch.zeros(4), {"dwell"}),
    "through item()": (lambda x: torch.full((4,), x.item["dwell"].max().item()), {"dwell"}),
    "through a list": (lambda x: torch.tensor(x.item["dwell"].tolist()), {"dwell"}),
    "through numpy": (lambda x: torch.from_numpy(x.item["dwell"].numpy() * 2), {"dwell"}),
    "of the user's side": (lambda x: x.user["age"][x.row_R], {"age"}),
    "not at all": (lambda x: torch.zeros(len(x.row_R)), set()),
    "computed and not used": (lambda x: _computed_and_dropped(x), {"price"}),
}


def _through_a_view(x: Inputs) -> Tensor:
    logits = torch.zeros(len(x.row_R), 1)
    logits[:, 0].copy_(x.item["dwell"])
    return logits.squeeze(1)


def _through_out(x: Inputs) -> Tensor:
    logits = torch.zeros(len(x.row_R))
    torch.mul(x.item["dwell"], 2, out=logits)
    return logits


def _through_sparse(x: Inputs) -> Tensor:
    rows = len(x.row_R)
    crow = torch.arange(rows + 1)
    diagonal = torch.sparse_csr_tensor(crow, torch.arange(rows), x.item["dwell"], (rows, rows), check_invariants=False)
    return (diagonal @ torch.ones(rows, 1)).squeeze(1)


def _computed_and_dropped(x: Inputs) -> Tensor:
    dropped = x.item["dwell"].exp() + x.item["price"]
    del dropped
    return x.item["price"] + 0


@pytest.mark.parametrize("way", WAYS)
def test_what_reaches_the_logits(dataset: Dataset, way: str) -> None:
    score, want = WAYS[way]
    stage = written(dataset, score)
    assert traced_inputs(stage) == want
    if "dwell" in want:
        with pytest.raises(UserError, match=r"stage 'mine' is of level 'rank'.*'dwell' \(available at never\)"):
            prove_availability(written(dataset, score, "rank"))
    else:
        assert prove_availability(written(dataset, score, "recall")) == want


def test_an_input_that_is_passed_and_not_used_is_allowed(dataset: Dataset) -> None:
    stage = written(dataset, lambda x: x.item["price"] * 1, "recall")
    assert "dwell" in {f.name for f in stage.features}
    assert prove_availability(stage) == {"price"}


def test_the_mode_is_left_as_it_was(dataset: Dataset) -> None:
    stage = ranker(dataset, "rank", dataset.online("rank"))
    assert isinstance(stage.model, nn.Module)
    for training in (True, False):
        stage.model.train(training)
        traced_inputs(stage)
        assert stage.model.training is training


def test_a_stage_is_not_built_with_a_later_feature(dataset: Dataset) -> None:
    features = (*dataset.online("recall"), dataset.feature("user_category_click_rate"), dataset.feature("dwell"))
    with pytest.raises(
        UserError, match=r"'user_category_click_rate' \(available at rank\), 'dwell' \(available at nev"
    ):
        ranker(dataset, "prerank", features)
    with pytest.raises(UserError, match="stage 'recall' is of level 'recall'"):
        replace(towers(dataset), features=features)


def test_a_feature_that_is_declared_earlier_by_hand_is_caught(dataset: Dataset) -> None:
    features = (*dataset.online("recall"), replace(dataset.feature("dwell"), available="recall"))
    stage = ranker(dataset, "prerank", features)
    with pytest.raises(UserError, match=r"its logits are computed from 'dwell' \(available at never\)"):
        prove_availability(stage)

"""Teachers that are no single model: the mean of probabilities, and a column that the user brings."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cascade_kd.config import load_dataset_definition
from cascade_kd.data import Dataset, load, prepare
from cascade_kd.models.dcnv2 import DCNv2, DCNv2Config
from cascade_kd.stages import ColumnStage, EnsembleStage, LogitStage, ScoringStage
from cascade_kd.stages.ensemble import mean_probability_logit
from cascade_kd.streams import scoped_seed
from cascade_kd.train import SampleSource, Task, TrainConfig, make_sampler, teacher_logits
from cascade_kd.types import Candidates, Requests


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_mean_is_of_probabilities_not_of_logits() -> None:
    got = mean_probability_logit(torch.tensor([[1.0], [2.0]], dtype=torch.float64)).sigmoid().item()
    assert got == pytest.approx((sigma(1) + sigma(2)) / 2, rel=1e-12)
    assert got == pytest.approx(0.8059278, abs=1e-7)
    assert got != pytest.approx(sigma(1.5), abs=1e-2)  # .8175745, the mean of logits


@pytest.mark.parametrize("num", [1, 2, 5])
def test_the_mean_against_64_bit_floats(num: int) -> None:
    logit_ER = torch.randn(num, 200, generator=torch.Generator().manual_seed(num)) * 4
    mean_R = (1 / (1 + np.exp(-logit_ER.double().numpy()))).mean(0)
    expected = np.log(mean_R) - np.log1p(-mean_R)
    assert mean_probability_logit(logit_ER).tolist() == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("size", [30.0, 100.0])
def test_the_mean_is_exact_where_probabilities_round_to_0_and_1(size: float) -> None:
    for sign in (1.0, -1.0):
        alike = torch.full((3, 1), sign * size)
        assert mean_probability_logit(alike).item() == pytest.approx(sign * size, rel=1e-6)
    # Far apart: (1 + 0) / 2, and of three (1 + 0 + 0) / 3.
    assert mean_probability_logit(torch.tensor([[size], [-size]])).item() == pytest.approx(0, abs=1e-5)
    third = mean_probability_logit(torch.tensor([[size], [-size], [-size]])).item()
    assert third == pytest.approx(math.log(1 / 2), rel=1e-5)
    # Next to one that is certain, the others still count: (sigma(-100) + sigma(-90)) / 2.
    logit_ER = torch.tensor([[-size], [-size + 10]], dtype=torch.float64)
    expected = math.log((math.exp(-size) + math.exp(-size + 10)) / 2)
    assert mean_probability_logit(logit_ER).item() == pytest.approx(expected, rel=1e-9)


# -- as a stage


def member(dataset: Dataset, seed: int) -> ScoringStage:
    features = dataset.online("rank")
    with scoped_seed(seed):
        model = DCNv2(DCNv2Config(embedding_size=4, hidden=(8,), cross_layers=1, dropout=0.5), features)
        nn.init.normal_(model.fields.table.weight)
    return ScoringStage(f"member-{seed}", "rank", 4, features, model, dataset)


@pytest.fixture
def asked(dataset: Dataset) -> tuple[Requests, Tensor, Tensor, Tensor]:
    rows = dataset.rows("test")[:40]
    return dataset.requests_of(rows, part="test"), dataset.events.item_N[rows], torch.arange(40), rows


def test_one_member_is_the_member(dataset: Dataset, asked: tuple[Requests, Tensor, Tensor, Tensor]) -> None:
    alone = member(dataset, 1)
    stage = EnsembleStage("all", (alone,))
    assert isinstance(stage, LogitStage)
    torch.testing.assert_close(stage.logits(*asked), alone.logits(*asked))
    twice = EnsembleStage("all", (alone, alone))
    torch.testing.assert_close(twice.logits(*asked), alone.logits(*asked))


def test_members_are_averaged_row_by_row_in_any_order(
    dataset: Dataset, asked: tuple[Requests, Tensor, Tensor, Tensor]
) -> None:
    members = tuple(member(dataset, seed) for seed in (1, 2, 3))
    got = EnsembleStage("all", members).logits(*asked)
    mean_R = torch.stack([m.logits(*asked).double().sigmoid() for m in members]).mean(0)
    torch.testing.assert_close(got.double().sigmoid(), mean_R, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(EnsembleStage("all", members[::-1]).logits(*asked), got)
    assert not got.requires_grad


def test_candidates_are_ordered_by_the_mean(dataset: Dataset) -> None:
    requests = dataset.requests_of(dataset.rows("test")[:3], part="test")
    item_BK = torch.stack([torch.randperm(80, generator=torch.Generator().manual_seed(b))[:9] + 1 for b in range(3)])
    where_BK = torch.ones(3, 9, dtype=torch.bool)
    where_BK[2, 4:] = False
    received = Candidates.ranked(item_BK, torch.zeros(3, 9), where_BK)
    stage = EnsembleStage("all", (member(dataset, 1), member(dataset, 2)), keep=2)
    ordered = stage.order(requests, received)
    for b in range(3):
        items = received.item_BK[b][received.valid_BK[b]]
        logit_K = stage.logits(requests[b : b + 1], items, torch.zeros(len(items), dtype=torch.int64))
        expected = items[logit_K.argsort(descending=True)].tolist()
        assert ordered.item_BK[b][ordered.valid_BK[b]].tolist() == expected
        assert stage(requests, received).item_BK[b].tolist() == expected[:2]


# -- a column of scores


@pytest.fixture
def scored(tiny_dataset: Path) -> Dataset:
    """The tiny world with two columns as they are: dwell of events, price of items."""
    text = tiny_dataset.read_text("utf-8")
    assert text.count('transform = "log1p"') >= 2
    tiny_dataset.write_text(text.replace('transform = "log1p"', 'transform = "none"'), "utf-8")
    definition, file = load_dataset_definition(tiny_dataset)
    return load(prepare(definition, base=file.parent))


def test_a_column_gives_the_scores_of_logged_events(scored: Dataset) -> None:
    rows = scored.rows("train")[5:45]
    stage = ColumnStage("mine", scored, "dwell", "logit")
    assert isinstance(stage, LogitStage)
    assert stage.signals == {"logits"}
    requests = scored.requests_of(rows, part="train")
    item_R, row_R = scored.events.item_N[rows], torch.arange(40)
    dwell_R = scored.inputs(["dwell"], requests, item_R, row_R, part="train", event_R=rows).item["dwell"]
    assert len(set(dwell_R.tolist())) > 10
    assert stage.logits(requests, item_R, row_R, rows).tolist() == dwell_R.tolist()


def test_a_row_that_was_not_logged_has_no_score(scored: Dataset) -> None:
    rows = scored.rows("train")[:6]
    requests = scored.requests_of(rows, part="train")
    for column in ("dwell", "price"):  # of an item, too: the user brought scores of events
        stage = ColumnStage("mine", scored, column, "logit")
        event_R = rows.clone()
        event_R[[1, 4]] = -1
        got = stage.logits(requests, scored.events.item_N[rows], torch.arange(6), event_R)
        assert got.isnan().tolist() == [False, True, False, False, True, False]
        assert bool(stage.logits(requests, scored.events.item_N[rows], torch.arange(6)).isnan().all())


def test_the_best_rank_has_the_highest_stand_in_for_a_logit(scored: Dataset) -> None:
    rows = scored.rows("train")[:5]
    asked = scored.requests_of(rows, part="train"), scored.events.item_N[rows], torch.arange(5), rows
    logit, rank = (ColumnStage("mine", scored, "dwell", kind).logits(*asked) for kind in ("logit", "rank"))
    assert torch.equal(rank, -logit)


def test_probabilities_become_logits_and_0_and_1_stay_finite(scored: Dataset) -> None:
    rows = scored.rows("train")[:5]
    requests = scored.requests_of(rows, part="train")
    given = torch.tensor([0.0, 1.0, 0.5, 0.2, 0.9])
    stage = ColumnStage("mine", scored, "dwell", "probability")

    def inputs(*args: object, **kwargs: object) -> object:
        found = scored.inputs(["dwell"], requests, scored.events.item_N[rows], torch.arange(5), part="train")
        return replace(found, item={"dwell": given})

    class Scores:
        """The data set with scores that one can see through."""

    Scores.inputs = staticmethod(inputs)  # type: ignore[attr-defined]
    got = replace(stage, dataset=Scores()).logits(requests, scored.events.item_N[rows], torch.arange(5), rows)  # type: ignore[arg-type]
    edge = math.log(1e-6 / (1 - 1e-6))
    expected = [edge, -edge, 0.0, math.log(0.2 / 0.8), math.log(0.9 / 0.1)]
    assert got.tolist() == pytest.approx(expected, rel=1e-2, abs=1e-6)


def test_a_column_orders_nothing(scored: Dataset) -> None:
    stage = ColumnStage("mine", scored, "dwell", "logit")
    requests = scored.requests_of(scored.rows("test")[:2], part="test")
    for ask in (stage, stage.order):
        with pytest.raises(ValueError, match="teacher 'mine' is a column of scores and orders no candidates"):
            ask(requests, None)


def test_scores_of_a_students_rows_are_those_of_the_events_and_nan_for_negatives(
    scored: Dataset, tmp_path: Path
) -> None:
    sources = (SampleSource(source="impressions"), SampleSource(source="uniform", per_positive=2))
    train = TrainConfig(label="click", batch_size=100, samples=sources)
    model = member(scored, 1).model
    task = Task("stage", model, scored.online("rank"), scored, train, scored.rows("train")[:300], seed=3)
    sampler = make_sampler(task)
    teacher_MS = teacher_logits(ColumnStage("mine", scored, "dwell", "logit"), sampler, tmp_path / "scores.npy")
    assert bool(teacher_MS[:, 0].isfinite().all())
    assert bool(teacher_MS[:, 1:].isnan().all())

"""Scoring stages: bounded batches, valid places only, evaluation mode, and logged events as of their own moment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cascade_kd.config import load_dataset_definition
from cascade_kd.data import Dataset, load, prepare
from cascade_kd.models.dcnv2 import DCNv2, DCNv2Config
from cascade_kd.stages import ScoringStage, event_logits, scoring
from cascade_kd.streams import scoped_seed
from cascade_kd.types import ITEM_ID, PARTS, USER_ID, Candidates, Inputs, Level, Output, Part, Requests


def make_stage(dataset: Dataset, level: Level = "rank", keep: int = 4) -> ScoringStage:
    features = dataset.online(level)
    with scoped_seed(5):
        model = DCNv2(DCNv2Config(embedding_size=4, hidden=(8,), cross_layers=1, dropout=0.5), features)
        nn.init.normal_(model.fields.table.weight)
    return ScoringStage("rank", level, keep, features, model, dataset)


@pytest.fixture
def requests(dataset: Dataset) -> Requests:
    return dataset.requests_of(dataset.rows("test")[::60], part="test")


@pytest.fixture
def received(requests: Requests) -> Candidates:
    """Lists of 9, 8, ..., 0 items."""
    generator = torch.Generator().manual_seed(0)
    item_BK = torch.stack([torch.randperm(80, generator=generator)[:9] + 1 for _ in range(len(requests))])
    return Candidates.ranked(item_BK, torch.zeros(item_BK.shape), torch.arange(9) < torch.arange(9, -1, -1)[:, None])


class Recording(nn.Module):
    """Logit = the item's code modulo 7; remembers the rows it was asked for and the mode it was in."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[int, int]] = []
        self.calls: list[int] = []
        self.modes: set[bool] = set()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, inputs: Inputs) -> Output:
        item_R = inputs.item[ITEM_ID]
        self.asked += zip(inputs.user[USER_ID][inputs.row_R].tolist(), item_R.tolist(), strict=True)
        self.calls.append(len(item_R))
        self.modes.add(self.training)
        return Output((item_R % 7).double() * self.weight)


def recording_stage(dataset: Dataset) -> tuple[ScoringStage, Recording]:
    model = Recording()
    features = (dataset.feature(USER_ID), dataset.feature(ITEM_ID))
    return ScoringStage("rank", "rank", 4, features, model, dataset), model  # type: ignore[arg-type]


def test_it_cannot_come_first(dataset: Dataset, requests: Requests) -> None:
    with pytest.raises(ValueError, match="stage 'rank' orders candidates of a stage before it and cannot come first"):
        make_stage(dataset)(requests, None)


@pytest.mark.parametrize("rows_per_call", [1 << 16, 20, 1])
def test_the_order_is_by_logits_ties_by_code_padding_last(
    dataset: Dataset, requests: Requests, received: Candidates, monkeypatch: pytest.MonkeyPatch, rows_per_call: int
) -> None:
    monkeypatch.setattr(scoring, "ROWS_PER_CALL", rows_per_call)
    stage, model = recording_stage(dataset)
    ordered = stage.order(requests, received)
    given = [item_K[valid_K].tolist() for item_K, valid_K in zip(received.item_BK, received.valid_BK, strict=True)]
    want = [sorted(items, key=lambda item: (-(item % 7), item)) for items in given]
    assert ordered.item_BK.tolist() == [items + [0] * (9 - len(items)) for items in want]
    assert ordered.valid_BK.tolist() == [[place < len(items) for place in range(9)] for items in want]
    assert ordered.score_BK.dtype == torch.float32
    assert ordered.score_BK.tolist() == [[i % 7 for i in items] + [-torch.inf] * (9 - len(items)) for items in want]
    users = requests.user_B.tolist()
    assert sorted(model.asked) == sorted((users[b], item) for b, items in enumerate(given) for item in items)
    assert max(model.calls) <= max(rows_per_call, 9)  # a request is never torn apart
    kept = stage(requests, received)
    assert torch.equal(kept.item_BK, ordered.item_BK[:, :4])


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, -1.0])
def test_the_score_it_came_with_counts_by_its_weight(
    dataset: Dataset, requests: Requests, received: Candidates, weight: float
) -> None:
    generator = torch.Generator().manual_seed(1)
    received = received.with_scores(torch.randn(received.item_BK.shape, generator=generator))
    stage, _ = recording_stage(dataset)
    ordered = replace(stage, upstream_weight=weight).order(requests, received)
    for number in range(len(requests)):
        rows = zip(received.item_BK[number].tolist(), received.score_BK[number].tolist(), strict=True)
        score = {item: item % 7 + weight * before for item, before in rows if item > 0}
        items = sorted(score, key=lambda item: (-score[item], item))
        assert ordered.item_BK[number].tolist() == items + [0] * (9 - len(items))
        assert ordered.valid_BK[number].tolist() == [place < len(items) for place in range(9)]
        assert ordered.score_BK[number, : len(items)].tolist() == pytest.approx([score[i] for i in items], rel=1e-5)
    assert not bool(ordered.score_BK.isnan().any())


def test_cutting_the_rows_changes_nothing(
    dataset: Dataset, requests: Requests, received: Candidates, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = make_stage(dataset)
    whole = stage.order(requests, received)
    monkeypatch.setattr(scoring, "ROWS_PER_CALL", 20)
    cut = stage.order(requests, received)
    assert torch.equal(cut.item_BK, whole.item_BK)
    torch.testing.assert_close(cut.score_BK, whole.score_BK)


def test_the_mode_is_left_as_it_was_and_no_gradient_flows(
    dataset: Dataset, requests: Requests, received: Candidates
) -> None:
    stage, model = recording_stage(dataset)
    for training in (True, False):
        model.train(training)
        ordered = stage.order(requests, received)
        assert model.training is training
        assert not ordered.score_BK.requires_grad
    assert model.modes == {False}
    model.train()
    with pytest.raises(IndexError):
        stage.logits(requests, torch.tensor([1]), torch.tensor([99]))  # row_R of a request that is not there
    assert model.training


def one_by_one(stage: ScoringStage, part: Part, rows: Tensor) -> list[float]:
    dataset = stage.dataset
    zero = torch.zeros(1, dtype=torch.int64)
    return [
        float(stage.logits(dataset.requests_of(row, part=part), dataset.events.item_N[row], zero, row))
        for row in rows.split(1)
    ]


@pytest.mark.parametrize("part", ["train", "valid", "test"])
@pytest.mark.parametrize("rows_per_call", [1 << 16, 7])
def test_events_are_scored_as_of_their_own_moment(
    dataset: Dataset, part: Part, rows_per_call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = make_stage(dataset)
    rows = dataset.rows(part)[::37]
    want = one_by_one(stage, part, rows)
    monkeypatch.setattr(scoring, "ROWS_PER_CALL", rows_per_call)
    got = event_logits(stage, dataset, part, rows)
    assert got.dtype == torch.float32
    assert got.tolist() == pytest.approx(want, rel=1e-4, abs=1e-5)
    assert event_logits(stage, dataset, part, rows[:0]).shape == (0,)


@pytest.mark.parametrize("part", ["train", "valid", "test"])
def test_statistics_are_read_from_the_log_of_the_part_that_asks(tiny_dataset: Path, part: Part) -> None:
    """With a split by user the parts overlap in time: train and valid read train, test reads train and valid."""
    text = tiny_dataset.read_text("utf-8")
    assert '[split]\nkind = "time"' in text
    tiny_dataset.write_text(text.replace('[split]\nkind = "time"', '[split]\nkind = "per-user-time"'), "utf-8")
    definition, file = load_dataset_definition(tiny_dataset)
    dataset = load(prepare(definition, base=file.parent))
    stage, rows, events = make_stage(dataset), dataset.rows(part), dataset.events
    before = event_logits(stage, dataset, part, rows)
    for number, other in enumerate(PARTS):
        turned_N = events.part_N == number
        labels = {name: torch.where(turned_N, 1 - y_N, y_N) for name, y_N in events.labels.items()}
        changed = replace(dataset, events=replace(events, labels=labels))
        after = event_logits(replace(stage, dataset=changed), changed, part, rows)
        is_read = other == "train" or (other == "valid" and part == "test")
        assert torch.equal(before, after) is not is_read, other


def test_a_teacher_of_level_never_sees_what_only_the_event_knows(dataset: Dataset) -> None:
    stage = make_stage(dataset, "never")
    rows = dataset.rows("test")[:50]
    got = event_logits(stage, dataset, "test", rows)
    columns = dataset.events.columns | {"dwell": torch.zeros_like(dataset.events.columns["dwell"])}  # type: ignore[operator]
    blind = replace(stage, dataset=replace(dataset, events=replace(dataset.events, columns=columns)))
    assert not torch.equal(event_logits(blind, blind.dataset, "test", rows), got)
    # Without the event there is no dwell: as if it were 0.
    without = stage.logits(dataset.requests_of(rows), dataset.events.item_N[rows], torch.arange(50))
    torch.testing.assert_close(event_logits(blind, blind.dataset, "test", rows), without)

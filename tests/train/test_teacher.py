"""Cached teacher scores: the right number in the right slot, computed once, whole or not at all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cascade_kd.data import Dataset
from cascade_kd.models.dcnv2 import DCNv2, DCNv2Config
from cascade_kd.stages import ScoringStage
from cascade_kd.streams import scoped_seed
from cascade_kd.train import SampleSource, teacher, teacher_logits
from cascade_kd.train.samples import Sampler
from cascade_kd.types import Candidates, Requests


@pytest.fixture
def stage(dataset: Dataset) -> ScoringStage:
    """A teacher that sees dwell, which only the event knows."""
    features = dataset.online("never")
    with scoped_seed(1):
        model = DCNv2(DCNv2Config(embedding_size=4, hidden=(8,), cross_layers=1, dropout=0.5), features)
        nn.init.normal_(model.fields.table.weight)
    return ScoringStage("rank", "never", 1, features, model, dataset)


@pytest.fixture
def sampler(dataset: Dataset) -> Sampler:
    return sampler_of(dataset, dataset.rows("train")[::10])


def sampler_of(dataset: Dataset, rows: Tensor) -> Sampler:
    """Two uniform and one upstream negative a positive; users of even code have no list."""
    item_UK = torch.arange(1, 11).repeat(dataset.num_users + 1, 1)
    valid_UK = (torch.arange(dataset.num_users + 1) % 2 == 1).unsqueeze(1).expand_as(item_UK)
    lists = Candidates.ranked(item_UK, torch.zeros(item_UK.shape), valid_UK)
    sources = [SampleSource(source="uniform", per_positive=2), SampleSource(source="upstream", per_positive=1)]
    return Sampler(dataset, rows, "click", batch_size=50, seed=3, sources=sources, lists=lists)


@dataclass(frozen=True)
class Formula:
    """A teacher whose logit tells the item, the moment and whether it was given the event; counts its calls."""

    calls: list[int]
    fail_at: int = 0
    name: str = "rank"
    level: str = "rank"
    keep: int = 1
    signals: frozenset[str] = frozenset({"ranking", "logits"})

    def logits(self, requests: Requests, item_R: Tensor, row_R: Tensor, event_R: Tensor | None = None) -> Tensor:
        assert event_R is not None
        self.calls.append(len(item_R))
        if len(self.calls) == self.fail_at:
            raise OSError("disk full")
        return item_R + 100 * (requests.time_B[row_R] % 1000) + 0.5 * (event_R >= 0)

    def order(self, requests: Requests, candidates: Candidates | None) -> Candidates:
        raise NotImplementedError

    def __call__(self, requests: Requests, candidates: Candidates | None) -> Candidates:
        raise NotImplementedError


def slots(sampler: Sampler) -> dict[tuple[int, int], tuple[int, int, int]]:
    """(sample, slot) -> (request's event, item, event or -1), of an epoch of batches."""
    found = {}
    for step in range(sampler.steps_per_epoch):
        batch = sampler.batch(step)
        rows = zip(*(x.tolist() for x in (batch.sample_R, batch.slot_R, batch.item_R, batch.event_R)), strict=True)
        for sample, slot, item, event in rows:
            found[sample, slot] = (int(sampler.rows_M[sample]), item, event)
    return found


@pytest.mark.parametrize("rows_per_call", [1 << 16, 64, 1])
def test_every_slot_holds_the_score_of_its_own_row(
    sampler: Sampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_per_call: int
) -> None:
    monkeypatch.setattr(teacher, "ROWS_PER_CALL", rows_per_call)
    calls: list[int] = []
    scores_MS = teacher_logits(Formula(calls), sampler, tmp_path / "scores.npy")
    assert scores_MS.shape == (len(sampler.rows_M), 4)
    assert scores_MS.dtype == torch.float32
    assert max(calls) <= max(rows_per_call, 4)
    assert (len(calls) == 1) is (rows_per_call > len(sampler.rows_M) * 4)
    want = np.full((len(sampler.rows_M), 4), np.nan, dtype=np.float32)
    times = sampler.dataset.events.time_N.tolist()
    for (sample, slot), (event, item, own) in slots(sampler).items():
        want[sample, slot] = item + 100 * (times[event] % 1000) + (0.5 if own >= 0 else 0)
    np.testing.assert_array_equal(scores_MS.numpy(), want)
    filled = ~scores_MS.isnan()
    assert bool(filled[:, 0].all())
    assert 0 < int(filled[:, 1:].sum()) < filled[:, 1:].numel()


def test_a_models_scores_are_those_of_each_row_alone(stage: ScoringStage, sampler: Sampler, tmp_path: Path) -> None:
    scores_MS = teacher_logits(stage, sampler, tmp_path / "scores.npy")
    zero = torch.zeros(1, dtype=torch.int64)
    checked = list(slots(sampler).items())[::17]
    assert {slot for (_, slot), _ in checked} == {0, 1, 2, 3}
    for (sample, slot), (event, item, own) in checked:
        request = sampler.dataset.requests_of(torch.tensor([event]), part="train")
        alone = stage.logits(request, torch.tensor([item]), zero, torch.tensor([own]))
        assert float(scores_MS[sample, slot]) == pytest.approx(float(alone), rel=1e-4, abs=1e-5)
    assert not scores_MS.requires_grad
    assert all(parameter.grad is None for parameter in stage.model.parameters())
    # Dropout of a teacher in training mode is off.
    assert isinstance(stage.model, nn.Module)
    stage.model.train()
    again = teacher_logits(stage, sampler, tmp_path / "again.npy")
    np.testing.assert_array_equal(again.numpy(), scores_MS.numpy())
    assert stage.model.training


def test_the_file_is_read_without_asking_the_stage(sampler: Sampler, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "scores.npy"
    first = teacher_logits(Formula([]), sampler, path)
    calls: list[int] = []
    second = teacher_logits(Formula(calls, fail_at=1), sampler, path)
    assert calls == []
    np.testing.assert_array_equal(second.numpy(), first.numpy())
    assert [file.name for file in path.parent.iterdir()] == ["scores.npy"]


def test_changing_what_was_read_changes_no_file(sampler: Sampler, tmp_path: Path) -> None:
    path = tmp_path / "scores.npy"
    before = teacher_logits(Formula([]), sampler, path).clone()
    teacher_logits(Formula([]), sampler, path).fill_(3.0)
    np.testing.assert_array_equal(teacher_logits(Formula([]), sampler, path).numpy(), before.numpy())


def test_a_failure_leaves_no_scores_and_the_next_call_makes_them(
    sampler: Sampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "ROWS_PER_CALL", 64)
    path = tmp_path / "scores.npy"
    with pytest.raises(OSError, match="disk full"):
        teacher_logits(Formula([], fail_at=3), sampler, path)
    assert not path.exists()
    scores_MS = teacher_logits(Formula([]), sampler, path)
    np.testing.assert_array_equal(scores_MS.numpy(), teacher_logits(Formula([]), sampler, tmp_path / "b.npy").numpy())


def test_a_failure_leaves_nothing_behind(sampler: Sampler, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk full"):
        teacher_logits(Formula([], fail_at=1), sampler, tmp_path / "deep" / "scores.npy")
    assert list((tmp_path / "deep").iterdir()) == []


def test_scores_are_read_as_of_the_moment_of_the_event(stage: ScoringStage, sampler: Sampler, tmp_path: Path) -> None:
    """Later clicks do not reach the score of an earlier row."""
    positives_M = sampler.rows_M[sampler.label_N[sampler.rows_M] > 0]
    time_M = stage.dataset.events.time_N[positives_M]
    middle = time_M.median()
    early = sampler_of(sampler.dataset, positives_M[time_M == middle])
    before = teacher_logits(stage, early, tmp_path / "before.npy")
    events = stage.dataset.events
    labels = {name: torch.where(events.time_N >= middle, 1 - y_N, y_N) for name, y_N in events.labels.items()}
    changed = replace(stage.dataset, events=replace(events, labels=labels))
    after = teacher_logits(replace(stage, dataset=changed), early, tmp_path / "after.npy")
    np.testing.assert_array_equal(after.numpy(), before.numpy())
    # and earlier ones do
    labels = {name: torch.where(events.time_N < middle, 1 - y_N, y_N) for name, y_N in events.labels.items()}
    changed = replace(stage.dataset, events=replace(events, labels=labels))
    other = teacher_logits(replace(stage, dataset=changed), early, tmp_path / "other.npy")
    assert not bool((other == before).any())

"""Rows that cannot be learned from, and monitors that are not defined, are refused before the first step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from cascade_kd.data import Dataset
from cascade_kd.errors import DataError
from cascade_kd.models.two_tower import TwoTower, TwoTowerConfig
from cascade_kd.train import ProgressLog, SampleSource, Task, TrainConfig, fit, make_sampler
from cascade_kd.train.checks import check_rows

IMPRESSIONS = SampleSource(source="impressions")
UNIFORM = SampleSource(source="uniform", per_positive=1)


def labelled(dataset: Dataset, **parts: float) -> Dataset:
    """The set with the clicks of whole parts set to 0 or 1."""
    label_N = dataset.events.labels["click"].clone()
    for part, value in parts.items():
        label_N[dataset.rows(part)] = value  # type: ignore[arg-type]
    return replace(dataset, events=replace(dataset.events, labels={"click": label_N}))


def without_validation(dataset: Dataset) -> Dataset:
    part_N = dataset.events.part_N.clone()
    part_N[part_N == 1] = 2
    return replace(dataset, events=replace(dataset.events, part_N=part_N))


def refusal(dataset: Dataset, *, tower: bool = True, **train: object) -> str:
    config = TrainConfig(label="click", **train)  # type: ignore[arg-type]
    with pytest.raises(DataError) as caught:
        check_rows("rank", dataset, dataset.rows("train"), config, tower=tower)
    return str(caught.value)


@pytest.mark.parametrize("train", [{}, {"loss": "sampled-softmax"}, {"samples": (UNIFORM,)}])
def test_no_positive(dataset: Dataset, train: dict[str, object]) -> None:
    message = refusal(labelled(dataset, train=0.0), **train)
    rows = len(dataset.rows("train"))
    assert f"stage 'rank' learns label 'click', which is true for none of {rows} training events" in message


def test_no_negative(dataset: Dataset) -> None:
    always = labelled(dataset, train=1.0, valid=1.0)
    message = refusal(always)
    assert "which is true for all" in message
    assert 'draw some: samples = [{ from = "impressions" }, { from = "uniform", per_positive = 4 }]' in message
    for fine in ({"samples": (IMPRESSIONS, UNIFORM)}, {"samples": (UNIFORM,)}, {"loss": "sampled-softmax"}):
        config = TrainConfig(label="click", monitor="recall@50", **fine)  # type: ignore[arg-type]
        check_rows("rank", always, always.rows("train"), config, tower=True)


def test_monitors(dataset: Dataset) -> None:
    always, never = labelled(dataset, valid=1.0), labelled(dataset, valid=0.0)
    number = len(dataset.rows("valid"))
    message = refusal(always)
    assert f"watches auc on the validation part, which has it in {number} of {number} events" in message
    assert message.endswith('so auc is not defined; set monitor = "recall@50"')
    assert refusal(always, tower=False).endswith('set monitor = "logloss"')
    assert refusal(never).endswith('so auc is not defined; set monitor = "logloss"')
    assert "so recall is not defined" in refusal(never, monitor="recall@5")
    for monitor in ("auc", "recall@5", "logloss"):
        assert refusal(without_validation(dataset), monitor=monitor).endswith("enlarge the part by [split] valid")
    for data, monitor in ((dataset, "auc"), (dataset, "recall@5"), (always, "recall@5"), (never, "logloss")):
        config = TrainConfig(label="click", monitor=monitor)
        check_rows("rank", data, data.rows("train"), config, tower=True)


def test_fit_refuses_before_it_writes(dataset: Dataset, tmp_path: Path) -> None:
    never = labelled(dataset, train=0.0)
    features = dataset.online("recall")
    model = TwoTower(TwoTowerConfig(embedding_size=4, hidden=(8,), output_size=4), features)
    task = Task("recall", model, features, never, TrainConfig(label="click"), dataset.rows("train"), seed=1)
    with pytest.raises(DataError, match="stage 'recall' learns label 'click', which is true for none"):
        fit(task, tmp_path / "run", ProgressLog(quiet=True), about={"seed": 0, "round": 0})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("loss", ["bce", "sampled-softmax"])
def test_without_impressions_the_rows_are_the_positives(dataset: Dataset, loss: str) -> None:
    model = nn.Linear(1, 1)
    rows = dataset.rows("train")
    positives = rows[dataset.events.labels["click"][rows] > 0]
    for samples, want in (((UNIFORM,), positives), ((UNIFORM, IMPRESSIONS), rows)):
        train = TrainConfig(label="click", loss=loss, samples=samples)  # type: ignore[arg-type]
        task = Task("rank", model, (), dataset, train, rows, seed=1)  # type: ignore[arg-type]
        sampler = make_sampler(task)
        assert torch.equal(sampler.rows_M, want)
        assert sampler.num_slots == 2

"""Statistics of training rows: taken from where they were prepared, looked up elsewhere, the same bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cascade_kd.data import Dataset
from cascade_kd.train import SampleSource
from cascade_kd.train.columns import StatisticColumns
from cascade_kd.train.hard import HardNegatives
from cascade_kd.train.samples import Batch, Sampler
from cascade_kd.types import Inputs, Output

UNIFORM = SampleSource(source="uniform", per_positive=2)
HARD = SampleSource(source="hard", per_positive=2, pool=5)


class AnyModel(torch.nn.Module):
    """Scores by the row's place."""

    def forward(self, inputs: Inputs, hidden: Sequence[str] = ()) -> Output:
        return Output(torch.arange(len(inputs.row_R)) % 7 * 1.0)


def prepared_as(dataset: Dataset, statistics: dict[str, Tensor]) -> Dataset:
    return replace(dataset, events=replace(dataset.events, statistics=statistics))


def names(dataset: Dataset) -> list[str]:
    return [f.name for f in dataset.features if f.kind == "statistic" and f.side in ("item", "pair")]


def make_sampler(dataset: Dataset, *sources: SampleSource) -> Sampler:
    return Sampler(dataset, dataset.rows("train")[::3], "click", batch_size=400, seed=1, sources=sources)


def looked_up(dataset: Dataset, batch: Batch) -> dict[str, Tensor]:
    wanted = names(dataset)
    inputs = dataset.inputs(wanted, batch.requests, batch.item_R, batch.row_R, part="train")
    return {name: inputs.item[name] for name in wanted}


@pytest.mark.parametrize("sources", [(), (UNIFORM,)])
def test_prepared_columns_are_those_of_a_look_up_bit_for_bit(
    dataset: Dataset, sources: tuple[SampleSource, ...]
) -> None:
    bare = prepared_as(dataset, {})
    with_look_up = StatisticColumns(make_sampler(bare, *sources), bare.features)
    with_prepared = StatisticColumns(make_sampler(dataset, *sources), dataset.features)
    assert list(with_look_up.columns) == list(with_prepared.columns) == names(dataset) != []
    batch = make_sampler(dataset, *sources).batch(1)
    direct = looked_up(bare, batch)
    for name in names(dataset):
        assert torch.equal(with_prepared.columns[name], with_look_up.columns[name])
        assert torch.equal(with_prepared.of(batch)[name], direct[name])


def test_logged_rows_are_read_and_drawn_ones_looked_up(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *others = names(dataset)
    marked = torch.arange(len(dataset.events.user_N)) * 1.0
    given = prepared_as(dataset, {first: marked})  # the others are not prepared
    asked: list[tuple[tuple[str, ...], int]] = []
    plain = Dataset.inputs

    def counting(self: Dataset, wanted: Sequence[str], requests: object, item_R: Tensor, *rest: object, **keys: object):  # type: ignore[no-untyped-def]
        asked.append((tuple(wanted), len(item_R)))
        return plain(self, wanted, requests, item_R, *rest, **keys)  # type: ignore[arg-type]

    monkeypatch.setattr(Dataset, "inputs", counting)
    sampler = make_sampler(given, UNIFORM)
    columns = StatisticColumns(sampler, given.features)
    drawn = int((sampler.item_MS[:, 1:] > 0).sum())
    assert asked == [(tuple(others), len(sampler.rows_M)), ((first, *others), drawn)]
    monkeypatch.undo()
    batch = sampler.batch(0)
    logged = batch.slot_R == 0
    direct = looked_up(given, batch)
    assert torch.equal(columns.of(batch)[first][logged], marked[batch.event_R[logged]])
    assert torch.equal(columns.of(batch)[first][~logged], direct[first][~logged])
    for name in others:
        assert torch.equal(columns.of(batch)[name], direct[name])


def test_without_negatives_nothing_is_looked_up(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    given = prepared_as(dataset, {name: torch.zeros(len(dataset.events.user_N)) for name in names(dataset)})
    sampler = make_sampler(given)
    monkeypatch.setattr(Sampler, "rows", None)
    assert set(StatisticColumns(sampler, given.features).columns) == set(names(dataset))


def test_hard_rows_are_looked_up_when_they_come(dataset: Dataset) -> None:
    sampler = make_sampler(dataset, UNIFORM)
    columns = StatisticColumns(sampler, dataset.features)
    hard = HardNegatives(HARD, AnyModel(), dataset.features, dataset, 3, sampler.num_slots)  # type: ignore[arg-type]
    batch = hard.added_to(sampler.batch(0), 0)
    assert int((batch.slot_R >= sampler.num_slots).sum()) > 50
    direct = looked_up(dataset, batch)
    for name, column_R in columns.of(batch).items():
        assert torch.equal(column_R, direct[name])

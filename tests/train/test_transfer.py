"""Pseudo rows of a data set as columns of a model, and a teacher's logits on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cascade_kd.data import Dataset
from cascade_kd.errors import SignalError, UserError
from cascade_kd.models.dcnv2 import DCNv2, DCNv2Config
from cascade_kd.models.settings import TwoTowerConfig
from cascade_kd.models.two_tower import TwoTower
from cascade_kd.stages import ColumnStage, EnsembleStage, RetrievalStage, ScoringStage
from cascade_kd.streams import scoped_seed
from cascade_kd.train import transfer
from cascade_kd.train.transfer import MungedRows, munged_rows, score
from cascade_kd.types import Feature, Inputs

SETTINGS: dict[str, Any] = {"copies": 3, "swap": 0.5, "variance": 1.0, "seed": 7}
KEPT = {"user_id", "item_id", "clicked_items"}


@pytest.fixture
def features(dataset: Dataset) -> tuple[Feature, ...]:
    """All there are, dwell included, which only the event knows."""
    return dataset.online("never")


@pytest.fixture
def rows_M(dataset: Dataset) -> Tensor:
    return dataset.rows("train")[::8]


@pytest.fixture
def rows(dataset: Dataset, features: tuple[Feature, ...], rows_M: Tensor) -> MungedRows:
    return munged_rows(dataset, rows_M, features, **SETTINGS)


def scorer(dataset: Dataset, features: tuple[Feature, ...], seed: int = 1) -> ScoringStage:
    with scoped_seed(seed):
        model = DCNv2(DCNv2Config(embedding_size=4, hidden=(8,), cross_layers=1, dropout=0.5), features)
        nn.init.normal_(model.fields.table.weight)
    return ScoringStage(f"rank-{seed}", "never", 1, features, model, dataset)


def real_inputs(dataset: Dataset, features: tuple[Feature, ...], event_B: Tensor) -> Inputs:
    requests, row_B = dataset.requests_of(event_B, part="train"), torch.arange(len(event_B))
    names = [f.name for f in features]
    return dataset.inputs(names, requests, dataset.events.item_N[event_B], row_B, part="train", event_R=event_B)


def columns(inputs: Inputs) -> dict[str, Tensor]:
    return {**inputs.user, **inputs.item}


def test_every_kind_but_ids_histories_and_vectors_is_munged(
    rows: MungedRows, features: tuple[Feature, ...], dataset: Dataset, rows_M: Tensor
) -> None:
    assert {f.kind for f in features} == {"categorical", "numeric", "tags", "statistic", "history"}
    assert {f.side for f in features} == {"user", "item", "context", "pair"}
    assert set(rows.munged) == {f.name for f in features} - KEPT
    for column in rows.munged.values():
        assert column.shape[:2] == (3, len(rows_M))
        assert column.dtype in (torch.int32, torch.float32)
    vector = replace(dataset.feature("price"), name="embedding", kind="vector", length=4)
    assert not transfer.is_munged(vector)


def test_inputs_are_copy_after_copy_of_the_rows_asked_for(
    rows: MungedRows, features: tuple[Feature, ...], dataset: Dataset, rows_M: Tensor
) -> None:
    sample_B = torch.tensor([5, 0, 17, 17])
    got, real = rows.inputs(sample_B), real_inputs(dataset, features, rows_M[sample_B])
    assert torch.equal(got.row_R, torch.arange(12))
    assert set(got.user) == set(real.user)
    assert set(got.item) == set(real.item)
    altered = 0
    for name, column_R in columns(got).items():
        own_B = columns(real)[name]
        assert column_R.dtype == own_B.dtype
        assert column_R.shape == (12, *own_B.shape[1:])
        for copy in range(3):
            for b, sample in enumerate(sample_B.tolist()):
                value = column_R[copy * 4 + b]
                assert torch.equal(value, own_B[b] if name in KEPT else rows.munged[name][copy, sample].to(value.dtype))
                altered += not torch.equal(value, own_B[b])
    assert altered > 20


def test_nothing_swapped_gives_copies_of_the_real_rows(
    features: tuple[Feature, ...], dataset: Dataset, rows_M: Tensor
) -> None:
    rows = munged_rows(dataset, rows_M, features, **(SETTINGS | {"swap": 0.0}))
    got = columns(rows.inputs(torch.arange(len(rows_M))))
    for name, own_M in columns(real_inputs(dataset, features, rows_M)).items():
        assert torch.equal(got[name], own_M.repeat(3, *[1] * (own_M.ndim - 1))), name


def test_codes_of_a_column_are_those_of_the_real_rows(
    rows: MungedRows, features: tuple[Feature, ...], dataset: Dataset, rows_M: Tensor
) -> None:
    real = columns(real_inputs(dataset, features, rows_M))
    for f in features:
        if f.name not in rows.munged:
            continue
        for copy in rows.munged[f.name]:
            assert not torch.equal(copy.to(real[f.name].dtype), real[f.name]), f.name
            if not f.is_number:
                assert sorted(copy.tolist()) == sorted(real[f.name].tolist()), f.name
        first, second, _ = rows.munged[f.name]
        assert not torch.equal(first, second), f.name


def test_rows_follow_from_the_seed_and_leave_the_data_set_alone(
    features: tuple[Feature, ...], dataset: Dataset, rows_M: Tensor
) -> None:
    tables = (dataset.users, dataset.items, dataset.events.columns, dataset.events.statistics)
    before = [{name: x.clone() for name, x in table.items()} for table in tables]
    first, again, other = (munged_rows(dataset, rows_M, features, **(SETTINGS | {"seed": s})) for s in (7, 7, 8))
    for name, column in first.munged.items():
        assert torch.equal(column, again.munged[name])
        assert not torch.equal(column, other.munged[name])
    for table, kept in zip(tables, before, strict=True):
        assert all(torch.equal(table[name], x) for name, x in kept.items())


def test_statistics_prepared_and_looked_up_are_the_same(
    features: tuple[Feature, ...], dataset: Dataset, rows_M: Tensor
) -> None:
    bare = replace(dataset, events=replace(dataset.events, statistics={}))
    assert dataset.events.statistics
    one, other = (munged_rows(d, rows_M, features, **SETTINGS).munged for d in (dataset, bare))
    for name in one:
        assert torch.equal(one[name], other[name])


@pytest.mark.parametrize("rows_per_call", [1 << 16, 64, 1])
def test_scores_are_the_models_logits_on_the_rows(
    rows: MungedRows,
    features: tuple[Feature, ...],
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    rows_per_call: int,
) -> None:
    monkeypatch.setattr(transfer, "ROWS_PER_CALL", rows_per_call)
    if rows_per_call == 1:
        rows = munged_rows(dataset, rows.rows_M[:20], features, **SETTINGS)
    stage = scorer(dataset, features)
    assert isinstance(stage.model, nn.Module)
    sizes: list[int] = []
    stage.model.train().register_forward_pre_hook(lambda _, given: sizes.append(len(given[0].row_R)))
    got = score(stage, rows)
    assert stage.model.training
    assert got.shape == (len(rows.rows_M), 3)
    assert got.dtype == torch.float32
    assert not got.requires_grad
    assert max(sizes) <= max(rows_per_call, 3)
    stage.model.eval()
    for sample in range(0, len(rows.rows_M), 13):
        with torch.no_grad():
            alone = stage.model(rows.inputs(torch.tensor([sample]))).logits_R
        torch.testing.assert_close(got[sample], alone, rtol=1e-4, atol=1e-5)
    assert float(got.std(1).mean()) > 0


def test_rows_that_are_not_changed_are_scored_as_the_stage_scores_events(
    features: tuple[Feature, ...], dataset: Dataset, rows_M: Tensor
) -> None:
    rows = munged_rows(dataset, rows_M, features, **(SETTINGS | {"swap": 0.0}))
    stage = scorer(dataset, features)
    requests, row_M = dataset.requests_of(rows_M, part="train"), torch.arange(len(rows_M))
    want = stage.logits(requests, dataset.events.item_N[rows_M], row_M, rows_M)
    torch.testing.assert_close(score(stage, rows), want.unsqueeze(1).expand(-1, 3), rtol=1e-4, atol=1e-5)


def test_a_recall_stage_and_an_ensemble_score_too(
    rows: MungedRows, features: tuple[Feature, ...], dataset: Dataset
) -> None:
    shown = dataset.online("recall")
    with scoped_seed(3):
        towers = TwoTower(TwoTowerConfig(embedding_size=4, hidden=(8,), output_size=4), shown)
        nn.init.normal_(towers.fields.table.weight)
    recall = RetrievalStage("recall", "recall", 5, shown, towers, dataset)
    with torch.no_grad():
        want = towers.eval()(rows.inputs(torch.arange(len(rows.rows_M)))).logits_R.view(3, -1).T
    torch.testing.assert_close(score(recall, rows), want, rtol=1e-4, atol=1e-5)

    members = (recall, scorer(dataset, features, 1), scorer(dataset, features, 2))
    mean = torch.stack([score(member, rows).sigmoid() for member in members]).mean(0)
    torch.testing.assert_close(score(EnsembleStage("all", members), rows).sigmoid(), mean, rtol=1e-4, atol=1e-5)
    nested = EnsembleStage("nested", (members[0], EnsembleStage("two", members[1:])))
    pair = torch.stack([score(member, rows).sigmoid() for member in members[1:]]).mean(0)
    mean = (score(recall, rows).sigmoid() + pair) / 2
    torch.testing.assert_close(score(nested, rows).sigmoid(), mean, rtol=1e-4, atol=1e-5)


def test_what_has_no_logits_of_pseudo_rows_is_refused(rows: MungedRows, dataset: Dataset) -> None:
    column = ColumnStage("theirs", dataset, "dwell", "logit")
    for stage in (column, EnsembleStage("both", (column,))):
        with pytest.raises(SignalError, match=r"teacher 'theirs' gives no logits .* take a teacher that is a model"):
            score(stage, rows)


def test_a_data_set_larger_than_memory_is_refused(
    features: tuple[Feature, ...], dataset: Dataset, rows_M: Tensor, tmp_path: Path
) -> None:
    stream = replace(dataset, stream=tmp_path)
    for data, rows in ((dataset, None), (stream, None), (stream, rows_M)):
        with pytest.raises(UserError, match=r"data set 'synthetic' is larger than memory .* layout = \"memory\""):
            munged_rows(data, rows, features, **SETTINGS)


def test_rows_that_have_nothing_to_swap_are_refused(
    features: tuple[Feature, ...], dataset: Dataset, rows_M: Tensor
) -> None:
    bare = tuple(f for f in features if f.name in KEPT)
    with pytest.raises(UserError, match=r"read none: 'user_id', .*leave out \[transfer\]"):
        munged_rows(dataset, rows_M, bare, **SETTINGS)
    with pytest.raises(UserError, match="there are 1; it takes at least 2"):
        munged_rows(dataset, rows_M[:1], features, **SETTINGS)

"""Continuing on grown vocabularies: rows move by value, new values start afresh, another model is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import polars as pl
import pytest
import torch
from torch import nn

from cascade_kd.config import load_dataset_definition
from cascade_kd.data import Dataset, load, prepare
from cascade_kd.errors import RunError
from cascade_kd.models.dcnv2 import DCNv2, DCNv2Config
from cascade_kd.models.two_tower import TwoTower, TwoTowerConfig
from cascade_kd.streams import scoped_seed
from cascade_kd.train.checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimizer_state,
    restore_optimizer,
    save_checkpoint,
)
from cascade_kd.train.grow import VOCABULARY, Grown, embedding_tables, grow, newer_rows, save_origin
from cascade_kd.train.optimizers import make_optimizers
from cascade_kd.train.settings import TrainConfig
from cascade_kd.types import ITEM_ID, USER_ID, Feature

TABLE = "fields.table.weight"
DATASET = """
name = "grows"
licence = "none"
[tables.events]
file = "log.csv"
[roles]
user = "who"
item = "what"
time = "when"
[labels]
click = "clicked = 1"
[[feature]]
name = "device"
kind = "categorical"
side = "context"
available = "recall"
[[feature]]
name = "price"
kind = "numeric"
side = "context"
available = "recall"
[[feature]]
name = "clicks"
kind = "history"
side = "user"
length = 5
available = "recall"
[split]
kind = "time"
"""


def world(folder: Path, days: int, users: list[str], items: list[str], devices: list[str]) -> Dataset:
    """A log of ``days`` days; the draws of a day depend on the day alone, users and items on the lists."""
    generator = torch.Generator().manual_seed(0)
    n = 40 * days

    def drawn(values: list[str]) -> list[str]:
        places = torch.rand(40 * 40, generator=generator)[:n]
        return [values[int(place * len(values))] for place in places]

    folder.mkdir()
    pl.DataFrame(
        {
            "who": drawn(users),
            "what": drawn(items),
            "when": range(0, n * 2160, 2160),
            "clicked": (torch.rand(n, generator=generator) < 0.5).long().tolist(),
            "device": drawn(devices),
            "price": torch.rand(n, generator=generator).tolist(),
        }
    ).write_csv(folder / "log.csv")
    (folder / "grows.toml").write_text(DATASET, "utf-8")
    definition, file = load_dataset_definition(folder / "grows.toml")
    return load(prepare(definition, base=file.parent))


def names(prefix: str, num: int) -> list[str]:
    return [f"{prefix}{number:02}" for number in range(num)]


@pytest.fixture
def old(tmp_path: Path) -> Dataset:
    return world(tmp_path / "old-data", 10, names("u", 12), names("m", 15), ["m05", "tablet"])


@pytest.fixture
def new(tmp_path: Path) -> Dataset:
    """New values sort before, between and behind the old ones, so that every code moves; some old ones are gone.

    One device is named like an item.
    """
    users = [*names("a", 3), *names("u", 11), *names("z", 2)]
    items = [*names("b", 4), *names("m", 13), "m03x", *names("y", 3)]
    return world(tmp_path / "new-data", 20, users, items, ["desktop", "m05", "tablet"])


def ranker(features: tuple[Feature, ...], seed: int = 1, *, width: int = 4, hidden: tuple[int, ...] = (8,)) -> DCNv2:
    with scoped_seed(seed):
        config = DCNv2Config(embedding_size=width, hidden=hidden, cross_layers=1, batch_norm=True)
        return DCNv2(config, features)


def two_tower(features: tuple[Feature, ...], seed: int = 1) -> TwoTower:
    with scoped_seed(seed):
        return TwoTower(TwoTowerConfig(embedding_size=4, hidden=(8,), output_size=4), features)


def leave_run(folder: Path, model: nn.Module, dataset: Dataset, steps: int = 3) -> None:
    """What a finished run leaves: other weights in ``best`` than in ``last``, moments, vocabularies, last moments."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    meta = {"key": "abc", "state": {"step": steps}, "embedding_tables": embedding_tables(model)}
    save_checkpoint(folder / "stage" / "best.safetensors", Checkpoint(model.state_dict(), meta))
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    last = Checkpoint(model.state_dict(), meta, optimizer_state(model, optimizer))
    save_checkpoint(folder / "stage" / "last.safetensors", last)
    save_origin(dataset, folder / "origin")


def grow_from(folder: Path, model: nn.Module, dataset: Dataset) -> Grown:
    return grow(folder / "stage", folder / "origin" / VOCABULARY, model, dataset)


@pytest.mark.parametrize("make", [ranker, two_tower])
def test_rows_and_moments_move_by_value(tmp_path: Path, old: Dataset, new: Dataset, make: type) -> None:
    before: DCNv2 | TwoTower = make(old.online("rank"))
    start = {name: tensor.clone() for name, tensor in before.state_dict().items()}
    leave_run(tmp_path, before, old)
    moments = load_checkpoint(tmp_path / "stage" / "last.safetensors").optimizer
    after: DCNv2 | TwoTower = make(new.online("rank"), 2)
    fresh = {name: tensor.clone() for name, tensor in after.state_dict().items()}
    grown = grow_from(tmp_path, after, new)

    assert grown.model.keys() == fresh.keys()
    assert grown.model[TABLE].shape == fresh[TABLE].shape != start[TABLE].shape
    known = unknown = moved = 0
    for vocabulary, now in after.fields.offsets.items():
        then = before.fields.offsets[vocabulary]
        assert torch.equal(grown.model[TABLE][now], start[TABLE][then])  # the unknown's row
        for code, value in enumerate(new.vocabularies[vocabulary].to_list(), start=1):
            earlier = old.code_of(vocabulary, value)
            row = grown.model[TABLE][now + code]
            if earlier:
                assert torch.equal(row, start[TABLE][then + earlier])
                known, moved = known + 1, moved + (code != earlier)
            else:
                assert torch.equal(row, fresh[TABLE][now + code])
                unknown += 1
            for key in ("exp_avg", "exp_avg_sq"):
                moment = grown.optimizer[TABLE][key][now + code]
                want = moments[TABLE][key][then + earlier] if earlier else torch.zeros_like(moment)
                assert torch.equal(moment, want)
    assert known > 20
    assert unknown == 3 + 2 + 4 + 1 + 3 + 1
    assert moved > 20
    for name in fresh.keys() - {TABLE}:  # all else as it was best, with the last moments
        assert torch.equal(grown.model[name], start[name]), name
    for name, state in moments.items():
        assert torch.equal(grown.optimizer[name]["step"], state["step"])
        if name != TABLE:
            assert torch.equal(grown.optimizer[name]["exp_avg"], state["exp_avg"])
            assert torch.equal(grown.optimizer[name]["exp_avg_sq"], state["exp_avg_sq"])
    assert grown.origin == {"key": "abc", "step": 3}
    # The new model is not touched, takes the weights, and its optimiser goes on.
    for name, tensor in after.state_dict().items():
        assert torch.equal(tensor, fresh[name]), name
    after.load_state_dict(grown.model)
    optimizer = torch.optim.Adam(after.parameters(), lr=0.1)
    restore_optimizer(after, optimizer, grown.optimizer)
    assert {int(state["step"]) for state in optimizer.state.values()} == {3}


def test_the_same_data_gives_the_best_weights_back(tmp_path: Path, old: Dataset) -> None:
    before = ranker(old.online("rank"))
    best = {name: tensor.clone() for name, tensor in before.state_dict().items()}
    leave_run(tmp_path, before, old)
    grown = grow_from(tmp_path, ranker(old.online("rank"), 2), old)
    for name, tensor in best.items():
        assert torch.equal(grown.model[name], tensor), name


def test_batch_norm_statistics_come_along(tmp_path: Path, old: Dataset, new: Dataset) -> None:
    before = ranker(old.online("rank"))
    before.mlp.norm[0].running_mean.fill_(2.5)  # type: ignore[union-attr, operator]
    before.mlp.norm[0].num_batches_tracked.fill_(77)  # type: ignore[union-attr, operator]
    leave_run(tmp_path, before, old)
    grown = grow_from(tmp_path, ranker(new.online("rank")), new)
    assert bool((grown.model["mlp.norm.0.running_mean"] == 2.5).all())
    assert int(grown.model["mlp.norm.0.num_batches_tracked"]) == 77


def without(dataset: Dataset, *left_out: str) -> tuple[Feature, ...]:
    return tuple(feature for feature in dataset.online("rank") if feature.name not in left_out)


def test_a_model_of_another_shape_is_refused(tmp_path: Path, old: Dataset, new: Dataset) -> None:
    leave_run(tmp_path, ranker(old.online("rank")), old)
    wider = ranker(new.online("rank"), hidden=(16,))
    with pytest.raises(
        RunError, match=r"init_from: tensor 'mlp\.linear\.0\.weight' was \(8, \d+\) and is \(16, \d+\) now"
    ):
        grow_from(tmp_path, wider, new)
    with pytest.raises(RunError, match=r"has no tensor 'mlp\.linear\.1\.weight'; its model was another one"):
        grow_from(tmp_path, ranker(new.online("rank"), hidden=(8, 8)), new)
    with pytest.raises(RunError, match="its model was another one"):
        grow_from(tmp_path, two_tower(new.online("rank")), new)
    with pytest.raises(RunError, match=r"keep the stage's \[model\] and features as they were"):
        grow_from(tmp_path, ranker(without(new, "price", "device")), new)


def test_another_embedding_size_is_refused(tmp_path: Path, old: Dataset, new: Dataset) -> None:
    leave_run(tmp_path, ranker(old.online("rank"), width=6), old)
    with pytest.raises(RunError, match=r"fields\.table\.weight"):
        grow_from(tmp_path, ranker(new.online("rank")), new)


def test_a_model_with_a_layer_less_is_refused(tmp_path: Path, old: Dataset, new: Dataset) -> None:
    leave_run(tmp_path, ranker(old.online("rank"), hidden=(8, 8)), old)
    with pytest.raises(RunError):
        grow_from(tmp_path, ranker(new.online("rank")), new)


def test_a_model_of_numbers_alone_continues(tmp_path: Path, old: Dataset, new: Dataset) -> None:
    before = ranker((old.feature("price"),))
    best = {name: tensor.clone() for name, tensor in before.state_dict().items()}
    leave_run(tmp_path, before, old)
    grown = grow_from(tmp_path, ranker((new.feature("price"),), 2), new)
    assert all(torch.equal(grown.model[name], tensor) for name, tensor in best.items())


def test_other_features_in_the_place_of_the_old_ones_are_refused(tmp_path: Path, old: Dataset, new: Dataset) -> None:
    leave_run(tmp_path, ranker((old.feature(USER_ID), old.feature("device"))), old)
    with pytest.raises(RunError):
        grow_from(tmp_path, ranker((new.feature(USER_ID), new.feature(ITEM_ID))), new)


@pytest.mark.parametrize("lost", ["stage/best.safetensors", "stage/last.safetensors", "origin/vocabulary.parquet"])
def test_a_missing_file_is_named(tmp_path: Path, old: Dataset, lost: str) -> None:
    leave_run(tmp_path, ranker(old.online("rank")), old)
    (tmp_path / lost).unlink()
    with pytest.raises(RunError, match=rf"init_from: .*{Path(lost).name} is missing; name a finished run"):
        grow_from(tmp_path, ranker(old.online("rank")), old)


# -- which rows are newer


def moments(dataset: Dataset) -> list[tuple[int, str, int]]:
    """(row, user's own id, time) of the training part."""
    rows = dataset.rows("train").tolist()
    user, time = dataset.events.user_N.tolist(), dataset.events.time_N.tolist()
    return [(row, dataset.vocabularies[USER_ID][user[row] - 1], time[row]) for row in rows]


def test_newer_rows_come_after_each_users_own_last_one(tmp_path: Path, old: Dataset, new: Dataset) -> None:
    save_origin(old, tmp_path / "origin")
    until: dict[str, int] = {}
    for _, user, time in moments(old):
        until[user] = max(until.get(user, -1), time)
    want = [row for row, user, time in moments(new) if time > until.get(user, -1)]
    got = newer_rows(new, tmp_path / "origin")
    assert got.tolist() == want
    users = {user for row, user, _ in moments(new) if row in set(want)}
    assert users - until.keys()  # new users bring all their events
    assert users & until.keys()
    assert 0 < len(want) < len(moments(new))


def test_only_training_rows_are_taken(tmp_path: Path, old: Dataset, new: Dataset) -> None:
    save_origin(old, tmp_path / "origin")
    assert bool((new.events.part_N[newer_rows(new, tmp_path / "origin")] == 0).all())


def test_no_newer_event_is_refused_with_the_remedy(tmp_path: Path, old: Dataset) -> None:
    save_origin(old, tmp_path / "run" / "origin")
    with pytest.raises(RunError, match="init_from: the training part holds no event after those of the earlier run"):
        newer_rows(old, tmp_path / "run" / "origin")
    with pytest.raises(RunError, match="is missing; name a finished run"):
        newer_rows(old, tmp_path / "nowhere")


def test_a_user_who_had_no_training_event_is_new(tmp_path: Path, old: Dataset) -> None:
    """Events of the old validation part may be trained on now."""
    user = int(old.events.user_N[old.rows("train")[0]])
    part_N = old.events.part_N.clone()
    part_N[old.events.user_N == user] = 1
    save_origin(replace(old, events=replace(old.events, part_N=part_N)), tmp_path / "origin")
    rows = newer_rows(old, tmp_path / "origin")
    train = old.rows("train")
    assert torch.equal(rows, train[old.events.user_N[train] == user])


def test_projections_of_vectors_come_along(tmp_path: Path, old: Dataset, new: Dataset) -> None:
    """A precomputed vector has no vocabulary: its projection and moments move as they are, at the same width only."""
    vector = Feature("v", "vector", "item", "recall", length=3)
    before = ranker((*old.online("rank"), vector))
    best = {name: tensor.clone() for name, tensor in before.state_dict().items()}
    leave_run(tmp_path, before, old)
    grown = grow_from(tmp_path, ranker((*new.online("rank"), vector), 2), new)
    name = "fields.item.projections.0.weight"
    assert torch.equal(grown.model[name], best[name])
    assert grown.optimizer[name]["exp_avg"].abs().sum() > 0
    with pytest.raises(RunError, match=r"'fields\.item\.projections\.0\.weight' was \(4, 3\) and is \(4, 5\) now"):
        grow_from(tmp_path, ranker((*new.online("rank"), replace(vector, length=5)), 2), new)


@pytest.mark.parametrize(("kind", "key"), [("rowwise-adagrad", "row_sum"), ("sparse-adam", "exp_avg_sq")])
def test_the_state_of_a_row_sparse_optimiser_moves_by_value(
    tmp_path: Path, old: Dataset, new: Dataset, kind: Literal["rowwise-adagrad", "sparse-adam"], key: str
) -> None:
    config = TrainConfig(label="click", embedding_optimizer=kind, learning_rate=0.1)
    before = ranker(old.online("rank"))
    leave_run(tmp_path, before, old)
    checkpoint = load_checkpoint(tmp_path / "stage" / "last.safetensors")
    table, optimizers = before.fields.table, make_optimizers(before, config)
    for step in range(3):
        table(torch.arange(len(table.weight))[step % 2 :: 2]).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    state = optimizer_state(before, optimizers[1])
    save_checkpoint(
        tmp_path / "stage" / "last.safetensors", Checkpoint(before.state_dict(), checkpoint.meta, dict(state))
    )

    after = ranker(new.online("rank"), 2)
    grown = grow_from(tmp_path, after, new)
    then_V, now_V = state[TABLE][key], grown.optimizer[TABLE][key]
    assert now_V.shape == (len(after.fields.table.weight), *then_V.shape[1:])
    moved = 0
    for vocabulary, now in after.fields.offsets.items():
        for code, value in enumerate(new.vocabularies[vocabulary].to_list(), start=1):
            earlier = old.code_of(vocabulary, value)
            want = then_V[before.fields.offsets[vocabulary] + earlier] if earlier else torch.zeros_like(then_V[0])
            assert torch.equal(now_V[now + code], want)
            moved += bool(earlier)
    assert moved > 20
    fresh = make_optimizers(after, config)
    for optimizer in fresh:
        restore_optimizer(after, optimizer, grown.optimizer)
    assert torch.equal(fresh[1].state[after.fields.table.weight][key], now_V)
    assert fresh[1].state[after.fields.table.weight]["step"] == 3


def test_compressed_vocabularies_are_refused(tmp_path: Path, old: Dataset, new: Dataset) -> None:
    message = r"init_from: embedding_max_rows gives the values of vocabulary '\w+' shared rows"
    config = DCNv2Config(embedding_size=4, hidden=(8,), cross_layers=1, batch_norm=True, embedding_max_rows=5)
    leave_run(tmp_path / "plain", ranker(old.online("rank")), old)
    with pytest.raises(RunError, match=message):
        grow_from(tmp_path / "plain", DCNv2(config, new.online("rank")), new)
    leave_run(tmp_path / "compressed", DCNv2(config, old.online("rank")), old)
    with pytest.raises(RunError, match=message):
        grow_from(tmp_path / "compressed", ranker(new.online("rank")), new)

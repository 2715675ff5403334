"""Training features against the future: labels shuffled after the split, and events cut off after a moment."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from cascade_kd.data import Dataset, DatasetDefinition, load, prepare
from cascade_kd.types import PARTS, USER_ID, Part

SPLITS = ["per-user-time", "time", "leave-last-out"]
AGGREGATES: list[dict[str, Any]] = [
    {"aggregate": "count"},
    {"aggregate": "count", "value": "like"},
    {"aggregate": "sum", "value": "buy"},
    {"aggregate": "mean", "value": "like"},
    {"aggregate": "recency"},
    {"aggregate": "recency", "value": "like"},
]
KEYS = {
    "user": ["user"],
    "item": ["item"],
    "pair": ["user", "item.genres"],
    "context": ["context.device"],
}


def shop(folder: Path, *, split: str) -> DatasetDefinition:
    """Every kind of feature over the files of :func:`world`."""
    stored: list[dict[str, Any]] = [
        {"name": "genres", "kind": "tags", "side": "item", "available": "recall"},
        {"name": "v", "kind": "vector", "side": "item", "available": "recall"},
        {
            "name": "age",
            "kind": "numeric",
            "side": "user",
            "available": "recall",
            "transform": "quantile",
            "buckets": 3,
        },
        {"name": "device", "kind": "categorical", "side": "context", "available": "recall", "min_count": 2},
        {"name": "battery", "kind": "numeric", "side": "context", "available": "recall"},
        {"name": "signal", "kind": "numeric", "side": "context", "available": "recall", "transform": "quantile"},
        {"name": "row", "kind": "numeric", "side": "context", "available": "never", "transform": "none"},
        {"name": "all", "kind": "history", "side": "user", "available": "recall", "length": 4},
        {"name": "liked", "kind": "history", "side": "user", "available": "recall", "length": 4, "events": "like"},
    ]
    stored[5]["buckets"] = 3
    statistics = [
        {"name": f"{side} {place} {window}", "kind": "statistic", "side": side, "keys": keys, "available": "rank"}
        | {"window": window}
        | aggregate
        for side, keys in KEYS.items()
        for place, aggregate in enumerate(AGGREGATES)
        for window in ("all", "5s")
    ]
    for statistic in statistics:
        statistic["name"] = str(statistic["name"]).replace(" ", "-")
    head = """
name = "shop"
licence = "ours"
tables.events.file = "log.parquet"
tables.events.format = "parquet"
tables.users.file = "users.parquet"
tables.users.format = "parquet"
tables.items.file = "items.parquet"
tables.items.format = "parquet"
roles = { user = "user", item = "item", time = "time" }
labels = { like = "stars >= 4", buy = "stars = 5" }
"""
    data = tomllib.loads(head) | {"split": {"kind": split}, "feature": [*stored, *statistics]}
    if split != "leave-last-out":
        data["split"] |= {"valid": 0.2, "test": 0.2}
    return DatasetDefinition.model_validate(data)


def world(folder: Path, *, seed: int, rows: int = 240) -> pl.DataFrame:
    """Writes users, items and the log, which it returns: many events share a second."""
    rng = np.random.default_rng(seed)
    genres = [["x", "y"], ["y"], [], ["z", "x"], ["x"], ["y", "z", "x"]]
    items = pl.DataFrame({"item": range(6), "genres": genres, "v": rng.normal(size=(6, 3)).tolist()})
    items.write_parquet(folder / "items.parquet")
    pl.DataFrame({"user": range(8), "age": rng.normal(size=8)}).write_parquet(folder / "users.parquet")
    user = np.concatenate([np.arange(8).repeat(5), rng.integers(0, 8, rows - 40)])
    log = pl.DataFrame(
        {
            "user": user,
            "item": rng.integers(0, 6, rows),
            "time": rng.integers(0, 30, rows),
            "stars": rng.integers(1, 6, rows),
            "device": rng.choice(["a", "b", "c", "d"], rows),
            "battery": rng.normal(size=rows),
            "signal": rng.normal(size=rows),
            "row": np.arange(rows, dtype=np.float64),
        }
    )
    log.write_parquet(folder / "log.parquet")
    return log


def features(data: Dataset, part: Part, row_B: Tensor | None = None) -> dict[str, Tensor]:
    """Every feature of the rows of a part, by look-up and as prepared."""
    row_B = data.rows(part) if row_B is None else row_B
    requests = data.requests_of(row_B, part=part)
    place_B = torch.arange(len(row_B))
    names = [feature.name for feature in data.features]
    inputs = data.inputs(names, requests, data.events.item_N[row_B], place_B, part=part, event_R=row_B)
    prepared = {f"prepared {name}": x[row_B] for name, x in data.events.statistics.items()}
    return {**inputs.user, **inputs.item, **prepared}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Names of features with a bit that differs."""
    assert one.keys() == other.keys()
    assert len(one) > 100
    return [name for name in one if not torch.equal(one[name], other[name])]


@pytest.mark.parametrize("split", SPLITS)
def test_later_labels_change_no_training_feature(tmp_path: Path, split: str) -> None:
    """The stars of valid and test rows are shuffled: training rows keep every bit, and test rows notice."""
    log = world(tmp_path, seed=1)
    definition = shop(tmp_path, split=split)
    before = load(prepare(definition, base=tmp_path))
    later = before.events.columns["row"][before.events.part_N > 0].long().numpy()
    stars = log["stars"].to_numpy().copy()
    stars[later] = np.random.default_rng(2).permutation(stars[later])
    log.with_columns(pl.Series("stars", stars)).write_parquet(tmp_path / "log.parquet")
    after = load(prepare(definition, base=tmp_path))
    assert after.sha256 != before.sha256
    assert differing(features(before, "train"), features(after, "train")) == []
    valid = differing(features(before, "valid"), features(after, "valid"))
    test = differing(features(before, "test"), features(after, "test"))
    assert bool(valid) == (split == "time"), "only with a global time split validation rows know each other"
    assert {"pair-3-all", "prepared pair-3-all", "liked"} <= set(test), "the comparison can fail"
    assert not {"pair-0-all", "user-4-5s", "all"} & {*test, *valid}, "what reads no label stays"


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("until", [7, 15, 26])
def test_later_events_change_no_feature(tmp_path: Path, split: str, until: int) -> None:
    """Events after second ``until`` are removed from the log: rows at or before it keep every bit."""
    world(tmp_path, seed=3)
    data = load(prepare(shop(tmp_path, split=split), base=tmp_path))
    events = data.events
    early_N = events.time_N <= until
    cut = replace(
        events,
        **{name: getattr(events, name)[early_N] for name in ("user_N", "item_N", "time_N", "part_N")},
        **{
            name: {key: x[early_N] for key, x in getattr(events, name).items()}
            for name in ("labels", "columns", "statistics")
        },
    )
    without = replace(data, events=cut)
    rows_seen = 0
    for part in PARTS:
        row_B = (early_N & (events.part_N == PARTS.index(part))).nonzero()[:, 0]
        if len(row_B):
            found = features(data, part, row_B)
            assert differing(found, features(without, part)) == [], "nothing that is looked up or stored"
            rows_seen += len(found[USER_ID])
    assert rows_seen == int(early_N.sum())


@pytest.mark.parametrize("split", SPLITS)
def test_prepared_statistics_are_the_look_up(tmp_path: Path, split: str) -> None:
    world(tmp_path, seed=4)
    data = load(prepare(shop(tmp_path, split=split), base=tmp_path))
    names = [feature.name for feature in data.features if feature.kind == "statistic"]
    assert data.events.statistics.keys() == set(names)
    for part in PARTS:
        found = features(data, part)
        assert [name for name in names if not torch.equal(found[name], found[f"prepared {name}"])] == []

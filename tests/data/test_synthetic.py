"""The generated world: exact size, determinism, honest probabilities, informative signals."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from cascade_kd.data.synthetic import WorldConfig, generate

CATALOGUE = Path(__file__).parents[2] / "datasets" / "synthetic.toml"


@pytest.fixture(scope="module")
def world() -> dict[str, pl.DataFrame]:
    return generate(WorldConfig())


def partial_correlation(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> float:
    """Correlation of what the linear fit on z leaves of x and of y."""
    design = np.column_stack([z, np.ones(len(z))])
    rest = [v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in (x, y)]
    return float(np.corrcoef(*rest)[0, 1])


def earlier_click_rate(events: pl.DataFrame, keys: list[str]) -> pl.Series:
    """Smoothed click rate of the earlier requests of each group; events are in time order."""
    clicks = pl.col("click").cast(pl.Float64)
    before = clicks.cum_sum().over(keys) - clicks.cum_sum().over([*keys, "request"])
    shown = pl.int_range(1, pl.len() + 1).over(keys) - pl.int_range(1, pl.len() + 1).over([*keys, "request"])
    return events.select((before + 10 * clicks.mean()) / (shown + 10)).to_series()


def test_the_catalogue_file_holds_the_defaults():
    text = tomllib.loads(CATALOGUE.read_text(encoding="utf8"))
    assert WorldConfig(**text["generator"]) == WorldConfig()
    assert set(WorldConfig.model_fields) == set(text["generator"])
    tables = generate(WorldConfig(rows=10))
    side = {"user": "users", "item": "items", "context": "events", "pair": "events"}
    for feature in text["feature"]:
        if feature["kind"] in ("categorical", "numeric", "tags"):
            assert feature["name"] in tables[side[feature["side"]]].columns
    assert set(text["roles"].values()) <= set(tables["events"].columns)


@settings(deadline=None, max_examples=30)
@given(
    rows=st.integers(1, 300),
    users=st.integers(1, 50),
    slate=st.integers(1, 6),
    spare=st.integers(0, 10),
    more_items=st.integers(0, 20),
    exponent=st.sampled_from([0.0, 0.5, 1.0, 2.5]),
)
def test_rows_are_exact_and_slates_hold_no_item_twice(rows, users, slate, spare, more_items, exponent):
    candidates = slate + spare
    items = candidates + more_items
    config = WorldConfig(
        rows=rows, users=users, items=items, slate=slate, candidates=candidates, popularity_exponent=exponent
    )
    tables = generate(config)
    events = tables["events"]
    assert events.height == rows
    assert (tables["users"].height, tables["items"].height) == (users, items)
    assert events["user"].is_between(1, users).all()
    assert events["item"].is_between(1, items).all()
    assert not events.select("request", "item").is_duplicated().any()
    sizes = events.group_by("request").len()["len"].sort()
    assert sizes.max() <= slate
    assert (sizes == slate).sum() == rows // slate
    assert events.select("request", "user", "time", "hour", "device").unique().height == len(sizes)
    assert events["time"].is_sorted()
    assert sum(table.null_count().sum_horizontal().item() for table in tables.values()) == 0


def test_a_seed_gives_one_world():
    config = WorldConfig(rows=50_000, users=300, items=100)
    one, two = generate(config), generate(config)
    other = generate(config.model_copy(update={"seed": 1}))
    for name, table in one.items():
        assert table.equals(two[name])
        assert not table.equals(other[name])


def test_clicks_follow_the_true_probability(world):
    events = world["events"]
    p, click = events["true_probability"].to_numpy().astype(np.float64), events["click"].to_numpy()
    sampling = np.sqrt((p * (1 - p)).sum()) / len(p)
    assert abs(click.mean() - p.mean()) < 4 * sampling
    for decile in np.array_split(np.argsort(p), 10):
        sampling = np.sqrt((p[decile] * (1 - p[decile])).sum()) / len(decile)
        assert abs(click[decile].mean() - p[decile].mean()) < 4 * sampling
    assert 0.15 < click.mean() < 0.30
    assert 0.78 < roc_auc_score(click, p) < 0.85


def test_popularity_is_skewed_and_the_policy_prefers_what_is_clicked(world):
    shown = world["events"]["item"].value_counts(sort=True)["count"]
    assert shown.head(100).sum() > 0.25 * shown.sum()
    flat = generate(WorldConfig(popularity_exponent=0.0, policy_strength=0.0))["events"]
    shown = flat["item"].value_counts(sort=True)["count"]
    assert shown.head(100).sum() < 0.15 * shown.sum()
    assert flat["click"].mean() < world["events"]["click"].mean()


def test_each_kind_of_knowledge_adds(world):
    """Attributes < with the user x category rate of the past < the true probability."""
    events = world["events"].join(world["users"], on="user", maintain_order="left")
    events = events.join(world["items"], on="item", maintain_order="left")
    attributes = events.select("hour", "age", pl.col("price").log(), "segment", "category", "device").to_dummies(
        ["segment", "category", "device"]
    )
    rate = earlier_click_rate(events, ["user", "category"]).to_numpy()
    click, p = events["click"].to_numpy(), events["true_probability"].to_numpy()
    train, test = slice(0, int(0.8 * len(click))), slice(int(0.8 * len(click)), None)

    def auc(x: np.ndarray) -> float:
        x = (x - x.mean(0)) / x.std(0)
        return roc_auc_score(click[test], LogisticRegression().fit(x[train], click[train]).decision_function(x[test]))

    with_attributes = auc(attributes.to_numpy().astype(np.float64))
    with_rate = auc(np.column_stack([attributes.to_numpy().astype(np.float64), rate]))
    assert with_attributes > 0.6
    assert with_rate > with_attributes + 0.03
    assert roc_auc_score(click[test], p[test]) > with_rate + 0.03


def test_post_click_signals_tell_more_than_the_click(world):
    events = world["events"]
    p, click = events["true_probability"].to_numpy(), events["click"].to_numpy().astype(np.float64)
    truth = np.log(p / (1 - p))
    assert partial_correlation(np.log(events["dwell"].to_numpy()), truth, click) > 0.3
    clicked = click > 0
    conversion = events["conversion"].to_numpy()
    assert conversion[~clicked].sum() == 0
    assert np.corrcoef(conversion[clicked], truth[clicked])[0, 1] > 0.1
    without = generate(WorldConfig(dwell_effect=0.0))["events"]
    truth = without["true_probability"].to_numpy()
    truth = np.log(truth / (1 - truth))
    rest = partial_correlation(np.log(without["dwell"].to_numpy()), truth, without["click"].to_numpy())
    assert abs(rest) < 0.02


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"rows": 0}, "rows"),
        ({"observed_share": 1.5}, "observed_share"),
        ({"slate": 20}, "candidates must be at least slate = 20"),
        ({"items": 10}, "items must be at least candidates = 16"),
        ({"sead": 1}, "sead"),
    ],
)
def test_impossible_worlds_are_refused(change, problem):
    with pytest.raises(ValidationError, match=problem):
        WorldConfig(**change)

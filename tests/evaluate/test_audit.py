"""The audit finds what is computed from the future or tells the outcome, and lets honest features pass."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from cascade_kd.data import Dataset, DatasetDefinition, load, prepare
from cascade_kd.errors import UserError
from cascade_kd.evaluate import Audit, FeatureAudit, audit_dataset
from cascade_kd.evaluate import audit as audit_module
from cascade_kd.evaluate import leaks as leaks_module
from cascade_kd.evaluate.alone import Rows, auc_alone
from cascade_kd.types import Part

Audited = Callable[..., Audit]
Row = tuple[int, int, int, int, int]  # user, item, time, rating, part

SPLITS: dict[str, dict[str, Any]] = {
    "time": {"kind": "time", "valid": 0.2, "test": 0.2},
    "per-user-time": {"kind": "per-user-time", "valid": 0.2, "test": 0.2},
    "leave-last-out": {"kind": "leave-last-out"},
}

HONEST: list[dict[str, Any]] = [
    {"name": "age", "kind": "numeric", "side": "user", "available": "recall"},
    {"name": "genres", "kind": "tags", "side": "item", "available": "recall"},
    {"name": "shop", "kind": "categorical", "side": "item", "table": "events", "available": "recall"},
    {"name": "hour", "kind": "categorical", "side": "context", "expression": "time % 24", "available": "recall"},
    {"name": "liked", "kind": "history", "side": "user", "events": "like", "length": 3, "available": "recall"},
    {"name": "seen", "kind": "history", "side": "user", "length": 3, "available": "recall"},
    {"name": "n", "kind": "statistic", "side": "item", "keys": ["item"], "available": "prerank"},
    {
        "name": "taste", "kind": "statistic", "side": "pair", "keys": ["user", "item.genres"], "value": "like",
        "aggregate": "mean", "available": "rank",
    },
]  # fmt: skip


def of_event(name: str, expression: str, available: str = "recall", side: str = "pair") -> dict[str, Any]:
    return {"name": name, "kind": "numeric", "side": side, "table": "events", "expression": expression,
            "available": available}  # fmt: skip


LEAKY = {
    "count": of_event("leak", "COUNT(*) OVER (PARTITION BY what)"),
    "mean": of_event("leak", "AVG(rating) OVER (PARTITION BY what)"),
    "label": of_event("leak", "rating"),
}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Thirty users and twelve items; 600 events, several in one second, liked by taste."""
    rng = np.random.default_rng(3)
    user, item = rng.integers(1, 31, 600), rng.integers(1, 13, 600)
    rating = np.where((user + item) % 3 == 0, rng.integers(3, 6, 600), rng.integers(1, 5, 600))
    time = np.sort(rng.integers(0, 900, 600))
    shop = np.array(["a", "b", "c"])[item % 3]
    pl.DataFrame({"who": user, "what": item, "time": time, "rating": rating, "shop": shop}).write_csv(
        tmp_path / "events.csv"
    )
    pl.DataFrame({"who": range(1, 31), "age": rng.integers(18, 60, 30)}).write_csv(tmp_path / "users.csv")
    genres = [["x", "y", "x|z", None][i % 4] for i in range(1, 13)]
    pl.DataFrame({"what": range(1, 13), "genres": genres}).write_csv(tmp_path / "items.csv")
    return tmp_path


def definition(split: str, *features: dict[str, Any], like: str = "rating >= 4", **more: Any) -> DatasetDefinition:
    return DatasetDefinition.model_validate(
        {
            "name": "small",
            "licence": "",
            "tables": {name: {"file": f"{name}.csv"} for name in ("events", "users", "items")},
            "roles": {"user": "who", "item": "what", "time": "time"},
            "labels": {"like": like},
            "feature": features,
            "filter": {"min_user_events": 1},
            "split": SPLITS[split],
            **more,
        }
    )


def found(audit: Audit, name: str = "leak") -> FeatureAudit:
    return next(f for f in audit.features if f.feature.name == name)


@pytest.mark.parametrize("split", SPLITS)
def test_honest_features_pass(written: Path, split: str) -> None:
    audit = audit_dataset(definition(split, *HONEST), base=written)
    assert audit.refused == ()
    assert [f.feature.name for f in audit.features] == ["user_id", "item_id", *(f["name"] for f in HONEST)]
    for f in audit.features:
        assert (f.flags, f.cut, f.shuffled) == ((), None, None), f.feature.name
        assert f.auc.mean is not None
    assert found(audit, "genres").missing == pytest.approx(
        np.mean([row[1] % 4 == 3 for row in of_part(written, split)])
    )


def of_part(written: Path, split: str, part: Part = "test") -> list[tuple[int, ...]]:
    """(row, item, rating) of a part's events, in the order of the prepared log."""
    dataset = load(prepare(definition(split), base=written))
    raw = pl.read_csv(written / "events.csv").with_row_index("row").sort("who", "time", "row")
    rows = dataset.rows(part).numpy()
    return [tuple(row) for row in raw[rows].select("row", "what", "rating").iter_rows()]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("leak", LEAKY)
def test_a_feature_from_the_future_is_caught(written: Path, split: str, leak: str) -> None:
    audit = audit_dataset(definition(split, *HONEST, LEAKY[leak]), base=written)
    assert audit.refused == ("leak",)
    f = found(audit)
    assert (f.cut is not None, f.shuffled is not None) == (leak != "label", leak == "mean")
    assert len(f.flags) == (leak == "label") + (leak != "label") + (leak == "mean")
    for flag in f.flags:
        assert "'leak' (available at recall)" in flag
        assert 'available = "never"' in flag
        assert 'kind = "statistic"' in flag
    if leak == "label":
        assert f.auc.mean == 1.0


@pytest.mark.parametrize("split", SPLITS)
def test_the_rows_that_change_are_counted(written: Path, split: str) -> None:
    """By hand: how often each item occurs, with and without the later events."""
    f = found(audit_dataset(definition(split, LEAKY["count"]), base=written))
    dataset = load(prepare(definition(split), base=written))
    events = dataset.events
    rows = list(zip(events.item_N.tolist(), events.time_N.tolist(), events.part_N.tolist(), strict=True))
    if split == "time":
        cut = min(time for _, time, part in rows if part == 2)
        kept = [row for row in rows if row[1] < cut]
    else:
        kept = [row for row in rows if row[2] < 2]
    count = {item: (sum(row[0] == item for row in rows), sum(row[0] == item for row in kept)) for item in range(13)}
    changed = [count[item][0] != count[item][1] for item, _, _ in kept]
    assert f.cut is not None
    assert (f.cut.rows, f.cut.compared) == (sum(changed), len(kept))
    first = kept[changed.index(True)][0]
    assert f.cut.example.endswith(f"item {first}: {count[first][0]} becomes {count[first][1]}")
    assert f.flags[0].startswith(
        f"'leak' (available at recall) is computed from the future: {sum(changed):,} of {len(kept):,} earlier rows "
        "change when later events are cut off (user "
    )


def test_a_look_at_the_next_event_is_caught(written: Path) -> None:
    """Only the last event of each user before the cut can change."""
    ahead = of_event("leak", "LEAD(rating) OVER (PARTITION BY who ORDER BY time)")
    f = found(audit_dataset(definition("per-user-time", ahead), base=written))
    part = load(prepare(definition("per-user-time"), base=written)).events.part_N.tolist()
    last = sum(one < 2 and after == 2 for one, after in itertools.pairwise(part))  # rows are sorted by user, time
    assert f.cut is not None
    assert (f.cut.rows, f.cut.compared) == (last, sum(x < 2 for x in part))


@pytest.mark.parametrize("available", ["recall", "never"])
def test_a_feature_known_after_the_event_is_shown_and_not_flagged(written: Path, available: str) -> None:
    leaks = [{**leak, "name": name, "available": available} for name, leak in LEAKY.items()]
    audit = audit_dataset(definition("time", *leaks), base=written)
    assert audit.refused == (() if available == "never" else tuple(LEAKY))
    for name in LEAKY:
        f = found(audit, name)
        assert bool(f.flags) is (available != "never")
        assert f.auc.mean is not None
    assert found(audit, "count").cut is not None


def test_what_is_allowed_is_shown(written: Path) -> None:
    audit = audit_dataset(definition("time", *HONEST, LEAKY["label"]), base=written, allow=["leak"])
    assert audit.refused == ()
    f = found(audit)
    assert f.allowed
    assert f.flags


def test_the_limit_is_exclusive(written: Path) -> None:
    strengths = audit_dataset(definition("time", *HONEST), base=written)
    item = found(strengths, "item_id").auc.mean
    assert item is not None
    assert found(audit_dataset(definition("time", *HONEST), base=written, limit=item), "item_id").flags == ()
    below = audit_dataset(definition("time", *HONEST), base=written, limit=item - 1e-6)
    assert "alone reaches AUC" in found(below, "item_id").flags[0]
    assert "popularity tells them apart" in found(below, "item_id").flags[0]


def test_statistics_of_a_label_that_looks_ahead_are_caught(written: Path) -> None:
    like = "(MAX(rating) OVER (PARTITION BY who, what)) >= 4"  # whether the user likes it one day
    rate = HONEST[-1] | {"keys": ["item"], "side": "item"}
    for split in ("time", "per-user-time"):
        audit = audit_dataset(definition(split, rate, like=like), base=written)
        assert found(audit, "taste").cut is not None
        assert found(audit, "taste").shuffled is not None
        assert all("comes true after its own event" in flag for flag in found(audit, "taste").flags)
        assert audit_dataset(definition(split, rate), base=written).refused == ()


def test_a_history_with_look_ahead_is_caught(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own look-ups are under audit as well: here one that reads a day too far."""
    plain = leaks_module.column_of

    def looking_ahead(dataset: Dataset, name: str, row_R: torch.Tensor, *, part: Part) -> torch.Tensor:
        requests = dataset.requests_of(row_R, part=part)
        if name != "seen":
            return plain(dataset, name, row_R, part=part)
        later = type(requests)(requests.user_B, requests.time_B + 500, requests.context, None, part)
        return dataset.user_inputs([name], later, part=part)[name]

    monkeypatch.setattr(leaks_module, "column_of", looking_ahead)
    audit = audit_dataset(definition("time", *HONEST), base=written)
    assert audit.refused == ("seen",)
    f = found(audit, "seen")
    assert f.cut is not None
    assert f.cut.example.count(" becomes ") == 1


def test_unknown_names(written: Path) -> None:
    with pytest.raises(UserError, match="has no label 'lik'; it has: like; did you mean 'like'"):
        audit_dataset(definition("time", *HONEST), base=written, label="lik")
    with pytest.raises(UserError, match=r"has no feature 'ages'.*did you mean 'age'"):
        audit_dataset(definition("time", *HONEST), base=written, allow=["ages"])


def test_a_stream_is_refused_with_the_remedy(written: Path) -> None:
    events_only = {"events": {"file": "events.csv"}}
    streamed = definition("time", tables=events_only, filter={}, storage={"layout": "stream"})
    with pytest.raises(UserError, match=r"'small' is kept as a stream.*without \[storage\]"):
        audit_dataset(streamed, base=written)


def test_large_parts_are_sampled_and_it_is_said(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = audit_dataset(definition("time", *HONEST), base=written)
    monkeypatch.setattr(audit_module, "SAMPLE", 50)
    audits = [audit_dataset(definition("time", *HONEST), base=written, seed=seed) for seed in (0, 0, 1)]
    assert whole.rows["test"][0] == whole.rows["test"][1] > 50
    assert {part: rows[0] for part, rows in audits[0].rows.items()} == {"train": 50, "test": 50}
    assert audits[0].rows["test"][1] == whole.rows["test"][1]
    assert audits[0] == audits[1] != audits[2]


# -- the strength of one feature, by hand


def pairs_auc(score: list[float], label: list[int]) -> float:
    pairs = [(a, b) for (a, x), (b, y) in itertools.product(zip(score, label, strict=True), repeat=2) if x > y]
    return float(np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs]))


def rows_of(dataset: Dataset, part: Part) -> Rows:
    return Rows(part, dataset.rows(part), dataset.events.labels["like"][dataset.rows(part)])


@pytest.mark.parametrize("name", ["item_id", "user_id", "genres", "age", "seen"])
def test_the_auc_of_one_feature(written: Path, name: str) -> None:
    dataset = load(prepare(definition("per-user-time", *HONEST), base=written))
    train, test = rows_of(dataset, "train"), rows_of(dataset, "test")
    column = {
        "item_id": dataset.events.item_N[:, None],
        "user_id": dataset.events.user_N[:, None],
        "genres": dataset.items["genres"][dataset.events.item_N],
        "age": dataset.users["age"][dataset.events.user_N][:, None],
        "seen": seen_by_hand(dataset),
    }[name].tolist()
    label = [int(x) for x in dataset.events.labels["like"]]
    learned, asked = train.row_R.tolist(), test.row_R.tolist()
    if name == "age":
        sign = 1 if pairs_auc([column[n][0] for n in learned], [label[n] for n in learned]) >= 0.5 else -1
        score = [sign * column[n][0] for n in asked]
    else:
        prior = float(np.mean([label[n] for n in learned]))
        votes: dict[int, list[int]] = defaultdict(list)
        for n in learned:
            for code in [code for code in column[n] if code] or [0]:
                votes[code].append(label[n])
        rate = defaultdict(lambda: prior, {code: (sum(y) + 10 * prior) / (len(y) + 10) for code, y in votes.items()})
        score = [float(np.mean([rate[code] for code in column[n] if code] or [rate[0]])) for n in asked]
    metric = auc_alone(dataset, dataset.feature(name), train, test)
    assert metric.n == len(asked)
    assert metric.mean == pytest.approx(pairs_auc([round(s, 12) for s in score], [label[n] for n in asked]), abs=2e-4)


def seen_by_hand(dataset: Dataset) -> torch.Tensor:
    """The last three items of each event's user, of train (of test: of train and validation), before its second."""
    e = dataset.events
    rows = list(zip(e.user_N.tolist(), e.item_N.tolist(), e.time_N.tolist(), e.part_N.tolist(), strict=True))
    histories = []
    for user, _, time, part in rows:
        log = [i for u, i, t, p in rows if u == user and t < time and p <= (part == 2)]
        histories.append([*reversed(log), 0, 0, 0][:3])
    return torch.tensor(histories)


def test_a_number_counts_in_the_direction_that_training_shows(written: Path) -> None:
    up, down = of_event("up", "rating", "never"), of_event("down", "0 - rating", "never")
    audit = audit_dataset(definition("time", up, down), base=written)
    assert found(audit, "up").auc.mean == found(audit, "down").auc.mean == 1.0


def test_one_class_has_no_auc(written: Path) -> None:
    like = "rating >= 4 AND time < 500"
    audit = audit_dataset(definition("time", *HONEST, like=like), base=written)
    assert {f.auc.mean for f in audit.features} == {None}
    assert "have label 0" in audit.features[0].auc.why
    assert audit.refused == ()

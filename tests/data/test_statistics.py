"""The sorted pass against a double loop over all events, and against the look-up, whole and in buckets."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_kd.data.lookup import Events, Lookup
from cascade_kd.data.statistic import statistics_of
from cascade_kd.data.statistics import StatisticPass, statistic_pass
from cascade_kd.errors import DataError
from cascade_kd.types import PARTS

OFFSET = 1_000
SIZES = {"user": 4, "item": 5, "user.segment": 3, "user.hobbies": 4, "item.category": 3, "item.tags": 5}
SIZES |= {"context.device": 3}
KEYS = [
    ("user",),
    ("item",),
    ("item", "user"),
    ("user", "item.tags"),
    ("user.segment", "item.category"),
    ("context.device", "item.tags"),
    ("user.hobbies", "item.tags"),
]
AGGREGATES = [
    ("count", None),
    ("count", "like"),
    ("sum", "like"),
    ("mean", "buy"),
    ("recency", None),
    ("recency", "like"),
]


def meta_of(split: str, *, scale: int = 1) -> dict[str, Any]:
    statistics = [
        {
            "name": f"{'+'.join(keys)}:{aggregate}:{value}:{window}",
            "keys": keys,
            "aggregate": aggregate,
            "value": value,
            "smoothing": 3.0,
            "prior": 0.3,
            "window": window,
            "span": 50,
        }
        for keys in KEYS
        for aggregate, value in AGGREGATES
        for window in (None, 1, 5)
    ]
    features = [
        {"side": key.split(".")[0], "name": key.split(".")[1], "size": size * scale}
        for key, size in SIZES.items()
        if "." in key
    ]
    counts = {"num_users": SIZES["user"] * scale - 1, "num_items": SIZES["item"] * scale - 1}
    return {"statistics": statistics, "features": features, "split": split, "time_offset": OFFSET, **counts}


def tags(rng: np.random.Generator, rows: int, size: int, width: int) -> pl.Series:
    table = np.zeros((rows, width), np.int64)
    for row in range(1, rows):
        drawn = rng.permutation(np.arange(1, size))[: rng.integers(0, width + 1)]
        table[row, : len(drawn)] = drawn
    return pl.Series(table, dtype=pl.Array(pl.Int64, width))


def world(seed: int, rows: int, seconds: int) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Events in time order with ties, and users and items with unknown attributes (code 0) and tags."""
    rng = np.random.default_rng(seed)
    users = pl.DataFrame(
        {"segment": rng.integers(0, 3, SIZES["user"]), "hobbies": tags(rng, SIZES["user"], 4, 2)},
        schema_overrides={"segment": pl.Int64},
    )
    items = pl.DataFrame({"category": rng.integers(0, 3, SIZES["item"]), "tags": tags(rng, SIZES["item"], 5, 3)})
    events = pl.DataFrame(
        {
            "user": rng.integers(1, SIZES["user"], rows),
            "item": rng.integers(1, SIZES["item"], rows),
            "time": np.sort(rng.integers(OFFSET, OFFSET + seconds, rows)),
            "part": rng.integers(0, 3, rows).astype(np.uint8),
            "label:like": rng.integers(0, 2, rows).astype(np.float32),
            "label:buy": rng.integers(0, 2, rows).astype(np.float32),
            "feature:device": rng.integers(0, 3, rows),
        }
    )
    return events, users, items


def codes_of(key: str, event: dict[str, Any], users: pl.DataFrame, items: pl.DataFrame) -> list[int]:
    side, _, name = key.partition(".")
    if side == "context":
        found = event[f"feature:{name}"]
    elif name:
        found = (users if side == "user" else items)[name][event[side]]
    else:
        found = event[side]
    return [code for code in (found.to_list() if isinstance(found, pl.Series) else [found]) if code > 0]


def by_hand(
    s: dict[str, Any], split: str, events: list[dict[str, Any]], users: pl.DataFrame, items: pl.DataFrame
) -> list[float]:
    """The definition, as a double loop."""

    def groups(event: dict[str, Any]) -> set[tuple[int, ...]]:
        combined: set[tuple[int, ...]] = {()}
        for key in s["keys"]:
            combined = {(*group, code) for group in combined for code in codes_of(key, event, users, items)}
        return combined

    own = [groups(event) for event in events]
    out: list[float] = []
    for row, group in zip(events, own, strict=True):
        readable = {0, 1, 2} if split == "time" else ({0, 1} if row["part"] == 2 else {0})
        count = total = 0.0
        age = math.inf
        for event, other in zip(events, own, strict=True):
            back = row["time"] - event["time"]
            if event["part"] not in readable or back <= 0 or (s["window"] is not None and back > s["window"]):
                continue
            shared = len(group & other)
            label = event[f"label:{s['value']}"] if s["value"] else 1.0
            count, total = count + shared, total + shared * label
            if shared and label:
                age = min(age, back)
        if s["aggregate"] == "recency":
            out.append(math.log1p(s["span"] if age == math.inf else age))
        elif s["aggregate"] == "mean":
            out.append((total + s["smoothing"] * s["prior"]) / (count + s["smoothing"]))
        else:
            out.append(math.log1p(total))
    return out


def in_buckets(whole: StatisticPass, events: pl.DataFrame, cuts: list[int]) -> pl.DataFrame:
    """The columns by buckets that begin at the seconds ``cuts``; within a bucket rows come in another order."""
    frames: list[pl.DataFrame] = []
    edges = [OFFSET, *sorted({OFFSET + cut for cut in cuts}), OFFSET + 10_000_000]
    numbered = events.with_row_index("row")
    for begin, end in itertools.pairwise(edges):
        bucket = numbered.filter(pl.col("time").is_between(begin, end, closed="left")).sort("item", "row")
        frames.append(bucket.select("row").with_columns(whole.columns(bucket)))
    return pl.concat(frames).sort("row").drop("row")


@pytest.mark.parametrize("split", ["time", "per-user-time"])
@settings(deadline=None, max_examples=6)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 28),
    seconds=st.integers(1, 14),
    cuts=st.lists(st.integers(1, 14), max_size=4),
    scale=st.sampled_from([1, 1 << 20]),
)
def test_the_pass_is_the_definition(
    split: str, seed: int, rows: int, seconds: int, cuts: list[int], scale: int
) -> None:
    events, users, items = world(seed, rows, seconds)
    meta = meta_of(split, scale=scale)
    whole = pl.DataFrame(statistic_pass(meta, users, items).columns(events))
    for s in meta["statistics"]:
        expected = by_hand(s, split, events.rows(named=True), users, items)
        assert whole[f"statistic:{s['name']}"].to_list() == pytest.approx(expected, rel=1e-6), s["name"]
    assert in_buckets(statistic_pass(meta, users, items), events, cuts).equals(whole)  # bit for bit


@pytest.mark.parametrize("split", ["time", "leave-last-out"])
@pytest.mark.parametrize("scale", [1, 1 << 20])
def test_the_pass_is_the_look_up_bit_for_bit(split: str, scale: int) -> None:
    events, users, items = world(3, 4_000, 700)
    events = events.sort("user", "time", maintain_order=True)
    meta = meta_of(split, scale=scale)
    sizes = {key: size * scale for key, size in SIZES.items()}
    column = {name: torch.tensor(events[name].to_numpy()) for name in events.columns}
    log = Events(
        user_N=column["user"],
        item_N=column["item"],
        time_N=column["time"],
        part_N=column["part"],
        labels={name: column[f"label:{name}"] for name in ("like", "buy")},
        columns={"device": column["feature:device"]},
    )
    tables = [{x.name: torch.tensor(x.to_numpy()) for x in table} for table in (users, items)]
    lookup = Lookup(log, tables[0], tables[1], sizes, split, OFFSET)
    prepared = {x.name: torch.tensor(x.to_numpy()) for x in statistic_pass(meta, users, items).columns(events)}
    for code, part in enumerate(PARTS):
        rows = (log.part_N == code).nonzero()[:, 0]
        answers = lookup.statistics(
            list(statistics_of(meta).values()),
            user_R=log.user_N[rows],
            item_R=log.item_N[rows],
            time_R=log.time_N[rows],
            context={"device": log.columns["device"][rows]},
            part=part,
        )
        for name, answer in answers.items():
            assert torch.equal(answer, prepared[f"statistic:{name}"][rows]), (part, name)


def test_a_bucket_without_rows_forgets_nothing() -> None:
    events, users, items = world(5, 60, 30)
    meta = meta_of("per-user-time")
    events = events.with_columns(pl.when(pl.col("time") < OFFSET + 15).then("time").otherwise(pl.col("time") + 100))
    whole = pl.DataFrame(statistic_pass(meta, users, items).columns(events))
    assert in_buckets(statistic_pass(meta, users, items), events, [15, 40, 90]).equals(whole)


def test_too_many_combinations_are_refused() -> None:
    events, users, items = world(0, 3, 2)
    with pytest.raises(DataError, match="use fewer keys"):
        statistic_pass(meta_of("time", scale=1 << 36), users, items).columns(events)

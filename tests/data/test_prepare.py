"""From files to a prepared directory: codes decode to what was written, and bad data leaves nothing behind."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cascade_kd.data import DatasetDefinition, cache_root, load, prepare
from cascade_kd.data.cache import STALE_SECONDS, file_digest, staging
from cascade_kd.errors import DataError

# Users 10 and 9 (numeric order: 9 first), items by text; 9 has 10 events, 10 has 8. Row order is not time order.
EVENTS = """who,what,stars,at,device,seconds
10,pear,5,100,phone,3
10,fig,1,90,phone,7
9,fig,4,10,web,1
9,pear,2,11,web,
9,kiwi,5,12,tv,2
9,fig,5,13,web,4
9,fig,1,14,phone,5
9,kiwi,4,15,web,6
9,pear,3,16,web,7
9,fig,5,17,web,8
9,kiwi,1,18,radio,9
9,pear,5,19,radio,10
10,kiwi,4,101,phone,1
10,fig,2,102,web,1
10,pear,5,103,web,1
10,fig,5,104,web,1
10,kiwi,1,105,web,1
10,pear,4,106,web,1
"""
USERS = "who,town,age\n9,York,20\n10,Bath,40\n"
ITEMS = "what,kinds,price\npear,fruit|green,1\nfig,fruit| |fruit,\nplum,,3\n"  # kiwi is only in the events
DEFINITION: dict[str, Any] = {
    "name": "shop",
    "licence": "ours",
    "tables": {"events": {"file": "log.csv"}, "users": {"file": "users.csv"}, "items": {"file": "items.csv"}},
    "roles": {"user": "who", "item": "what", "time": "at"},
    "labels": {"like": "stars >= 4", "love": "stars = 5"},
    "feature": [
        {"name": "town", "kind": "categorical", "side": "user", "available": "recall"},
        {"name": "decade", "kind": "categorical", "side": "user", "available": "recall", "expression": "age / 10"},
        {"name": "age", "kind": "numeric", "side": "user", "available": "recall"},
        {"name": "kinds", "kind": "tags", "side": "item", "available": "recall"},
        {"name": "cost", "kind": "numeric", "side": "item", "available": "rank", "column": "price", "fill": 2},
        {"name": "device", "kind": "categorical", "side": "context", "available": "recall"},
        {"name": "dwell", "kind": "numeric", "side": "pair", "available": "never", "column": "seconds"},
        {"name": "last", "kind": "history", "side": "user", "available": "recall", "events": "like", "length": 3},
        {"name": "rate", "kind": "statistic", "side": "pair", "available": "rank", "keys": ["user", "item.kinds"],
         "value": "like", "aggregate": "mean"},
        {"name": "count", "kind": "statistic", "side": "item", "available": "rank", "keys": ["item"]},
    ],
}  # fmt: skip


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the three files, and a cache of its own."""
    monkeypatch.setenv("CASCADE_KD_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "shop"
    folder.mkdir()
    for name, content in {"log.csv": EVENTS, "users.csv": USERS, "items.csv": ITEMS}.items():
        (folder / name).write_text(content)
    return folder


def define(**changes: Any) -> DatasetDefinition:
    return DatasetDefinition.model_validate(DEFINITION | changes)


def plain(**changes: Any) -> DatasetDefinition:
    """Events only, no features."""
    return define(**({"tables": {"events": {"file": "log.csv"}}, "feature": []} | changes))


def tables_of(prepared: Path) -> tuple[dict[str, Any], dict[str, pl.DataFrame]]:
    names = ("users", "items", "events", "vocabulary")
    return json.loads((prepared / "meta.json").read_text()), {
        name: pl.read_parquet(prepared / f"{name}.parquet") for name in names
    }


def decoder(tables: dict[str, pl.DataFrame]) -> Callable[[str, int], str | None]:
    rows = {(name, code): value for name, code, value in tables["vocabulary"].rows()}
    return lambda name, code: rows[name, code] if code else None


def test_codes_decode_to_what_was_written(shop: Path) -> None:
    meta, tables = tables_of(prepare(define(), base=shop))
    value = decoder(tables)
    raw = {(int(row["who"]), int(row["at"])): row for row in pl.read_csv(EVENTS.encode()).to_dicts()}
    events = tables["events"].to_dicts()
    assert [(int(value("user_id", e["user"]) or 0), e["time"]) for e in events] == sorted(raw)  # by user, then time
    for event, key in zip(events, sorted(raw), strict=True):
        row = raw[key]
        assert value("item_id", event["item"]) == row["what"]
        assert event["label:like"] == (row["stars"] >= 4)
        assert event["label:love"] == (row["stars"] == 5)
        train = event["part"] == 0
        known = value("device", event["feature:device"])
        assert known == row["device"] if train else known in (row["device"], None)
    radio = [e["feature:device"] for e, key in zip(events, sorted(raw), strict=True) if raw[key]["device"] == "radio"]
    assert radio == [0, 0]  # no training row has it
    assert [e["part"] for e in events] == [0] * 8 + [1, 2] + [0] * 6 + [1, 2]

    towns = [value("town", code) for code in tables["users"]["town"]]
    assert towns == [None, "York", "Bath"]
    assert [value("decade", code) for code in tables["users"]["decade"]] == [None, "2.0", "4.0"]
    assert tables["users"]["age"].to_list() == [0, -1, 1]  # mean 30, standard deviation 10
    items = [value("item_id", code) for code in range(1, 5)]
    assert items == ["fig", "kiwi", "pear", "plum"]
    kinds = [[value("kinds", code) for code in row] for row in tables["items"]["kinds"].to_list()]
    assert kinds == [[None, None], ["fruit", None], [None, None], ["fruit", "green"], [None, None]]
    # fig has no price: filled with 2; kiwi has no row: likewise; learned from fig 2, pear 1, plum 3
    spread = (2 / 3) ** 0.5
    assert tables["items"]["cost"].to_list() == pytest.approx([0, 0, 0, -1 / spread, 1 / spread])
    assert meta["numeric"]["cost"] == {"mean": 2.0, "std": pytest.approx(spread), "transform": "standardise", "fill": 2}


def test_event_columns_learn_from_train_rows_only(shop: Path) -> None:
    meta, tables = tables_of(prepare(define(), base=shop))
    seconds = [1, None, 2, 4, 5, 6, 7, 8, 9, 10, 7, 3, 1, 1, 1, 1, 1, 1]  # in the order of user, time
    train = [x for x, part in zip(seconds, tables["events"]["part"], strict=True) if part == 0 and x is not None]
    mean = sum(train) / len(train)
    std = (sum((x - mean) ** 2 for x in train) / len(train)) ** 0.5
    assert meta["numeric"]["dwell"]["mean"] == pytest.approx(mean)
    want = [0 if x is None else (x - mean) / std for x in seconds]
    assert tables["events"]["feature:dwell"].to_list() == pytest.approx(want)
    assert meta["counts"]["missing"]["dwell"] == 1


def test_meta(shop: Path) -> None:
    meta, tables = tables_of(prepare(define(), base=shop))
    features = {feature["name"]: feature for feature in meta["features"]}
    assert list(features) == ["user_id", "item_id"] + [feature["name"] for feature in DEFINITION["feature"]]
    assert features["item_id"] == {
        "name": "item_id", "kind": "categorical", "side": "item", "available": "recall", "size": 5, "length": 1,
        "vocabulary": "item_id",
    }  # fmt: skip
    assert (features["kinds"]["size"], features["kinds"]["length"], features["kinds"]["vocabulary"]) == (3, 2, "kinds")
    assert (features["last"]["size"], features["last"]["length"], features["last"]["vocabulary"]) == (5, 3, "item_id")
    assert (features["age"]["size"], features["rate"]["size"], features["rate"]["side"]) == (0, 0, "pair")
    assert (meta["num_users"], meta["num_items"], meta["time_offset"]) == (2, 4, 10)
    assert (meta["has_time"], meta["has_requests"], meta["split"]) == (True, False, "per-user-time")
    train = tables["events"].filter(pl.col("part") == 0)
    rate, count = meta["statistics"]
    assert rate["prior"] == pytest.approx(train["label:like"].mean())
    assert (rate["smoothing"], rate["keys"], count["prior"]) == (10, ["user", "item.kinds"], 0)
    assert meta["histories"] == [{"name": "last", "length": 3, "events": "like"}]
    assert meta["counts"]["rows"] == {"train": 14, "valid": 2, "test": 2}
    assert meta["counts"]["not_described"] == {"users": 0, "items": 1}


def test_dataset_reads_it(shop: Path) -> None:
    data = load(prepare(define(), base=shop))
    assert data.code_of("user_id", 10) == 2
    assert data.items["kinds"].shape == (5, 2)
    assert data.rows("test").tolist() == [9, 17]


def test_same_codes_whatever_the_row_order(shop: Path) -> None:
    _, tables = tables_of(prepare(define(), base=shop))
    first, *rows = EVENTS.strip().split("\n")
    (shop / "log.csv").write_text("\n".join([first, *reversed(rows)]) + "\n")
    _, again = tables_of(prepare(define(), base=shop))
    for name in ("users", "items", "vocabulary", "events"):
        assert again[name].equals(tables[name])


def test_without_time_rows_are_in_order(shop: Path) -> None:
    meta, tables = tables_of(prepare(plain(roles={"user": "who", "item": "what"}), base=shop))
    events = tables["events"]
    assert (meta["has_time"], meta["time_offset"]) == (False, 0)
    assert events.filter(pl.col("user") == 2)["time"].to_list() == [0, 1, *range(12, 18)]
    assert tables["users"].width == 0


def test_requests_are_dense_and_each_users_own(shop: Path) -> None:
    roles = DEFINITION["roles"] | {"request": "device"}
    meta, tables = tables_of(prepare(plain(roles=roles, split={"kind": "leave-last-out"}), base=shop))
    events = tables["events"]
    assert sorted(events["request"].unique()) == list(range(6))  # 9: phone radio tv web; 10: phone web
    assert meta["counts"]["requests"] == 6
    assert events.group_by("request").agg(pl.col("user").n_unique())["user"].to_list() == [1] * 6
    assert events.group_by("request").agg(pl.col("part").n_unique())["part"].to_list() == [1] * 6


def test_attributes_may_stand_in_the_log(shop: Path) -> None:
    """A single file: an item's attribute is that of its earliest event."""
    feature = {"name": "device", "kind": "categorical", "side": "item", "table": "events", "available": "recall"}
    _, tables = tables_of(prepare(plain(feature=[feature]), base=shop))
    value = decoder(tables)
    assert [value("device", code) for code in tables["items"]["device"]] == [None, "web", "tv", "web"]


def test_rare_values_are_unknown(shop: Path) -> None:
    feature = {"name": "device", "kind": "categorical", "side": "context", "available": "recall", "min_count": 2}
    _, tables = tables_of(prepare(plain(feature=[feature]), base=shop))
    value = decoder(tables)
    seen = {value("device", code) for code in tables["events"]["feature:device"]}
    assert seen == {"phone", "web", None}  # tv occurs once in train


def test_position_and_oracle(shop: Path) -> None:
    roles = DEFINITION["roles"] | {"position": "seconds", "oracle": "chance"}
    rows = EVENTS.replace("9,pear,2,11,web,\n", "9,pear,2,11,web,2\n").strip().split("\n")
    lines = [f"{row},{'chance' if number == 0 else number / 100}" for number, row in enumerate(rows)]
    (shop / "log.csv").write_text("\n".join(lines) + "\n")
    _, tables = tables_of(prepare(plain(roles=roles), base=shop))
    assert tables["events"]["oracle"][0] == pytest.approx(0.03)
    assert tables["events"]["position"].dtype == pl.Int64
    (shop / "log.csv").write_text("\n".join(lines).replace("0.18", "1.8") + "\n")
    with pytest.raises(DataError, match=r"column 'chance', row 18: a probability is outside"):
        prepare(plain(roles=roles), base=shop)


@pytest.mark.parametrize(
    ("unit", "factor"), [("s", 1), ("ms", 1000), ("us", 1_000_000)], ids=["seconds", "milliseconds", "microseconds"]
)
def test_units_of_time(shop: Path, unit: str, factor: int) -> None:
    first = pl.read_csv(EVENTS.encode()).with_columns((pl.col("at") + 1_700_000_000) * factor)
    first.write_csv(shop / "log.csv")
    _, tables = tables_of(prepare(plain(roles=DEFINITION["roles"] | {"time_unit": unit}), base=shop))
    assert tables["events"]["time"][0] == 1_700_000_010


@pytest.mark.parametrize("form", ["%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%SZ"])
def test_dates(shop: Path, form: str) -> None:
    log = pl.read_csv(EVENTS.encode())
    log.with_columns(pl.from_epoch(pl.col("at") + 1_700_000_000).dt.strftime(form)).write_csv(shop / "log.csv")
    _, tables = tables_of(prepare(plain(), base=shop))
    assert tables["events"]["time"][0] == 1_700_000_010


def test_parquet_dates_and_large_ids(shop: Path) -> None:
    log = pl.read_csv(EVENTS.encode()).with_columns(
        pl.from_epoch(pl.col("at")).alias("at"), pl.col("who").cast(pl.UInt64) + (2**64 - 100)
    )
    log.write_parquet(shop / "log.parquet")
    tables = {"events": {"file": "log.parquet", "format": "parquet"}}
    _, prepared = tables_of(prepare(plain(tables=tables), base=shop))
    users = prepared["vocabulary"].filter(pl.col("vocabulary") == "user_id")["value"].to_list()
    assert users == [str(2**64 - 91), str(2**64 - 90)]


def test_filter_is_a_core(shop: Path) -> None:
    """Dropping item plum's one event takes user 11 below three events, which takes item sloe below two."""
    (shop / "log.csv").write_text(EVENTS + "11,fig,5,1,web,1\n11,sloe,5,2,web,1\n11,plum,5,3,web,1\n9,sloe,1,9,web,1\n")
    definition = define(filter={"min_user_events": 3, "min_item_events": 2})
    meta, tables = tables_of(prepare(definition, base=shop))
    assert meta["counts"]["dropped"] == {"events": 4, "users": 1, "items": 2}
    names = tables["vocabulary"].filter(pl.col("vocabulary") == "item_id")["value"].to_list()
    assert names == ["fig", "kiwi", "pear"]


def test_idle_users_are_left_out_on_demand(shop: Path) -> None:
    (shop / "users.csv").write_text(USERS + "77,Hull,50\n")
    with pytest.raises(DataError, match=r"table 'users', column 'who', row 3: user 77 has no events") as caught:
        prepare(define(), base=shop)
    assert "[filter] min_user_events = 1" in str(caught.value)
    meta, _ = tables_of(prepare(define(filter={"min_user_events": 1}), base=shop))
    assert meta["num_users"] == 2
    assert meta["counts"]["dropped"] == {"events": 0, "users": 1, "items": 0}


def test_split_by_files(shop: Path) -> None:
    first, *rows = EVENTS.strip().split("\n")
    for name, part in {"a": rows[:10], "b": rows[10:14], "c": rows[14:]}.items():
        (shop / name).write_text("\n".join([first, *part]) + "\n")
    tables = {"events": {"files": {"train": "a", "valid": "b", "test": "c"}}}
    meta, _ = tables_of(prepare(plain(tables=tables, split={"kind": "files"}), base=shop))
    assert meta["counts"]["rows"] == {"train": 10, "valid": 4, "test": 4}
    (shop / "b").write_text("\n".join([first, rows[10], rows[11].replace("9,", "-9,", 1)]) + "\n")
    with pytest.raises(DataError, match=r"table 'events\.valid', column 'who', row 2: an id is negative"):
        prepare(plain(tables=tables, split={"kind": "files"}), base=shop)


def test_split_by_a_column(shop: Path) -> None:
    part = "CASE WHEN at > 16 AND who = '9' THEN 'test' WHEN at > 105 THEN 'test' ELSE 'train' END"
    tables = {"events": {"sql": f"SELECT *, {part} AS part FROM log"}}
    split = {"kind": "files", "valid": 0.3}
    roles = DEFINITION["roles"] | {"part": "part"}
    keys = {"tables": tables, "sources": {"log": {"file": "log.csv"}}, "split": split, "roles": roles}
    (shop / "log.csv").write_text(EVENTS.replace("10,pear,5,100", "x10,pear,5,100"))  # ids as text
    meta, made = tables_of(prepare(plain(**keys), base=shop))
    by_user = made["events"].group_by("user", maintain_order=True).agg("part", "time")
    assert by_user["part"].to_list() == [[0] * 4 + [1] * 2 + [2], [0] * 5 + [1] * 2 + [2] * 3, [0]]
    assert meta["split"] == "files"
    at_random = plain(**keys | {"split": split | {"hold_out": "random"}})
    _, drawn = tables_of(prepare(at_random, base=shop))
    held = drawn["events"].filter(pl.col("part") == 1).select("user", "time").rows()
    assert [user for user, _ in held] == [1, 1, 2, 2]
    tables["events"]["sql"] = tables["events"]["sql"].replace("'test' ELSE", "'dev' ELSE")
    with pytest.raises(DataError, match=r"column 'part', row \d+: a part is train, valid or test, got 'dev' \(1 rows"):
        prepare(plain(**keys), base=shop)


def test_random_validation_follows_from_the_pairs(shop: Path) -> None:
    """Other users and the order of the rows change nothing: what is held out of a user stays."""
    first, *rows = EVENTS.strip().split("\n")
    rows = [f"{row},{'test' if row.split(',')[3] in ('19', '106') else 'train'}" for row in rows]
    roles = {"user": "who", "item": "what", "part": "part"}
    definition = plain(roles=roles, split={"kind": "files", "valid": 0.3}, labels={"any": "TRUE"})

    def held(lines: list[str]) -> set[tuple[str | None, str | None]]:
        (shop / "log.csv").write_text("\n".join([f"{first},part", *lines]) + "\n")
        _, made = tables_of(prepare(definition, base=shop))
        value = decoder(made)
        valid = made["events"].filter(pl.col("part") == 1)
        return {(value("user_id", row["user"]), value("item_id", row["item"])) for row in valid.to_dicts()}

    assert held(rows) == held(rows[::-1])
    assert held(rows) <= held([*rows, *(f"{user},apple,1,1,web,1,train" for user in (1, 2, 2, 2, 11))])


def test_a_label_that_is_always_true_is_implicit_feedback(shop: Path) -> None:
    meta, _ = tables_of(prepare(plain(labels={"seen": "TRUE"}), base=shop))
    assert meta["counts"]["label_rate"]["seen"] == {"train": 1.0, "valid": 1.0, "test": 1.0}


def test_expectations(shop: Path) -> None:
    """11 of the 18 events are liked: 0.6111; every difference is named, and nothing is left."""
    good = {"events": 18, "users": 2, "items": 3, "label_rate": {"like": 0.5}}
    for rate in (0.6, 0.61, 0.611, 0.6111):
        prepare(plain(expect=good | {"label_rate": {"like": rate}}), base=shop)
    bad = {"events": 19, "users": 2, "items": 4, "label_rate": {"like": 0.612}}
    made = sorted((cache_root() / "datasets").iterdir())
    with pytest.raises(DataError) as caught:
        prepare(plain(expect=bad), base=shop)
    message = str(caught.value)
    assert "events: got 18, expected 19; items: got 3, expected 4" in message
    assert "label rate of like: got 0.61111, expected 0.612" in message
    assert "users" not in message
    assert sorted((cache_root() / "datasets").iterdir()) == made
    with pytest.raises(DataError, match=r"got 0\.611, expected 0\.5;"):
        prepare(plain(expect=good), base=shop)


def labelled(expression: str) -> dict[str, Any]:
    """One label ``a``, no features."""
    return {"labels": {"a": expression}, "feature": []}


BAD: dict[str, tuple[dict[str, tuple[str, str]], dict[str, Any], list[str]]] = {
    # file -> (text, instead), definition changes, words of the message
    "wrong column": ({"log.csv": ("who,what", "who,thing")}, {}, ["'events', column 'what'", "there are: who, thing"]),
    "wrong label column": ({}, labelled("star > 1"), ["column 'star'", "label a", "did you mean 'stars'"]),
    "wrong label type": ({}, labelled("stars"), ["'events', column 'a', row 1", "neither 0 nor 1"]),
    "text label": ({}, labelled("device"), ["label a = 'device' gives text"]),
    "label compares text": ({}, labelled("device > 1"), ["label a = 'device > 1'", "device (text)"]),
    "no positive": ({}, labelled("stars > 5"), ["label 'a' is false in all 14 training rows", "[labels]"]),
    "no stars": ({"log.csv": ("pear,5,100", "pear,,100")}, {}, ["column 'like', row 1", "no value"]),
    "NaN stars": ({"log.csv": ("pear,5,100", "pear,NaN,100")}, {}, ["'events', column 'stars', row 1", "NaN"]),
    "NaN time": ({"log.csv": ("fig,1,90", "fig,1,NaN")}, {}, ["column 'at', row 2", "NaN"]),
    "no time": ({"log.csv": ("fig,1,90", "fig,1,")}, {}, ["column 'at', row 2", "missing"]),
    "text time": ({"log.csv": ("fig,1,90", "fig,1,noon")}, {}, ["column 'at', row 1", "no date"]),
    "milliseconds": ({"log.csv": (",100,", ",99999999999,")}, {}, ["column 'at'", 'time_unit = "ms"']),
    "NaN price": ({"items.csv": ("green,1", "green,nan")}, {}, ["'items', column 'price', row 1", "NaN"]),
    "infinite price": ({"items.csv": ("green,1", "green,inf")}, {}, ["'items', column 'price', row 1", "infinite"]),
    "text price": ({"items.csv": ("green,1", "green,dear")}, {}, ["column 'price', row 1", "'dear' is not a number"]),
    "no user": ({"log.csv": ("9,fig,4,10", ",fig,4,10")}, {}, ["'events', column 'who', row 3", "missing"]),
    "no item": ({"log.csv": ("9,fig,4,10", "9,,4,10")}, {}, ["'events', column 'what', row 3", "missing"]),
    "negative user": ({"log.csv": ("9,fig,4,10", "-9,fig,4,10")}, {}, ["'events', column 'who', row 3", "negative"]),
    "half a user": ({"log.csv": ("9,fig,4,10", "9.5,fig,4,10")}, {}, ["column 'who', row 3", "whole number"]),
    "user twice": ({"users.csv": ("9,York,20", "10,York,20")}, {}, ["'users', column 'who', row 2", "'10'"]),
    "item twice": ({"items.csv": ("plum", "fig")}, {}, ["'items', column 'what', row 3", "'fig' is there twice"]),
    "other ids": ({"items.csv": (ITEMS, "what,kinds,price\na,x,1\n")}, {}, ["'items'", "no item of the", "'a' here"]),
    "filter takes all": ({}, {"filter": {"min_item_events": 50}}, ["leave no event", "[filter]"]),
    "empty part": ({}, {"split": {"valid": 0.01, "test": 0.1}}, ["leaves the valid part empty", "[split]"]),
    "empty events": ({"log.csv": (EVENTS, "who,what,stars,at,device,seconds\n")}, {}, ["'events'", "empty"]),
    "empty users": ({"users.csv": (USERS, "who,town,age\n")}, {}, ["'users'", "empty"]),
    "wrong separator": (
        {}, {"tables": {"events": {"file": "log.csv", "separator": ";"}}, "feature": []}, ['try separator = ","']
    ),
    "missing file": ({}, {"tables": {"events": {"file": "lag.csv"}}, "feature": []}, ["did you mean 'log.csv'?"]),
    "feature expression": (
        {},
        {"feature": [DEFINITION["feature"][0] | {"expression": "town + 1"}]},
        ["table 'users'", "feature town = 'town + 1'"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_one_clear_message_and_no_cache(shop: Path, case: str) -> None:
    files, changes, words = BAD[case]
    for name, (text, instead) in files.items():
        content = (shop / name).read_text()
        assert text in content
        (shop / name).write_text(content.replace(text, instead, 1))
    with pytest.raises(DataError) as caught:
        prepare(define(**changes), base=shop)
    message = str(caught.value)
    for word in words:
        assert word in message
    assert caught.value.exit_code == 2
    assert "\n" not in message
    assert not (cache_root() / "datasets").exists()


def test_prepared_once(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(define(), base=shop)
    module = importlib.import_module("cascade_kd.data.prepare")  # the package's `prepare` is the function
    monkeypatch.setattr(module, "read_tables", lambda *_: pytest.fail("prepared again"))
    assert prepare(define(), base=shop) == first
    assert prepare(define(description="in other words", licence="theirs"), base=shop) == first
    moved = shop.rename(shop.with_name("moved"))
    assert prepare(define(), base=moved) == first  # the content counts, not the place


def test_prepared_again_when_content_changes(shop: Path) -> None:
    first = prepare(define(), base=shop)
    assert prepare(define(labels={"like": "stars >= 3"}, feature=[]), base=shop) != first
    (shop / "log.csv").write_text(EVENTS.replace("10,pear,5,100", "10,pear,4,100"))  # of the same size
    assert prepare(define(), base=shop) != first
    assert len(list((cache_root() / "datasets").iterdir())) == 3


def test_digests_are_remembered(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = file_digest(shop / "log.csv")
    with monkeypatch.context() as patched:
        patched.setattr("cascade_kd.data.cache.hashlib.file_digest", lambda *_: pytest.fail("read again"))
        assert file_digest(shop / "log.csv") == digest
    for note in (cache_root() / "digests").iterdir():
        note.write_text("{")  # a damaged note is no answer
    assert file_digest(shop / "log.csv") == digest


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_crash_leaves_nothing(shop: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    written: list[Path] = []
    write = pl.DataFrame.write_parquet

    def failing(frame: pl.DataFrame, file: Path, **options: Any) -> None:
        if len(written) == 2:
            raise error("the disk is full")
        written.append(file)
        write(frame, file, **options)

    monkeypatch.setattr(pl.DataFrame, "write_parquet", failing)
    with pytest.raises(error):
        prepare(define(), base=shop)
    assert len(written) == 2
    assert list((cache_root() / "datasets").iterdir()) == []
    monkeypatch.setattr(pl.DataFrame, "write_parquet", write)
    assert (prepare(define(), base=shop) / "meta.json").is_file()


def test_staging_keeps_the_first_and_sweeps_the_stale(tmp_path: Path) -> None:
    final = tmp_path / "made"
    killed, busy = tmp_path / ".made.1-ab.partial", tmp_path / ".made.2-cd.partial"
    for folder in (killed, busy):
        folder.mkdir()
        (folder / "x").write_text("half")
    os.utime(killed, (0, killed.stat().st_mtime - STALE_SECONDS - 60))
    with staging(final) as slow:
        with staging(final) as quick:
            (quick / "who").write_text("quick")
        (slow / "who").write_text("slow")
    assert (final / "who").read_text() == "quick"
    assert sorted(tmp_path.iterdir()) == [busy, final]


def test_two_processes_at_once(shop: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=prepare, args=(define(),), kwargs={"base": shop}) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    (made,) = (cache_root() / "datasets").iterdir()
    assert prepare(define(), base=shop) == made
    assert sorted(file.name for file in made.iterdir()) == [
        "events.parquet", "items.parquet", "meta.json", "users.parquet", "vocabulary.parquet",
    ]  # fmt: skip


def test_a_cache_that_cannot_be_written(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASCADE_KD_CACHE", str(shop / "log.csv"))
    with pytest.raises(DataError, match="set CASCADE_KD_CACHE"):
        prepare(define(), base=shop)


def test_generated_world(shop: Path) -> None:
    definition = DatasetDefinition.model_validate(
        {
            "name": "world",
            "licence": "",
            "generator": {"rows": 3000, "users": 50, "items": 40},
            "roles": {
                "user": "user",
                "item": "item",
                "time": "time",
                "request": "request",
                "oracle": "true_probability",
            },
            "labels": {"click": "click = 1"},
            "feature": [{"name": "tags", "kind": "tags", "side": "item", "available": "recall"}],
            "split": {"kind": "time"},
        }
    )
    meta, tables = tables_of(prepare(definition, base=shop))
    assert sum(meta["counts"]["rows"].values()) == 3000
    assert meta["has_requests"]
    assert tables["events"]["oracle"].is_between(0, 1).all()
    assert prepare(definition, base=shop / "elsewhere") == prepare(definition, base=shop)

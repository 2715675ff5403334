"""What a data-set TOML may say, and where the refusals point."""

from __future__ import annotations

import copy
import tomllib
from typing import Any

import pytest
from pydantic import ValidationError

from cascade_kd.data.definition import DatasetDefinition
from cascade_kd.data.features import statistic_side

TOML = """
name = "shop"
licence = "ours"
[tables.events]
file = "log.csv"
[tables.items]
file = "items.csv"
[roles]
user = "who"
item = "what"
time = "at"
[labels]
like = "stars >= 4"
[[feature]]
name = "kinds"
kind = "tags"
side = "item"
available = "recall"
[[feature]]
name = "device"
kind = "categorical"
side = "context"
available = "prerank"
[[feature]]
name = "last"
kind = "history"
side = "user"
events = "like"
available = "recall"
[[feature]]
name = "rate"
kind = "statistic"
side = "pair"
keys = ["user", "item.kinds"]
value = "like"
aggregate = "mean"
available = "rank"
[filter]
min_user_events = 2
"""


def shop() -> dict[str, Any]:
    return tomllib.loads(TOML)


def errors(data: dict[str, Any]) -> dict[tuple[str | int, ...], str]:
    with pytest.raises(ValidationError) as caught:
        DatasetDefinition.model_validate(data)
    return {error["loc"]: error["msg"] for error in caught.value.errors()}


def changed(path: list[str | int], value: object) -> dict[str, Any]:
    """The shop with one key set, or removed if ``value`` is None."""
    data = copy.deepcopy(shop())
    place: Any = data
    for step in path[:-1]:
        place = place.setdefault(step, {}) if isinstance(step, str) else place[step]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return data


def test_defaults() -> None:
    definition = DatasetDefinition.model_validate(shop())
    kinds, device, last, rate = definition.feature
    assert (kinds.source_table, kinds.source_column) == ("items", "kinds")
    assert device.source_table == "events"
    assert last.history_length == 50
    assert rate.smoothing == 10
    assert definition.split.kind == "per-user-time"
    assert definition.tables["events"].has_header
    assert definition.table_names == ("events", "items")


@pytest.mark.parametrize(
    ("path", "value", "loc", "words"),
    [
        (["nam"], "x", ("nam",), "Extra inputs"),
        (["labels", "like"], "stars >=", ("labels", "like"), "not a Polars SQL expression"),
        (["labels", "like"], "foo(stars)", ("labels", "like"), "'foo'"),
        (["labels"], {}, ("labels",), "at least one label"),
        (["tables", "item"], {"file": "x"}, ("tables", "item"), "did you mean 'items'?"),
        (["tables", "events"], None, ("tables",), "[tables.events] is missing"),
        (["tables", "events", "seperator"], ";", ("tables", "events", "seperator"), "Extra inputs"),
        (["tables", "events", "encoding"], "latin9000", ("tables", "events", "encoding"), "iso-8859-1"),
        (["tables", "events", "header"], False, ("tables", "events", "columns"), "needs the names"),
        (["tables", "events", "columns"], ["a", "b", "a"], ("tables", "events", "columns"), "'a' is named twice"),
        (
            ["tables", "events", "files"],
            {"train": "a", "test": "b"},
            ("tables", "events", "files"),
            "got file and files",
        ),
        (["tables", "events"], {}, ("tables", "events", "file"), "give one of `file`, `files` (by part) and `sql`"),
        (["tables", "events"], {"files": {"train": "a"}}, ("tables", "events", "files"), "wants train and test"),
        (["tables", "events"], {"files": {"train": "a", "test": "b"}}, ("tables", "events", "files"), 'kind = "files"'),
        (
            ["tables", "items"],
            {"sql": "SELECT * FROM events", "format": "csv"},
            ("tables", "items", "format"),
            "belongs",
        ),
        (["tables", "items"], {"sql": "SELEC 1"}, ("tables", "items", "sql"), "not a Polars SQL query"),
        (["tables", "items"], {"sql": "SELECT * FROM evens"}, ("tables", "items", "sql"), "did you mean 'events'?"),
        (["tables", "items"], {"sql": "SELECT * FROM items"}, ("tables", "items", "sql"), "no source or file table"),
        (["tables", "items"], {"sql": "SELECT * FROM read_csv('x')"}, ("tables", "items", "sql"), "[sources.NAME]"),
        (["sources", "raw"], {"file": "x"}, ("sources",), "no table has sql"),
        (["sources", "raw"], {"sql": "SELECT 1"}, ("sources", "raw", "sql"), "read from files"),
        (["sources", "items"], {"file": "x"}, ("sources", "items"), "choose another name"),
        (
            ["tables", "events"],
            {"file": "x", "format": "lines", "separator": ";"},
            ("tables", "events", "separator"),
            "takes no",
        ),
        (["roles", "part"], "part", ("roles", "part"), 'kind = "files"'),
        (["split"], {"hold_out": "last"}, ("split", "hold_out"), "takes no `hold_out`"),
        (["split"], {"kind": "files", "test": 0.2}, ("split", "test"), "takes no `test`"),
        (["expect"], {"label_rate": {"lik": 0.5}}, ("expect", "label_rate", "lik"), "did you mean 'like'?"),
        (["expect"], {"event": 3}, ("expect", "event"), "Extra inputs"),
        (["tables", "items", "format"], "xml", ("tables", "items", "format"), "'parquet'"),
        (["url"], "https://example.org/x.zip", ("url",), "sha256"),
        (["url"], "file:///etc/passwd", ("url",), "pattern"),
        (["sha256"], "0" * 64, ("sha256",), "belongs to a url"),
        (["generator"], {}, ("tables",), "generated"),
        (["roles", "item"], "who", ("roles", "item"), "two roles"),
        (["split", "kind"], "files", ("split", "kind"), "needs files"),
        (["split"], {"valid": 0.6, "test": 0.4}, ("split", "test"), "leave rows for training"),
        (["split"], {"kind": "leave-last-out", "test": 0.2}, ("split", "test"), "takes no `test`"),
        (["feature", 0, "side"], "user", ("feature", 0, "table"), "[tables.users], which is missing"),
        (["feature", 0, "side"], "context", ("feature", 0, "side"), "side user or item"),
        (["feature", 0, "table"], "users", ("feature", 0, "table"), "cannot come from"),
        (["feature", 0, "name"], "item_id", ("feature", 0, "name"), "exists in every data set"),
        (["feature", 0, "window"], "7d", ("feature", 0, "window"), "kind 'tags' takes no `window`"),
        (["feature", 1, "name"], "kinds", ("feature", 1, "name"), "declared twice"),
        (["feature", 1, "fill"], 0, ("feature", 1, "fill"), "kind 'categorical' takes no `fill`"),
        (["feature", 1, "kind"], "vectors", ("feature", 1, "kind"), "'categorical'"),
        (["feature", 1, "available"], "later", ("feature", 1, "available"), "'recall'"),
        (["feature", 1, "expression"], "x +", ("feature", 1, "expression"), "not a Polars SQL expression"),
        (["feature", 2, "events"], "lik", ("feature", 2, "events"), "did you mean 'like'?"),
        (["feature", 2, "side"], "item", ("feature", 2, "side"), "a history belongs to"),
        (["feature", 3, "value"], "buy", ("feature", 3, "value"), "no label 'buy'"),
        (["feature", 3, "value"], None, ("feature", 3, "value"), "needs a value"),
        (["feature", 3, "aggregate"], "median", ("feature", 3, "aggregate"), "'recency'"),
        (["feature", 3, "window"], "7", ("feature", 3, "window"), "as in \"24h\"; got '7'"),
        (["feature", 3, "side"], "user", ("feature", 3, "side"), "has side 'pair'"),
        (["feature", 3, "keys"], ["user", "item.kind"], ("feature", 3, "keys"), "did you mean 'kinds'?"),
        (["feature", 3, "keys"], ["user", "film"], ("feature", 3, "keys"), "not one of user, item"),
        (["feature", 3, "keys"], ["user", "user"], ("feature", 3, "keys"), "given twice"),
        (["feature", 3, "keys"], None, ("feature", 3, "keys"), "needs keys"),
        (["filter", "min_user_events"], -1, ("filter", "min_user_events"), "greater than or equal"),
    ],
)
def test_refusals_point_at_their_key(
    path: list[str | int], value: object, loc: tuple[str | int, ...], words: str
) -> None:
    found = errors(changed(path, value))
    assert loc in found, found
    assert words in found[loc]


def test_all_problems_come_at_once() -> None:
    data = shop()
    data["labels"]["like"] = "stars >="
    data["url"] = "https://example.org/x.zip"
    data["feature"][2]["events"] = "nothing"
    assert set(errors(data)) == {("labels", "like"), ("url",), ("feature", 2, "events")}


def test_a_statistic_is_no_earlier_than_its_keys() -> None:
    data = changed(["feature", 3, "keys"], ["user", "context.device"])
    data["feature"][3] |= {"side": "user", "available": "recall"}
    assert "later than the statistic" in errors(data)["feature", 3, "keys"]


@pytest.mark.parametrize(
    ("keys", "side"),
    [
        (("user",), "user"),
        (("user", "user.sex"), "user"),
        (("user", "context.device"), "user"),
        (("context.device",), "context"),
        (("item.genres", "item"), "item"),
        (("user", "item.genres"), "pair"),
        (("context.device", "item"), "pair"),
    ],
)
def test_side_of_a_statistic(keys: tuple[str, ...], side: str) -> None:
    assert statistic_side(keys) == side


def test_rows_without_times_need_an_order() -> None:
    data = changed(["roles", "time"], None)
    data["sources"] = {"log": {"file": "log.csv"}}
    data["tables"]["events"] = {"sql": "SELECT * FROM (SELECT * FROM log ORDER BY stars) AS l"}
    assert "end the query with ORDER BY" in errors(data)["tables", "events", "sql"]
    data["tables"]["events"] = {"sql": "SELECT * FROM log ORDER BY stars"}
    assert DatasetDefinition.model_validate(data).hold_out == "random"


def test_parts_are_said_once() -> None:
    data = changed(["split"], {"kind": "files", "valid": 0.2, "hold_out": "random"})
    data["tables"]["events"] = {"files": {"train": "a", "valid": "b", "test": "c"}}
    found = errors(data)
    assert set(found) == {("split", "valid"), ("split", "hold_out")}
    assert "leave `valid` out" in found["split", "valid"]
    del data["tables"]["events"]["files"]["valid"]
    assert DatasetDefinition.model_validate(data).split.valid == 0.2
    data["roles"]["part"] = "part"
    assert "not both" in errors(data)["split", "kind"]
    data["tables"]["events"] = {"file": "a"}
    assert DatasetDefinition.model_validate(data).hold_out == "random"


def test_where_the_data_is_does_not_change_its_content() -> None:
    here = DatasetDefinition.model_validate(shop())
    there = DatasetDefinition.model_validate(shop() | {"path": "elsewhere", "licence": "theirs"})
    other = DatasetDefinition.model_validate(changed(["labels", "like"], "stars >= 3"))
    assert here.content() == there.content()
    assert here.content() != other.content()

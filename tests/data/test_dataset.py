"""The data set in memory, read from a prepared directory written by hand."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import polars as pl
import pytest
import torch

from cascade_kd.data.dataset import Dataset, load
from cascade_kd.data.meta import SCHEMA
from cascade_kd.errors import DataError, UserError
from cascade_kd.types import ITEM_ID, PARTS, USER_ID, Feature, Requests

NOON = 1_700_000_000
PRIOR = 0.25
FEATURES = (
    Feature(USER_ID, "categorical", "user", "recall", size=4, vocabulary=USER_ID),
    Feature(ITEM_ID, "categorical", "item", "recall", size=4, vocabulary=ITEM_ID),
    Feature("gender", "categorical", "user", "recall", size=3, vocabulary="gender"),
    Feature("age", "numeric", "user", "prerank"),
    Feature("genres", "tags", "item", "recall", size=3, length=2, vocabulary="genres"),
    Feature("price", "numeric", "item", "recall"),
    Feature("device", "categorical", "context", "recall", size=3, vocabulary="device"),
    Feature("dwell", "numeric", "pair", "never"),
    Feature("liked", "history", "user", "recall", size=4, length=3, vocabulary=ITEM_ID),
    Feature("user_genre_rate", "statistic", "pair", "rank"),
    Feature("user_genre_count", "statistic", "pair", "rank"),
    Feature("item_count", "statistic", "item", "rank"),
    Feature("user_rate", "statistic", "user", "rank"),
    Feature("device_count", "statistic", "context", "rank"),
    Feature("device_item_count", "statistic", "pair", "rank"),
)
STATISTICS = [
    {"name": "user_genre_rate", "keys": ["user", "item.genres"], "value": "like", "aggregate": "mean", "smoothing": 1},
    {"name": "user_genre_count", "keys": ["user", "item.genres"], "value": None, "aggregate": "count"},
    {"name": "item_count", "keys": ["item"], "value": None, "aggregate": "count"},
    {"name": "user_rate", "keys": ["user"], "value": "like", "aggregate": "mean"},
    {"name": "device_count", "keys": ["context.device"], "value": None, "aggregate": "count"},
    {"name": "device_item_count", "keys": ["context.device", "item"], "value": None, "aggregate": "count"},
]
#        user item time like part device dwell
LOG = [
    (1, 1, 0, 1, "train", 1, 0.5),
    (1, 2, 10, 1, "train", 2, 1.5),
    (1, 3, 10, 0, "train", 1, 2.5),
    (1, 2, 20, 1, "valid", 1, 3.5),
    (1, 1, 30, 0, "test", 2, 4.5),
    (2, 3, 5, 1, "train", 1, 5.5),
    (2, 1, 40, 1, "test", 1, 6.5),
]


def write_prepared(folder: Path, *, split: str = "per-user-time", has_requests: bool = True) -> Path:
    """The files of the interface: three users (the third without events), three items, seven events."""
    folder.mkdir(parents=True, exist_ok=True)
    meta = {
        "schema": SCHEMA,
        "name": "tiny",
        "sha256": "0" * 64,
        "features": [asdict(feature) for feature in FEATURES],
        "num_users": 3,
        "num_items": 3,
        "time_offset": NOON,
        "has_time": True,
        "has_requests": has_requests,
        "split": split,
        "labels": ["like"],
        "statistics": [{"smoothing": 10.0, "window": None, "span": 0, "prior": PRIOR} | s for s in STATISTICS],
        "histories": [{"name": "liked", "length": 3, "events": "like"}],
        "numeric": {},
        "counts": {},
        "tags_index": {},
    }
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf8")
    users = {"gender": [0, 1, 2, 1], "age": pl.Series([0.0, -1.0, 0.5, 1.0], dtype=pl.Float32)}
    pl.DataFrame(users).write_parquet(folder / "users.parquet")
    genres = pl.Series([[0, 0], [1, 0], [2, 1], [2, 0]], dtype=pl.List(pl.Int64))
    items = {"genres": genres, "price": pl.Series([0.0, 1.0, 2.0, 3.0], dtype=pl.Float32)}
    pl.DataFrame(items).write_parquet(folder / "items.parquet")
    user, item, second, like, part, device, dwell = (list(column) for column in zip(*LOG, strict=True))
    events = {
        "user": user,
        "item": item,
        "time": [NOON + s for s in second],
        "part": pl.Series([PARTS.index(p) for p in part], dtype=pl.UInt8),
        "label:like": pl.Series(like, dtype=pl.Float32),
        "feature:device": device,
        "feature:dwell": pl.Series(dwell, dtype=pl.Float32),
        "oracle": pl.Series([0.5] * len(LOG), dtype=pl.Float32),
        "statistic:user_rate": pl.Series([PRIOR] * len(LOG), dtype=pl.Float32),
    }
    if has_requests:
        events["request"] = [0, 1, 1, 2, 3, 4, 5]
    pl.DataFrame(events).write_parquet(folder / "events.parquet")
    values = {USER_ID: ["17", "4", "99"], ITEM_ID: ["a", "b", "c"], "gender": ["F", "M"], "genres": ["x", "y"]}
    rows = [(name, code, value) for name in values for code, value in enumerate(values[name], start=1)]
    vocabulary = pl.DataFrame(rows, schema=["vocabulary", "code", "value"], orient="row")
    vocabulary.reverse().write_parquet(folder / "vocabulary.parquet")
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Dataset:
    return load(write_prepared(tmp_path_factory.mktemp("per-user-time")))


@pytest.fixture(scope="module")
def tiny_time(tmp_path_factory) -> Dataset:
    return load(write_prepared(tmp_path_factory.mktemp("time"), split="time"))


def request(user: list[int], second: list[int], device: list[int] | None = None) -> Requests:
    context = {"device": torch.tensor(device if device is not None else [1] * len(user))}
    return Requests(torch.tensor(user), torch.tensor(second) + NOON, context)


def test_load_gives_tensors_of_the_stated_types(tiny):
    assert (tiny.num_users, tiny.num_items, tiny.split) == (3, 3, "per-user-time")
    assert tiny.features == FEATURES
    columns = {
        "gender": (tiny.users["gender"], torch.int64, (4,)),
        "age": (tiny.users["age"], torch.float32, (4,)),
        "genres": (tiny.items["genres"], torch.int64, (4, 2)),
        "price": (tiny.items["price"], torch.float32, (4,)),
        "device": (tiny.events.columns["device"], torch.int64, (7,)),
        "time": (tiny.events.time_N, torch.int64, (7,)),
        "part": (tiny.events.part_N, torch.uint8, (7,)),
        "like": (tiny.events.labels["like"], torch.float32, (7,)),
        "oracle": (tiny.events.oracle_N, torch.float32, (7,)),
    }
    for name, (column, dtype, shape) in columns.items():
        assert column.dtype == dtype, name
        assert column.shape == shape, name
        assert column.is_contiguous(), name
        column.mul_(1)  # a read-only buffer would have warned at load
    assert tiny.items["genres"].tolist() == [[0, 0], [1, 0], [2, 1], [2, 0]]


def test_arrays_of_one_width_load_like_lists(tmp_path, tiny):
    folder = write_prepared(tmp_path / "array")
    items = pl.read_parquet(folder / "items.parquet").with_columns(pl.col("genres").list.to_array(2))
    items.write_parquet(folder / "items.parquet")
    assert torch.equal(load(folder).items["genres"], tiny.items["genres"])


def test_rows_partition_the_log(tiny):
    rows = {part: tiny.rows(part).tolist() for part in PARTS}
    assert rows == {"train": [0, 1, 2, 5], "valid": [3], "test": [4, 6]}
    assert tiny.item_codes().tolist() == [1, 2, 3]


def test_features_by_name_and_level(tiny):
    assert tiny.feature("age").available == "prerank"
    recall = {f.name for f in tiny.online("recall")}
    assert recall == {USER_ID, ITEM_ID, "gender", "genres", "price", "device", "liked"}
    assert {f.name for f in tiny.online("prerank")} == recall | {"age"}
    assert "dwell" not in {f.name for f in tiny.online("rank")}
    assert len(tiny.online("never")) == len(FEATURES)
    with pytest.raises(UserError, match=r"no feature 'prise'; it has: user_id, .*did you mean 'price'"):
        tiny.feature("prise")


def test_codes_of_raw_values(tiny):
    assert [tiny.code_of(USER_ID, value) for value in (17, "17", "99", 5)] == [1, 1, 3, 0]
    assert tiny.code_of("genres", "y") == 2
    assert tiny.vocabularies[ITEM_ID].to_list() == ["a", "b", "c"]
    with pytest.raises(UserError, match="no vocabulary 'genre'"):
        tiny.code_of("genre", "y")


def test_inputs_put_every_feature_on_its_side(tiny):
    names = [feature.name for feature in FEATURES]
    requests = request([1, 3], [30, 30])
    item_R, row_R = torch.tensor([1, 3, 0]), torch.tensor([0, 0, 1])
    inputs = tiny.inputs(names, requests, item_R, row_R, part="test", event_R=torch.tensor([4, -1, -1]))
    user_side = {USER_ID, "gender", "age", "device", "liked", "user_rate", "device_count"}
    assert set(inputs.user) == user_side
    assert set(inputs.item) == set(names) - user_side
    assert inputs.row_R is row_R
    for feature in FEATURES:
        column = inputs.user.get(feature.name, inputs.item.get(feature.name))
        rows = 2 if feature.name in user_side else 3
        width = (rows, feature.length) if feature.kind in ("tags", "history") else (rows,)
        assert column.shape == width, feature.name
        assert column.dtype == (torch.float32 if feature.is_number else torch.int64), feature.name
    assert inputs.user[USER_ID].tolist() == [1, 3]
    assert inputs.user["gender"].tolist() == [1, 1]
    assert inputs.user["age"].tolist() == [-1.0, 1.0]
    assert inputs.user["device"].tolist() == [1, 1]
    assert inputs.item[ITEM_ID].tolist() == [1, 3, 0]
    assert inputs.item["genres"].tolist() == [[1, 0], [2, 0], [0, 0]]
    assert inputs.item["price"].tolist() == [1.0, 3.0, 0.0]
    assert inputs.item["dwell"].tolist() == [4.5, 0.0, 0.0]


def test_only_the_asked_names_are_given(tiny):
    inputs = tiny.inputs(["price"], request([1], [30]), torch.tensor([2]), torch.tensor([0]), part="test")
    assert set(inputs.item) == {"price"}
    assert inputs.user == {}
    with pytest.raises(UserError, match="no feature 'prices'"):
        tiny.inputs(["prices"], request([1], [30]), torch.tensor([2]), torch.tensor([0]), part="test")


def test_without_events_the_event_columns_are_zero(tiny):
    inputs = tiny.inputs(["dwell"], request([1], [30]), torch.tensor([2, 1]), torch.tensor([0, 0]), part="test")
    assert inputs.item["dwell"].tolist() == [0.0, 0.0]


def test_parts_read_their_own_log(tiny):
    """User 1 at second 30: train events at 0 and 10 (two), a validation event at 20."""
    requests, item_R, row_R = request([1], [30]), torch.tensor([2, 3]), torch.tensor([0, 0])
    names = ["liked", "user_genre_rate", "user_genre_count", "item_count", "user_rate", "device_count"]
    for part, liked, rate_of_item_2, count_of_item_2, item_counts, user_rate, on_phone in [
        # Tags of item 2 are 2 and 1: events with them are item 1 (once), item 2 (twice each), item 3 (once).
        ("train", [2, 1, 0], (3 + PRIOR) / (4 + 1), 4, [1, 2], (2 + 10 * PRIOR) / 13, 3),
        ("valid", [2, 1, 0], (3 + PRIOR) / (4 + 1), 4, [1, 2], (2 + 10 * PRIOR) / 13, 3),
        ("test", [2, 2, 1], (5 + PRIOR) / (6 + 1), 6, [2, 2], (3 + 10 * PRIOR) / 14, 4),
    ]:
        inputs = tiny.inputs(names, requests, item_R, row_R, part=part)
        assert inputs.user["liked"].tolist() == [liked]
        assert inputs.item["user_genre_rate"][0].item() == pytest.approx(rate_of_item_2)
        assert inputs.item["user_genre_count"][0].item() == pytest.approx(math.log1p(count_of_item_2))
        assert inputs.item["item_count"].tolist() == pytest.approx([math.log1p(n) for n in item_counts])
        assert inputs.user["user_rate"].tolist() == pytest.approx([user_rate])
        assert inputs.user["device_count"].tolist() == pytest.approx([math.log1p(on_phone)])


def test_a_global_time_split_reads_every_earlier_event(tiny_time):
    requests, item_R, row_R = request([1], [30]), torch.tensor([2]), torch.tensor([0])
    for part in PARTS:
        inputs = tiny_time.inputs(["liked", "item_count"], requests, item_R, row_R, part=part)
        assert inputs.user["liked"].tolist() == [[2, 2, 1]]
        assert inputs.item["item_count"].tolist() == pytest.approx([math.log1p(2)])


@pytest.mark.parametrize("split", ["per-user-time", "time"])
def test_no_label_of_the_same_or_a_later_second_is_read(tmp_path, split):
    dataset = load(write_prepared(tmp_path / split, split=split))
    names = [f.name for f in FEATURES if f.kind in ("history", "statistic")]
    for row in range(len(LOG)):
        part = LOG[row][4]
        rows_B, item_R = torch.tensor([row]), dataset.events.item_N[row : row + 1]
        now = dataset.events.time_N[row]
        like_N = dataset.events.labels["like"]
        readable_N = dataset.events.part_N <= (part == "test") if split != "time" else like_N >= 0
        hidden_N = (dataset.events.time_N >= now) | ~readable_N
        flipped = torch.where(hidden_N, 1 - like_N, like_N)
        other = replace(dataset, events=replace(dataset.events, labels={"like": flipped}))
        a, b = (d.inputs(names, d.requests_of(rows_B), item_R, torch.tensor([0]), part=part) for d in (dataset, other))
        for name in names:
            x, y = (s.user.get(name, s.item.get(name)) for s in (a, b))
            assert torch.equal(x, y), (name, row)


def test_user_and_item_inputs_together_are_the_inputs(tiny):
    names = [feature.name for feature in FEATURES]
    requests = request([1, 2, 1], [30, 35, 12], [2, 1, 0])
    row_R = torch.tensor([0, 0, 1, 2, 2])
    item_R = torch.tensor([1, 2, 3, 1, 0])
    inputs = tiny.inputs(names, requests, item_R, row_R, part="test")
    user = tiny.user_inputs(names, requests, part="test")
    item = tiny.item_inputs(
        names,
        item_R,
        time_R=requests.time_B[row_R],
        user_R=requests.user_B[row_R],
        part="test",
        context_R={"device": requests.context["device"][row_R]},
    )
    assert inputs.user.keys() == user.keys()
    assert inputs.item.keys() == item.keys()
    for name, column in {**user, **item}.items():
        assert torch.equal(column, inputs.user.get(name, inputs.item.get(name))), name


def test_requests_without_the_context_are_refused(tiny):
    bare = Requests(torch.tensor([1]), torch.tensor([NOON]))
    zero = torch.tensor([0])
    for name in ("device", "device_count", "device_item_count"):
        with pytest.raises(UserError, match="lack the context column 'device'"):
            tiny.inputs([name], bare, zero, zero, part="train")


def test_requests_of_rows(tiny, tmp_path):
    requests = tiny.requests_of(torch.tensor([6, 1]))
    assert requests.user_B.tolist() == [2, 1]
    assert requests.time_B.tolist() == [NOON + 40, NOON + 10]
    assert {name: x.tolist() for name, x in requests.context.items()} == {"device": [1, 2]}
    assert requests.request_B.tolist() == [5, 1]
    without = load(write_prepared(tmp_path / "without", has_requests=False))
    assert without.requests_of(torch.tensor([0])).request_B is None


def test_seen_items_are_those_before_the_part(tiny, tiny_time):
    user_B, item_BK = torch.tensor([1, 2, 3, 0]), torch.tensor([[1, 2, 3, 0]]).expand(4, 4)
    train = [[True, True, True, False], [False, False, True, False], [False] * 4, [False] * 4]
    for dataset in (tiny, tiny_time):
        for part in PARTS:
            assert dataset.is_seen(user_B, item_BK, part=part).tolist() == train  # the validation event is no new item
            offsets_B1, item_P = dataset.seen(user_B, part=part)
            assert offsets_B1.tolist() == [0, 3, 4, 4, 4]
            assert item_P.tolist() == [1, 2, 3, 3]


def test_seen_items_of_test_hold_those_of_validation(tiny):
    item_N = tiny.events.item_N.clone()
    item_N[1] = 1  # item 2 is now met in validation only
    dataset = replace(tiny, events=replace(tiny.events, item_N=item_N))
    user_B, item_BK = torch.tensor([1]), torch.tensor([[2]])
    assert [dataset.is_seen(user_B, item_BK, part=part).item() for part in PARTS] == [False, False, True]
    assert [dataset.seen(user_B, part=part)[1].tolist() for part in PARTS] == [[1, 3], [1, 3], [1, 2, 3]]


def test_prepared_statistics_are_read_where_there_are_any(tiny, tmp_path):
    assert {name: x.tolist() for name, x in tiny.events.statistics.items()} == {"user_rate": [PRIOR] * len(LOG)}
    assert "user_rate" not in tiny.events.columns
    folder = write_prepared(tmp_path / "without")
    path = folder / "events.parquet"
    pl.read_parquet(path).drop("statistic:user_rate").write_parquet(path)
    assert load(folder).events.statistics == {}


def test_to_moves_every_tensor(tiny):
    tiny.rows("train")
    moved = tiny.to("meta")
    tensors = [*moved.users.values(), *moved.items.values(), *moved.events.labels.values()]
    tensors += [*moved.events.statistics.values()]
    tensors += [*moved.events.columns.values(), moved.events.oracle_N, moved.events.request_N, moved.item_codes()]
    tensors += [getattr(moved.events, name) for name in ("user_N", "item_N", "time_N", "part_N")]
    assert {x.device.type for x in tensors} == {"meta"}
    assert tiny.rows("train").device.type == "cpu"
    assert moved.features == tiny.features


def test_an_incomplete_directory_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no prepared data set: meta\.json, users\.parquet"):
        load(tmp_path)
    folder = write_prepared(tmp_path / "old")
    meta = json.loads((folder / "meta.json").read_text(encoding="utf8"))
    (folder / "meta.json").write_text(json.dumps(meta | {"schema": 0}), encoding="utf8")
    with pytest.raises(DataError, match=f"schema 0, this version reads {SCHEMA}"):
        load(folder)

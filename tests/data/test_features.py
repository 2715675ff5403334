"""Kinds of features: what a TOML may say of each, and what becomes of raw values."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cascade_kd.data import Dataset, DatasetDefinition, FeatureDefinition, description, load, prepare
from cascade_kd.data.delimited import ROW
from cascade_kd.data.encode import codes_of, encode
from cascade_kd.errors import DataError

NUMBER = {"name": "x", "kind": "numeric", "side": "pair", "available": "recall"}
BUCKETS = NUMBER | {"transform": "quantile", "buckets": 4}
VECTOR = {"name": "v", "kind": "vector", "side": "item", "available": "recall"}
STATISTIC = {"name": "s", "kind": "statistic", "side": "user", "keys": ["user"], "available": "rank"}


def refusals(feature: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(ValidationError) as caught:
        FeatureDefinition.model_validate(feature)
    return {".".join(map(str, error["loc"])): error["msg"] for error in caught.value.errors()}


@pytest.mark.parametrize(
    ("feature", "key", "words"),
    [
        (NUMBER | {"transform": "quantile"}, "buckets", "belong together"),
        (NUMBER | {"buckets": 4}, "buckets", "belong together"),
        (BUCKETS | {"buckets": 1}, "buckets", "greater than or equal to 2"),
        (BUCKETS | {"buckets": 1001}, "buckets", "less than or equal to 1000"),
        (VECTOR | {"side": "pair"}, "side", "user or item, got 'pair'"),
        (VECTOR | {"file": "v.npy", "column": "v"}, "file", "not both"),
        (VECTOR | {"file": "v.csv"}, "file", "is a .npy"),
        (VECTOR | {"table": "events"}, "table", "kind 'vector' takes no `table`"),
        (NUMBER | {"file": "x.npy"}, "file", "kind 'numeric' takes no `file`"),
        (STATISTIC | {"aggregate": "sum"}, "value", "needs a value"),
        (STATISTIC | {"aggregate": "recency", "smoothing": 1}, "smoothing", "belongs to aggregate 'mean'"),
        *(
            (STATISTIC | {"window": window}, "window", '"24h"')
            for window in ("0d", "7", "7 d", "1.5h", "7D", "-1d", "")
        ),
    ],
)
def test_refusals_point_at_their_key(feature: dict[str, Any], key: str, words: str) -> None:
    assert words in refusals(feature)[key]


def test_windows_are_seconds() -> None:
    windows = {"all": None, "90s": 90, "5m": 300, "24h": 86_400, "30d": 2_592_000, "2w": 1_209_600}
    read = {text: FeatureDefinition.model_validate(STATISTIC | {"window": text}).window_seconds for text in windows}
    assert read == windows


@pytest.mark.parametrize("aggregate", ["count", "recency"])
def test_the_value_of_a_count_or_recency_is_optional(aggregate: str) -> None:
    for more in ({}, {"value": "like"}):
        feature = FeatureDefinition.model_validate(STATISTIC | {"aggregate": aggregate} | more)
        assert feature.value == more.get("value")


# Small data sets on disk: users 1..3 with two events each, items a..c.

HEAD = """
name = "shop"
licence = "ours"
[tables.events]
file = "log.csv"
[tables.items]
file = "items.parquet"
format = "parquet"
[roles]
user = "user"
item = "item"
time = "time"
[labels]
like = "stars >= 4"
[split]
kind = "leave-last-out"
"""
LOG = """user,item,time,stars,wait
1,a,10,5,0.5
1,b,20,1,
1,c,30,4,7
1,a,40,5,99
2,b,10,4,1
2,c,20,5,2
2,a,30,1,-3
3,c,5,1,3
3,b,6,5,4
3,a,7,4,5
"""
ITEMS = pl.DataFrame(
    {"item": ["c", "a", "d"], "v": [[1.0, 2.0], [3.0, 4.0], []]}, schema_overrides={"v": pl.List(pl.Float64)}
)


def toml(feature: dict[str, Any]) -> str:
    return "[[feature]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in feature.items())


def shop(folder: Path, *features: dict[str, Any], head: str = HEAD, items: pl.DataFrame = ITEMS) -> DatasetDefinition:
    (folder / "log.csv").write_text(LOG)
    items.write_parquet(folder / "items.parquet")
    return DatasetDefinition.model_validate(tomllib.loads(head + "".join(map(toml, features))))


def made(folder: Path, *features: dict[str, Any], items: pl.DataFrame = ITEMS) -> Dataset:
    return load(prepare(shop(folder, *features, items=items), base=folder))


@pytest.mark.parametrize("feature", [STATISTIC | {"window": "1d"}, STATISTIC | {"aggregate": "recency"}])
def test_seconds_need_a_time(tmp_path: Path, feature: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        shop(tmp_path, feature, head=HEAD.replace('time = "time"\n', ""))
    (error,) = caught.value.errors()
    assert error["loc"] == ("feature", 0, "window" if "window" in feature else "aggregate")
    assert "[roles] time" in error["msg"]


def test_vectors_are_no_keys_and_buckets_are(tmp_path: Path) -> None:
    keyed = STATISTIC | {"side": "item", "keys": ["item.v"]}
    with pytest.raises(ValidationError, match="'v' is vector"):
        shop(tmp_path, VECTOR, keyed)
    price = NUMBER | {"name": "v", "side": "item"}
    with pytest.raises(ValidationError, match="'v' is numeric"):
        shop(tmp_path, price, keyed)
    shop(tmp_path, price | {"transform": "quantile", "buckets": 2}, keyed)


def test_a_statistic_by_buckets_counts_the_bucket(tmp_path: Path) -> None:
    wait = BUCKETS | {"name": "wait", "side": "context", "buckets": 2}
    by_wait = STATISTIC | {"side": "context", "keys": ["context.wait"]}
    data = made(tmp_path, wait, by_wait)
    rows = data.rows("test")
    counts = data.user_inputs(["s"], data.requests_of(rows), part="test")["s"].expm1().round().int().tolist()
    # Waits of train rows: 0.5, missing, 1, 3, so the edge is 1. Asked: the bucket of 99 at 40, of -3 at 30, of 5 at 7.
    assert dict(zip(data.events.user_N[rows].tolist(), counts, strict=True)) == {1: 4, 2: 2, 3: 2}


@settings(deadline=None, max_examples=60)
@given(
    numbers=st.lists(st.one_of(st.none(), st.integers(-5, 5), st.floats(-1e6, 1e6)), min_size=1, max_size=40),
    buckets=st.integers(2, 12),
    fit_from=st.integers(0, 5),
)
def test_buckets_are_quantiles_of_the_fit_rows(numbers: list[float | None], buckets: int, fit_from: int) -> None:
    frame = pl.DataFrame({"x": pl.Series(numbers, dtype=pl.Float64)}).with_row_index(ROW, offset=1)
    fit = pl.Series([row >= fit_from for row in range(len(numbers))])
    known = [x for row, x in enumerate(numbers) if x is not None and row >= fit_from]
    definition = FeatureDefinition.model_validate(BUCKETS | {"buckets": buckets})
    if not known:
        with pytest.raises(DataError, match="no training row has a number"):
            encode(definition, frame, fit)
        return
    encoded = encode(definition, frame, fit)
    edges = [float(np.quantile(known, k / buckets)) for k in range(1, buckets)]
    wanted = [0 if x is None else 1 + sum(edge < x for edge in edges) for x in numbers]
    assert encoded.column.to_list() == wanted
    assert (encoded.feature.kind, encoded.feature.size) == ("categorical", buckets + 1)
    assert encoded.scale["edges"] == edges
    assert encoded.missing == sum(x is None for x in numbers)


def test_buckets_of_distinct_numbers_are_equally_full() -> None:
    x = torch.randperm(1000, generator=torch.Generator().manual_seed(0)).double()
    frame = pl.DataFrame({"x": x.numpy()}).with_row_index(ROW, offset=1)
    codes = encode(FeatureDefinition.model_validate(BUCKETS), frame, pl.repeat(True, 1000, eager=True)).column
    assert codes.value_counts().sort("x")["count"].to_list() == [250] * 4
    filled = FeatureDefinition.model_validate(BUCKETS | {"fill": -1.0})
    frame = frame.with_columns(pl.when(pl.col("x") == 999).then(None).otherwise(pl.col("x")).alias("x"))
    column = encode(filled, frame, pl.repeat(True, 1000, eager=True)).column
    assert column[int(x.argmax())] == 1, "a missing number takes the bucket of `fill`"


def test_a_value_unseen_in_training_is_unknown(tmp_path: Path) -> None:
    """Rows 99 (test) of `wait` is a value that no training row has; 7 (valid) is another."""
    wait = {"name": "wait", "kind": "categorical", "side": "context", "available": "recall"}
    folder = prepare(shop(tmp_path, wait), base=tmp_path)
    data = load(folder)
    train = data.events.columns["wait"][data.rows("train")]
    assert sorted(train.tolist()) == [0, 1, 2, 3], "one value is missing"
    for part in ("valid", "test"):
        assert data.events.columns["wait"][data.rows(part)].tolist() == [0, 0, 0]
    (shown,) = [f for f in description(folder)["features"] if f["name"] == "wait"]
    assert (shown["vocabulary"], shown["missing"]) == (3, 1)


def test_rare_values_are_unknown(tmp_path: Path) -> None:
    stars = {"name": "stars", "kind": "categorical", "side": "context", "available": "recall", "min_count": 2}
    data = made(tmp_path, stars)
    assert data.vocabularies["stars"].to_list() == ["1"], "of the training rows 5, 1, 4, 1"
    assert data.feature("stars").size == 2


# Vectors


@pytest.mark.parametrize("dtype", [pl.List(pl.Float64), pl.List(pl.Int8), pl.Array(pl.Float32, 2)])
def test_vectors_from_a_list_column(tmp_path: Path, dtype: pl.DataType) -> None:
    items = pl.DataFrame({"item": ["c", "a", "d"], "v": pl.Series([[1, 2], [3, 4], None], dtype=dtype)})
    folder = prepare(shop(tmp_path, VECTOR, items=items), base=tmp_path)
    data = load(folder)
    # Codes: a, b, c, d; b has no row in the table, d no vector.
    assert data.items["v"].tolist() == [[0, 0], [3, 4], [0, 0], [1, 2], [0, 0]]
    assert data.items["v"].dtype == torch.float32
    feature = data.feature("v")
    assert (feature.length, feature.size, feature.is_number, feature.vocabulary) == (2, 0, False, "")
    assert {f["name"]: f["missing"] for f in description(folder)["features"]}["v"] == 2
    requests = data.requests_of(torch.tensor([0, 1]))
    inputs = data.inputs(["v"], requests, torch.tensor([1, 3, 2]), torch.tensor([0, 0, 1]), part="train")
    assert inputs.item["v"].tolist() == [[3, 4], [1, 2], [0, 0]]


def test_vectors_from_a_file(tmp_path: Path) -> None:
    vector = VECTOR | {"file": "vectors.npy"}
    matrix = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], dtype=np.float64)
    np.save(tmp_path / "vectors.npy", matrix)
    first = prepare(shop(tmp_path, vector), base=tmp_path)
    data = load(first)
    assert data.items["v"].tolist() == [[0, 0, 0], [4, 5, 6], [0, 0, 0], [1, 2, 3], [7, 8, 9]]
    assert prepare(shop(tmp_path, vector), base=tmp_path) == first
    np.save(tmp_path / "vectors.npy", matrix + 1)
    second = prepare(shop(tmp_path, vector), base=tmp_path)
    assert second != first, "the content of the file is part of the data set"
    assert load(second).items["v"][1].tolist() == [5, 6, 7]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (pl.Series([[1.0, 2.0], [1.0], [3.0, 4.0]]), "row 2: a vector of 1 numbers, where row 1 has 2"),
        (pl.Series([[1.0, 2.0], [1.0, None], None]), "row 2: a number is missing"),
        (pl.Series([[1.0, 2.0], None, [float("nan"), 0.0]]), "row 3: a number is missing, NaN"),
        (pl.Series([[1.0, 2.0], None, [1e300, 0.0]]), "row 3: a number is missing, NaN or infinite"),
        (pl.Series([[], [], None], dtype=pl.List(pl.Float64)), "no row has a vector"),
        (pl.Series(["1 2", "3 4", "5 6"]), "a list of numbers, got String"),
        (pl.Series([["1"], ["3"], ["5"]]), "a list of numbers, got List"),
    ],
)
def test_what_is_no_vector_is_refused(tmp_path: Path, values: pl.Series, words: str) -> None:
    # Items in the order of their codes, so that rows and codes agree.
    items = pl.DataFrame({"item": ["a", "b", "c"], "v": values})
    with pytest.raises(DataError) as caught:
        made(tmp_path, VECTOR, items=items)
    assert "table 'items', column 'v'" in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (np.zeros((2, 3)), "has 2 rows, the table 3"),
        (np.zeros(3), "float64 of shape [3]"),
        (np.zeros((3, 0)), "float64 of shape [3, 0]"),
        (np.array([["a"], ["b"], ["c"]]), "<U1 of shape [3, 1]"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, matrix: np.ndarray, words: str) -> None:
    np.save(tmp_path / "vectors.npy", matrix)
    with pytest.raises(DataError) as caught:
        made(tmp_path, VECTOR | {"file": "vectors.npy"})
    assert words in str(caught.value)


def test_a_missing_or_broken_file_is_refused(tmp_path: Path) -> None:
    vector = VECTOR | {"file": "vectors.npy"}
    with pytest.raises(DataError, match=r"no file .*vectors\.npy"):
        made(tmp_path, vector)
    (tmp_path / "vectors.npy").write_text("1,2\n")
    with pytest.raises(DataError, match=r"not readable as \.npy"):
        made(tmp_path, vector)


def test_rows_of_a_query_without_order_belong_to_no_file(tmp_path: Path) -> None:
    query = '[sources.raw]\nfile = "items.parquet"\nformat = "parquet"\n[tables.items]\nsql = "SELECT * FROM raw"\n'
    head = HEAD.replace('[tables.items]\nfile = "items.parquet"\nformat = "parquet"\n', query)
    vector = VECTOR | {"file": "vectors.npy"}
    with pytest.raises(ValidationError, match="ORDER BY"):
        shop(tmp_path, vector, head=head)
    np.save(tmp_path / "vectors.npy", np.array([[1], [2], [3]]))
    ordered = head.replace("FROM raw", "FROM raw ORDER BY item DESC")
    data = load(prepare(shop(tmp_path, vector, head=ordered), base=tmp_path))
    assert data.items["v"].tolist() == [[0], [3], [0], [2], [1]], "d, c, a"


@given(
    vocabulary=st.sets(st.integers(0, 60)),
    values=st.lists(st.none() | st.integers(-3, 65) | st.sampled_from([-(2**63), 2**63 - 1]), max_size=90),
)
def test_codes_are_places_in_the_vocabulary(vocabulary: set[int], values: list[int | None]) -> None:
    """By a table where the values outnumber the largest of the vocabulary, else by a join: the same codes."""
    known = sorted(vocabulary)
    code = {value: 1 + place for place, value in enumerate(known)}
    found = codes_of(pl.Series("id", values, pl.Int64), pl.Series(known, dtype=pl.Int64))
    assert found.to_list() == [code.get(value, 0) for value in values]  # type: ignore[arg-type]

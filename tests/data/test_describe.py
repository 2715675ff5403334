"""What `data describe` says of a prepared set, and the real MovieLens-1M prepared whole."""

from __future__ import annotations

import io
import json
import os
import re
import tomllib
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console

from cascade_kd.data import DatasetDefinition, description, load, prepare, render
from cascade_kd.errors import DataError
from cascade_kd.types import PARTS

CATALOGUE = Path(__file__).parents[2] / "datasets"


def shown(prepared: Path) -> str:
    console = Console(width=140, record=True, file=io.StringIO())
    for table in render(description(prepared)):
        console.print(table)
    return console.export_text()


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two users, ten and eleven events; the last liked by none."""
    monkeypatch.setenv("CASCADE_KD_CACHE", str(tmp_path / "cache"))
    rows = [f"{user};{n % 4};{n % 2};{86_400 * n}" for user in (1, 2) for n in range(9 + user)]
    (tmp_path / "log.csv").write_text("\n".join(["u;i;liked;t", *rows]) + "\n")
    definition = DatasetDefinition.model_validate(
        {
            "name": "small",
            "licence": "",
            "tables": {"events": {"file": "log.csv", "separator": ";"}},
            "roles": {"user": "u", "item": "i", "time": "t"},
            "labels": {"like": "liked = 1"},
            "feature": [{"name": "last", "kind": "history", "side": "user", "available": "prerank", "length": 7}],
        }
    )
    return prepare(definition, base=tmp_path)


def test_description(prepared: Path) -> None:
    told = description(prepared)
    assert json.loads(json.dumps(told)) == told
    assert (told["name"], told["users"], told["items"], told["events"], told["requests"]) == ("small", 2, 4, 21, None)
    assert told["parts"]["test"] == {"rows": 2, "users": 2, "items": 2, "from": 86_400 * 9, "to": 86_400 * 10}
    assert told["label_rate"]["like"] == {"train": pytest.approx(8 / 17), "valid": 0.5, "test": 0.5}
    assert told["features"][-1] == {
        "name": "last", "kind": "history", "side": "user", "available": "prerank", "vocabulary": 4, "length": 7,
        "missing": 0, "detail": "last 7",
    }  # fmt: skip
    assert told["expected"] == {}
    assert told["levels"] == {
        "recall": {"online": ["user_id", "item_id"], "privileged": ["last"]},
        "prerank": {"online": ["user_id", "item_id", "last"], "privileged": []},
        "rank": {"online": ["user_id", "item_id", "last"], "privileged": []},
    }


def test_render(prepared: Path) -> None:
    text = shown(prepared)
    for words in ("small", "per-user-time", "train", "0.4706", "1970-01-11", "history", "prerank", "user_id"):
        assert words in text


def test_what_look_ups_and_vectors_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASCADE_KD_CACHE", str(tmp_path / "cache"))
    rows = [f"{user};{n % 4};{n % 2};{86_400 * n};x|y" for user in (1, 2) for n in range(9 + user)]
    (tmp_path / "log.csv").write_text("\n".join(["u;i;liked;t;tag", *rows]) + "\n")
    pl.DataFrame({"i": range(4), "v": [[0.0, 1.0, float(n)] for n in range(4)]}).write_parquet(
        tmp_path / "items.parquet"
    )
    rate = {"kind": "statistic", "keys": ["user"], "side": "user", "available": "rank"}
    definition = DatasetDefinition.model_validate(
        {
            "name": "small",
            "licence": "",
            "tables": {
                "events": {"file": "log.csv", "separator": ";"},
                "items": {"file": "items.parquet", "format": "parquet"},
            },
            "roles": {"user": "u", "item": "i", "time": "t"},
            "labels": {"like": "liked = 1"},
            "feature": [
                {"name": "liked", "kind": "history", "side": "user", "available": "recall", "events": "like"},
                {"name": "v", "kind": "vector", "side": "item", "available": "recall"},
                {"name": "tag", "kind": "tags", "side": "item", "table": "events", "available": "prerank"},
                rate | {"name": "rate", "value": "like", "aggregate": "mean"},
                rate | {"name": "week", "window": "7d"},
                rate | {"name": "odd", "window": "90m", "keys": ["user", "item.tag"], "side": "pair"},
                {"name": "late", "kind": "numeric", "side": "pair", "column": "liked", "available": "never"},
            ],
            "expect": {"events": 21, "label_rate": {"like": 0.476}},
        }
    )
    told = description(prepare(definition, base=tmp_path))
    assert {f["name"]: f["detail"] for f in told["features"] if f["detail"]} == {
        "liked": "last 50 of like",
        "v": "width 3",
        "tag": "at most 2",
        "rate": "mean of like by user",
        "week": "count by user within 1w",
        "odd": "count by user x item.tag within 90m",
    }
    assert {level: (len(names["online"]), names["privileged"]) for level, names in told["levels"].items()} == {
        "recall": (4, ["tag", "rate", "week", "odd", "late"]),
        "prerank": (5, ["rate", "week", "odd", "late"]),
        "rank": (8, ["late"]),
    }
    assert told["expected"] == {"events": 21, "label_rate": {"like": 0.476}}
    text = shown(prepare(definition, base=tmp_path))
    assert re.search(r"^events +21 +21 *$", text, re.MULTILINE)
    assert re.search(r"^share of like +0\.4762 +0\.476 *$", text, re.MULTILINE)


def test_not_a_prepared_directory(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no prepared data set"):
        description(tmp_path)


@pytest.mark.data
def test_movielens_1m(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (Path(os.environ.get("CASCADE_KD_DATA", "")) / "movielens-1m" / "ratings.dat").is_file():
        pytest.skip("CASCADE_KD_DATA is unset or holds no movielens-1m")
    monkeypatch.setenv("CASCADE_KD_CACHE", str(tmp_path))
    definition = DatasetDefinition.model_validate(tomllib.loads((CATALOGUE / "movielens-1m.toml").read_text()))
    folder = prepare(definition, base=CATALOGUE)
    told = description(folder)
    assert (told["users"], told["items"], told["events"]) == (6_040, 3_883, 1_000_209)
    events = pl.read_parquet(folder / "events.parquet")
    assert events["item"].n_unique() == 3_706
    assert events["label:like"].sum() == 575_281
    rows = {part: told["parts"][part]["rows"] for part in PARTS}
    assert sum(rows.values()) == 1_000_209
    assert abs(rows["test"] - 100_021) < 6_040 / 2
    # by hand, from the raw file: each user's last round-half-up tenth is test
    raw = (Path(os.environ["CASCADE_KD_DATA"]) / "movielens-1m" / "ratings.dat").read_text().split("\n")
    counts = pl.Series([line.split("::", 1)[0] for line in raw if line]).value_counts()["count"]
    assert rows["test"] == rows["valid"] == sum((2 * count + 10) // 20 for count in counts)
    assert {f["name"]: f["vocabulary"] for f in told["features"] if f["kind"] in ("categorical", "tags")} == {
        "user_id": 6_040, "item_id": 3_883, "sex": 2, "age": 7, "occupation": 21, "region": 10, "genres": 18,
        "year": 81,
    }  # fmt: skip
    data = load(folder)
    titanic = data.code_of("item_id", 1721)
    assert data.vocabularies["year"][int(data.items["year"][titanic]) - 1] == "1997"
    genres = [data.vocabularies["genres"][code - 1] for code in data.items["genres"][titanic].tolist() if code]
    assert genres == ["Drama", "Romance"]

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cascade_kd.config import load_experiment, write_first_files
from cascade_kd.data import load, prepare
from cascade_kd.errors import DataError, UserError

USERS, ITEMS, ROWS = 30, 20, 600
Columns = dict[str, Sequence[Any]]


@pytest.fixture
def log() -> Columns:
    """A log of events with columns of every sort; names are what a test makes of them."""
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, USERS, ROWS), rng.integers(0, ITEMS, ROWS)
    age, city = rng.integers(18, 80, USERS), rng.integers(0, 5, USERS)
    genre = ["|".join(sorted(rng.choice(["drama", "comedy", "war"], 2, replace=False))) for _ in range(ITEMS)]
    return {
        "user": [f"u{u:02d}" for u in user],
        "item": [int(i) + 100 for i in item],
        "rating": [int(r) for r in rng.integers(1, 6, ROWS)],
        "time": [1_700_000_000 + 50 * int(t) for t in rng.permutation(ROWS)],
        "age": [int(age[u]) + 0.5 for u in user],
        "city": [f"0{city[u]}" for u in user],
        "genres": [genre[i] for i in item],
        "dwell": [round(float(x), 3) for x in rng.exponential(20, ROWS)],
        "device": [("web", "app")[int(x)] for x in rng.integers(0, 2, ROWS)],
        "title": [f"Item number {i}" for i in item],
        "constant": [7] * ROWS,
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(columns: Columns, name: str = "log.csv", separator: str = ",", *, header: bool = True) -> Path:
        lines = [separator.join(columns)] if header else []
        lines += [separator.join(map(str, row)) for row in zip(*columns.values(), strict=True)]
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n", "utf-8")
        return path

    return write


def first_files(csv: Path, out: Path) -> tuple[Any, dict[str, Any]]:
    """The loaded experiment, and the data-set TOML as plain data; prepares the data, so all of it was readable."""
    dataset, experiment = write_first_files(csv, out)
    config = load_experiment(experiment)
    assert config.dataset_file == dataset.resolve()
    prepared = load(prepare(config.definition, base=config.dataset_file.parent))
    assert prepared.num_users == len({line.split("\x00")[0] for line in prepared.vocabularies["user_id"]})
    return config, tomllib.loads(dataset.read_text("utf-8"))


def features_of(data: dict[str, Any]) -> dict[str, tuple[str, str, str]]:
    return {f["name"]: (f["kind"], f["side"], f["available"]) for f in data["feature"]}


def test_a_comma_file(log: Columns, write: Callable[..., Path], tmp_path: Path) -> None:
    config, data = first_files(write(log), tmp_path)
    assert data["tables"]["events"] == {"file": "log.csv", "separator": ","}
    assert data["roles"] == {"user": "user", "item": "item", "time": "time"}
    assert data["labels"] == {"like": '"rating" >= 4'}
    assert data["split"]["kind"] == "per-user-time"
    assert features_of(data) == {
        "age": ("numeric", "user", "recall"),
        "city": ("categorical", "user", "recall"),
        "genres": ("tags", "item", "recall"),
        "dwell": ("numeric", "pair", "never"),
        "device": ("categorical", "context", "recall"),
        "like_history": ("history", "user", "recall"),
        "item_like_rate": ("statistic", "item", "rank"),
        "user_genres_like_rate": ("statistic", "pair", "rank"),
    }
    assert [(s.name, s.type) for s in config.stages] == [
        ("recall", "two-tower"),
        ("prerank", "two-tower"),
        ("rank", "dcnv2"),
    ]
    assert config.stages[0].keep <= ITEMS
    assert not config.evaluate.mask_seen, "with 600 events of 30 users and 20 items most come again"
    assert {stage.train.label for stage in config.stages} == {"like"}


def test_a_tab_file_with_other_names_elsewhere(log: Columns, write: Callable[..., Path], tmp_path: Path) -> None:
    """Names that SQL and TOML would trip over, dates, another folder for the output."""
    days = [f"2024-{1 + n % 12:02d}-{1 + n % 28:02d} {n % 24:02d}:00:05" for n in range(ROWS)]
    columns = {
        'Kunde "Nr."': log["user"],
        "Artikel-Ñr": log["item"],
        "Sterne (1-5)": log["rating"],
        "gesehen am": days,
        "Genre's": log["genres"],
        "älter #1": log["age"],
        "älter #2": log["age"],
    }
    csv = write({name.replace('"', ""): column for name, column in columns.items()}, "Meine Daten.tsv", "\t")
    config, data = first_files(csv, tmp_path / "new" / "folder")
    assert config.name == "meine_daten"
    assert data["tables"]["events"]["file"] == "../../Meine Daten.tsv"
    assert data["roles"] == {"user": "Kunde Nr.", "item": "Artikel-Ñr", "time": "gesehen am"}
    assert data["labels"] == {"like": '"Sterne (1-5)" >= 4'}
    assert {"genre_s", "lter_1", "lter_2"} <= set(features_of(data))
    text = (tmp_path / "new" / "folder" / "meine_daten.toml").read_text("utf-8")
    assert "its values are dates" in text
    assert "user before item: check this" in text


@pytest.mark.parametrize("separator", [";", "|", "::", " "])
def test_other_separators(log: Columns, write: Callable[..., Path], tmp_path: Path, separator: str) -> None:
    columns = {name: log[name] for name in ("user", "item", "rating", "time")}
    _, data = first_files(write(columns, separator=separator), tmp_path)
    assert data["tables"]["events"]["separator"] == separator


def test_no_header(log: Columns, write: Callable[..., Path], tmp_path: Path) -> None:
    columns = {name: log[name] for name in ("user", "item", "rating", "time")}
    _, data = first_files(write(columns, separator="::", header=False), tmp_path)
    assert data["tables"]["events"]["columns"] == ["column_1", "column_2", "column_3", "column_4"]
    assert data["tables"]["events"]["header"] is False
    assert data["roles"] == {"user": "column_1", "item": "column_2", "time": "column_4"}
    assert data["labels"] == {"like": '"column_3" >= 4'}


def test_a_header_with_holes_and_repeats(log: Columns, write: Callable[..., Path], tmp_path: Path) -> None:
    csv = write({"a": range(ROWS), "user": log["user"], "item": log["item"], "b": log["age"], "rating": log["rating"]})
    text = csv.read_text("utf-8")
    csv.write_text(text.replace("a,user,item,b,rating", ",user,item,user,rating", 1), "utf-8")
    _, data = first_files(csv, tmp_path)
    assert data["tables"]["events"]["columns"] == ["column_1", "user", "item", "user_4", "rating"]
    assert data["tables"]["events"]["header"] is True
    assert "time" not in data["roles"]


@pytest.mark.parametrize(("factor", "unit"), [(1_000, "ms"), (1_000_000, "us")])
def test_units_of_time(log: Columns, write: Callable[..., Path], tmp_path: Path, factor: int, unit: str) -> None:
    columns = {"userId": log["user"], "movieId": log["item"], "timestamp": [t * factor for t in log["time"]]}
    config, data = first_files(write(columns | {"liked": [r // 4 for r in log["rating"]]}), tmp_path)
    assert data["roles"] == {"user": "userId", "item": "movieId", "time": "timestamp", "time_unit": unit}
    assert data["labels"] == {"like": '"liked" = 1'}
    prepared = load(prepare(config.definition, base=tmp_path))
    assert int(prepared.events.time_N.max()) == max(log["time"])


def test_labels_in_words_and_requests(log: Columns, write: Callable[..., Path], tmp_path: Path) -> None:
    number = {name: n for n, name in enumerate(sorted(set(log["user"])))}
    seen: dict[str, int] = {}
    requests, positions = [], []
    for user in log["user"]:
        count = seen[user] = seen.get(user, -1) + 1
        requests.append(1000 * number[user] + count // 3)
        positions.append(count % 3)
    events = ["purchase" if r == 5 else "view" if r < 4 else "cart" for r in log["rating"]]
    columns = {"visitor_id": log["user"], "sku": log["item"], "event_type": events, "request_id": requests}
    _, data = first_files(write(columns | {"slot": positions}), tmp_path)
    assert data["labels"] == {"positive": "\"event_type\" = 'purchase'"}
    assert data["roles"] == {"user": "visitor_id", "item": "sku", "request": "request_id", "position": "slot"}


def test_short_users_split_by_time(log: Columns, write: Callable[..., Path], tmp_path: Path) -> None:
    users = [f"v{n // 3}" for n in range(ROWS)]
    columns = {"user": users, "item": log["item"], "rating": log["rating"], "time": log["time"]}
    config, data = first_files(write(columns), tmp_path)
    assert data["split"]["kind"] == "time"
    assert config.evaluate.mask_seen, "hardly a user of three events meets an item twice"


def test_short_users_without_time_leave_one_out(log: Columns, write: Callable[..., Path], tmp_path: Path) -> None:
    columns = {"user": [f"v{n // 3}" for n in range(ROWS)], "item": log["item"], "rating": log["rating"]}
    _, data = first_files(write(columns), tmp_path)
    assert data["split"]["kind"] == "leave-last-out"


def test_quotes_that_are_plain_characters(log: Columns, write: Callable[..., Path], tmp_path: Path) -> None:
    columns = {name: log[name] for name in ("user", "item", "rating", "time")}
    columns["size"] = [f'{n % 4}" wide' if n % 7 else '"odd' for n in range(ROWS)]
    _, data = first_files(write(columns, separator=";"), tmp_path)
    assert data["tables"]["events"]["quote"] == ""


def test_another_encoding(log: Columns, write: Callable[..., Path], tmp_path: Path) -> None:
    columns = {"user": log["user"], "item": [f"é{i}" for i in log["item"]], "rating": log["rating"]}
    csv = write(columns)
    csv.write_bytes(csv.read_text("utf-8").encode("iso-8859-1"))
    _, data = first_files(csv, tmp_path)
    assert data["tables"]["events"]["encoding"] == "iso-8859-1"


def test_every_guess_is_a_comment(log: Columns, write: Callable[..., Path], tmp_path: Path) -> None:
    dataset, experiment = write_first_files(write(log), tmp_path)
    lines = dataset.read_text("utf-8").splitlines()
    for start in ("separator", "user =", "item =", "time =", "like =", 'kind = "numeric"', 'kind = "tags"', "licence"):
        assert all("#" in line for line in lines if line.startswith(start)), start
        assert any(line.startswith(start) for line in lines), start
    assert '# column "constant" is left out: it has one value only' in dataset.read_text("utf-8") or any(
        "constant" in line and "one value only" in line for line in lines
    )
    assert any(line.startswith('# column "title" is left out') for line in lines)
    assert experiment.read_text("utf-8").startswith("#")


def test_nothing_is_overwritten(log: Columns, write: Callable[..., Path], tmp_path: Path) -> None:
    csv = write(log)
    for name in ("log.toml", "log-experiment.toml"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(UserError, match=rf"{name}' exists and is left as it is"):
            write_first_files(csv, tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir() if p.suffix == ".toml") == [name]
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no file"),
        ("", "is empty"),
        ("one\ntwo\n", "has no separator that parts every row alike"),
        ("PK\0\1,a\n", "is no text file"),
        ("user,item\na,1\na,2\nb,1\nb,2\n", "no column tells a good event from another"),
        ("x,rating\n0.5,1\n0.7,2\n0.5,3\n", "no column looks like the ids of users and items"),
    ],
)
def test_files_that_are_no_log(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "x.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=words):
        write_first_files(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="is a folder; want a text file of events"):
        write_first_files(tmp_path, tmp_path / "out")


def test_a_broken_row_is_named(log: Columns, write: Callable[..., Path], tmp_path: Path) -> None:
    columns = {name: log[name] for name in ("user", "item", "rating", "time")}
    csv = write(columns)
    csv.write_text(csv.read_text() + "u1,5\n")
    with pytest.raises(DataError, match=rf"row {ROWS + 1}: the row has 2 fields where there are 4 columns"):
        write_first_files(csv, tmp_path)

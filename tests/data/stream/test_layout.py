"""The law of the layouts: prepared in memory or in buckets, a data set has the same tables and the same log."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from rich.progress import Progress

from cascade_kd.config import load_dataset_definition
from cascade_kd.data import DatasetDefinition, load, prepare
from cascade_kd.data.stream.columns import column_names, column_path
from cascade_kd.types import PARTS

SPLITS = {
    "per-user-time": '[split]\nkind = "per-user-time"\nvalid = 0.2\ntest = 0.2\n',
    "leave-last-out": '[split]\nkind = "leave-last-out"\n',
    "time": '[split]\nkind = "time"\nvalid = 0.2\ntest = 0.25\n',
    "files": '[split]\nkind = "files"\n',
    "hold-out-last": '[split]\nkind = "files"\nhold_out = "last"\nvalid = 0.3\n',
    "hold-out-random": '[split]\nkind = "files"\nhold_out = "random"\nvalid = 0.3\n',
}
TABLES = """
name = "toy"
licence = "made up"
path = "{path}"
[tables.events]
{events}
[tables.users]
file = "users.csv"
[tables.items]
file = "items.csv"
[roles]
user = "user"
item = "item"
position = "place"
{roles}
[labels]
like = "rating >= 4"
buy = "bought"
{split}
{storage}
"""
FEATURES = """
[[feature]]
name = "age"
kind = "numeric"
side = "user"
available = "recall"
[[feature]]
name = "tags"
kind = "tags"
side = "item"
available = "recall"
[[feature]]
name = "first_device"
kind = "categorical"
side = "user"
table = "events"
column = "device"
available = "recall"
[[feature]]
name = "first_price"
kind = "numeric"
side = "item"
table = "events"
expression = "price * 2"
available = "recall"
[[feature]]
name = "device"
kind = "categorical"
side = "context"
min_count = 3
available = "recall"
[[feature]]
name = "shelf"
kind = "categorical"
side = "pair"
table = "events"
available = "recall"
[[feature]]
name = "hour"
kind = "numeric"
side = "context"
available = "recall"
[[feature]]
name = "price"
kind = "numeric"
side = "pair"
table = "events"
transform = "log1p"
available = "never"
[[feature]]
name = "price_level"
kind = "numeric"
side = "pair"
table = "events"
column = "price"
transform = "quantile"
buckets = 4
available = "never"
[[feature]]
name = "last_likes"
kind = "history"
side = "user"
events = "like"
length = 5
available = "recall"
"""
STATISTICS = """
[[feature]]
name = "item_rate"
kind = "statistic"
side = "item"
keys = ["item"]
value = "like"
aggregate = "mean"
available = "rank"
[[feature]]
name = "user_tag_recency"
kind = "statistic"
side = "pair"
keys = ["user", "item.tags"]
aggregate = "recency"
available = "rank"
[[feature]]
name = "device_tag_buys"
kind = "statistic"
side = "pair"
keys = ["context.device", "item.tags"]
value = "buy"
aggregate = "sum"
window = "20s"
available = "rank"
[[feature]]
name = "user_count"
kind = "statistic"
side = "user"
keys = ["user"]
aggregate = "count"
available = "rank"
"""


def rows(seed: int, count: int) -> pl.DataFrame:
    """Raw events in no order: ties in time, requests that others have too, missing values, text and numbers."""
    rng = np.random.default_rng(seed)
    price = rng.integers(0, 400, count) / 4
    return pl.DataFrame(
        {
            "user": [f"u{code}" for code in rng.integers(0, 12, count)],
            "item": rng.integers(100, 115, count),
            "time": rng.integers(1_000, 1_060, count),
            "request": [f"r{code:02d}" for code in rng.integers(0, 25, count)],
            "place": rng.integers(0, 5, count),
            "rating": rng.integers(1, 6, count),
            "bought": rng.integers(0, 2, count) == 1,
            "device": np.array(["phone", "tablet", "tv", "watch", ""])[rng.integers(0, 5, count)].tolist(),
            "shelf": rng.integers(-1, 3, count),
            "hour": pl.Series(rng.integers(0, 24, count) + rng.random(count)).set(
                pl.Series(rng.random(count) < 0.1), None
            ),
            "price": pl.Series(price).set(pl.Series(rng.random(count) < 0.1), None),
            "part": np.array(PARTS)[rng.choice(3, count, p=[0.6, 0.2, 0.2])].tolist(),
        }
    ).with_columns(pl.col("device").replace({"": None}))


def write_csv(folder: Path, events: pl.DataFrame) -> str:
    events.with_columns(pl.col("bought").cast(pl.Int8)).write_csv(folder / "events.csv", separator=";")
    return 'file = "events.csv"\nseparator = ";"'


def write_hive(folder: Path, events: pl.DataFrame) -> str:
    """As Spark writes a partitioned table, with its markers and checksums."""
    for (shelf,), part in events.partition_by("shelf", as_dict=True, include_key=False).items():
        inside = folder / "events" / f"shelf={shelf}"
        inside.mkdir(parents=True)
        half = len(part) // 2
        for number, piece in enumerate((part[:half], part[half:])):
            piece.write_parquet(inside / f"part-{number:05d}-c000.snappy.parquet", compression="snappy")
        (inside / ".part-00000-c000.snappy.parquet.crc").write_bytes(b"crc\0\0\0\0\1")
    (folder / "events" / "_SUCCESS").touch()
    return 'file = "events"\nformat = "parquet"'


def write_ndjson(folder: Path, events: pl.DataFrame) -> str:
    events.write_ndjson(folder / "events.ndjson")
    return 'file = "events.ndjson"\nformat = "ndjson"'


def write_parts(folder: Path, events: pl.DataFrame) -> str:
    for (part,), piece in events.partition_by("part", as_dict=True).items():
        piece.with_columns(pl.col("bought").cast(pl.Int8)).write_csv(folder / f"{part}.csv")
    names = ", ".join(f'{part} = "{part}.csv"' for part in PARTS if (folder / f"{part}.csv").exists())
    return f"files = {{ {names} }}"


def written(
    folder: Path,
    events: pl.DataFrame,
    *,
    write: Callable[[Path, pl.DataFrame], str] = write_csv,
    split: str = "per-user-time",
    roles: str = 'time = "time"',
    features: str = FEATURES + STATISTICS,
    storage: str = "",
    more: str = "",
) -> tuple[DatasetDefinition, Path]:
    """The data set's files and its definition, of layout "memory" unless ``storage`` says otherwise."""
    folder.mkdir(exist_ok=True)
    if not any(folder.iterdir()):
        (folder / "source.txt").write_text(write(folder, events))
        users = events["user"].unique().sort()
        ages = [str(20 + place) if place % 4 else "" for place in range(len(users))]
        (folder / "users.csv").write_text(
            "user,age\n" + "".join(f"{u},{a}\n" for u, a in zip(users, ages, strict=True))
        )
        tags = ["x|y", "y", "", "z|x"]
        (folder / "items.csv").write_text("item,tags\n" + "".join(f"{i},{tags[i % 4]}\n" for i in range(100, 118)))
    toml = folder / f"toy{len(list(folder.glob('toy*.toml')))}.toml"
    source = (folder / "source.txt").read_text()
    text = TABLES.format(path=folder, events=source, roles=roles, split=SPLITS[split], storage=storage)
    toml.write_text(text + features + more)
    definition, _ = load_dataset_definition(toml)
    return definition, folder


def stream(bucket_rows: int) -> str:
    return f'[storage]\nlayout = "stream"\nbucket_rows = {bucket_rows}\n'


def log_of(prepared: Path) -> pl.DataFrame:
    log = prepared / "log"
    if not log.is_dir():
        return pl.read_parquet(prepared / "events.parquet")
    return pl.DataFrame({name: np.load(column_path(log, name)) for name in column_names(log)})


def meta_of(prepared: Path) -> dict[str, Any]:
    meta = json.loads((prepared / "meta.json").read_text())
    return {key: value for key, value in meta.items() if key != "sha256"}


def assert_same(memory: Path, streamed: Path) -> None:
    """The law."""
    for name in ("users", "items", "vocabulary"):
        one, other = (pl.read_parquet(prepared / f"{name}.parquet") for prepared in (memory, streamed))
        assert one.equals(other), name
        assert one.schema == other.schema, name
    one, other = log_of(memory), log_of(streamed)
    assert set(one.columns) == set(other.columns)
    for name in one.columns:
        assert one[name].dtype == other[name].dtype, name
        assert one[name].equals(other[name]), (name, one[name], other[name])
    assert meta_of(memory) == meta_of(streamed)
    assert_stream_is_the_log(streamed, one)


def assert_stream_is_the_log(streamed: Path, log: pl.DataFrame) -> None:
    """Every row of the log stands once in the files of its part, sorted by time, then row."""
    assert not (streamed / "spare").exists()
    for code, part in enumerate(PARTS):
        frame = pl.read_parquet(streamed / "events" / f"part={part}" / "*.parquet", hive_partitioning=False)
        assert frame.equals(frame.sort("time", "row"))
        expected = log.with_row_index("row").filter(pl.col("part") == code).drop("part").cast({"row": pl.Int64})
        assert frame.sort("row").select(expected.columns).equals(expected), part


def both(folder: Path, events: pl.DataFrame, bucket_rows: int, **keys: Any) -> tuple[Path, Path]:
    definitions = [written(folder, events, storage=storage, **keys) for storage in ("", stream(bucket_rows))]
    memory, streamed = (prepare(definition, base=base) for definition, base in definitions)
    assert memory != streamed
    return memory, streamed


@pytest.mark.parametrize("requests", [False, True], ids=["events", "requests"])
@pytest.mark.parametrize("split", ["per-user-time", "leave-last-out", "time"])
@pytest.mark.parametrize("write", [write_csv, write_hive], ids=["csv", "hive"])
def test_the_layouts_agree(tmp_path: Path, split: str, requests: bool, write: Callable[..., str]) -> None:
    roles = 'time = "time"' + ('\nrequest = "request"' if requests else "")
    assert_same(*both(tmp_path / "toy", rows(1, 260), 60, write=write, split=split, roles=roles))


@pytest.mark.parametrize("split", ["files", "hold-out-last", "hold-out-random"])
@pytest.mark.parametrize("source", ["files", "column"])
@pytest.mark.parametrize("requests", [False, True], ids=["events", "requests"])
def test_the_layouts_agree_on_parts_that_the_set_brings(
    tmp_path: Path, split: str, source: str, requests: bool
) -> None:
    events = rows(2, 240)
    if split != "files":
        events = events.with_columns(pl.col("part").replace("valid", "train"))
    roles = 'time = "time"' + ('\nrequest = "request"' if requests else "")
    roles += '\npart = "part"' if source == "column" else ""
    write = write_parts if source == "files" else write_csv
    assert_same(*both(tmp_path / "toy", events, 60, write=write, split=split, roles=roles))


@pytest.mark.parametrize("split", ["per-user-time", "time"])
def test_the_layouts_agree_without_times(tmp_path: Path, split: str) -> None:
    assert_same(*both(tmp_path / "toy", rows(3, 150), 50, split=split, roles="", features=FEATURES))


@pytest.mark.parametrize("bucket_rows", [1, 7, 100_000])
def test_the_layouts_agree_whatever_the_buckets(tmp_path: Path, bucket_rows: int) -> None:
    """Down to a bucket a second, and a range a user; up to one of each."""
    assert_same(*both(tmp_path / "toy", rows(4, 60), bucket_rows, write=write_ndjson))


def test_the_layouts_agree_with_one_moment(tmp_path: Path) -> None:
    events = rows(5, 120).with_columns(time=pl.lit(77))
    assert_same(*both(tmp_path / "toy", events, 10))


def test_the_bar_ends_full(tmp_path: Path) -> None:
    definition, base = written(tmp_path / "toy", rows(7, 80), storage=stream(30))
    progress = Progress(disable=True)
    prepare(definition, base=base, progress=progress)
    (task,) = progress.tasks
    assert task.finished
    assert task.completed == task.total


def test_the_same_tensors_are_loaded(tmp_path: Path) -> None:
    memory, streamed = (load(prepared) for prepared in both(tmp_path / "toy", rows(6, 260), 60))
    assert memory.stream is None
    assert streamed.stream is not None
    assert (streamed.stream / "part=train").is_dir()
    row = torch.arange(50)
    for part in PARTS:
        requests = [dataset.requests_of(row, part=part) for dataset in (memory, streamed)]
        names = [feature.name for feature in memory.features]
        item = memory.events.item_N[row]
        one, other = (
            dataset.inputs(names, request, item, row, part=part, event_R=row)
            for dataset, request in zip((memory, streamed), requests, strict=True)
        )
        for name in one.user:
            assert torch.equal(one.user[name], other.user[name]), name
        for name in one.item:
            assert torch.equal(one.item[name], other.item[name]), name
    before = log_of(prepared := streamed.stream.parent)["user"]
    streamed.events.user_N[0] = 99  # a mapped tensor may be written to: in memory alone
    assert log_of(prepared)["user"].equals(before)

"""A source may be a file, a folder as Spark writes it, a pattern or a file in an archive."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cascade_kd.data.cache import cache_root
from cascade_kd.data.delimited import ROW
from cascade_kd.data.files import digests, source_files
from cascade_kd.data.readers import PART, read_table, scan_table
from cascade_kd.data.source import TableSource
from cascade_kd.errors import DataError


def source(**keys: Any) -> TableSource:
    return TableSource.model_validate(keys)


def names(folder: Path, **keys: Any) -> list[str]:
    return [file.path.name for file in source_files("events", source(**keys), folder)]


@pytest.fixture
def spark(tmp_path: Path) -> Path:
    """``events/`` as Spark writes it: three days in folders, one of them without a value, and what is no data."""
    days = {"2024-01-02": [3, 4], "2024-01-01": [1, 2], "__HIVE_DEFAULT_PARTITION__": [5]}
    for day, users in days.items():
        folder = tmp_path / "events" / f"dt={day}" / "kind=a%2Fb"
        folder.mkdir(parents=True)
        frame = pl.DataFrame({"user": users, "tags": [["x"]] * len(users)})
        frame.write_parquet(folder / "part-00000-3c2f.c000.snappy.parquet", compression="snappy")
        (folder / ".part-00000-3c2f.c000.snappy.parquet.crc").write_bytes(b"crc")
    (tmp_path / "events" / "_SUCCESS").write_bytes(b"")
    (tmp_path / "events" / "_temporary").mkdir()
    (tmp_path / "events" / "_temporary" / "half").write_bytes(b"half")
    empty = tmp_path / "events" / "dt=2024-01-01" / "kind=a%2Fb" / "part-00001-3c2f.c000.snappy.parquet"
    pl.DataFrame(schema={"user": pl.Int64, "tags": pl.List(pl.String)}).write_parquet(empty)
    return tmp_path


@pytest.mark.parametrize("file", ["events/", "events", "events/dt=*/*/*.parquet", "events/**/*.parquet"])
def test_partitioned_parquet(spark: Path, file: str) -> None:
    wanted = {"user": "[roles] user", "dt": "x", "kind": "y"}
    frame = read_table("events", source(file=file, format="parquet"), spark, wanted)
    assert frame[ROW].to_list() == [1, 2, 3, 4, 5]
    assert frame["user"].to_list() == [1, 2, 3, 4, 5]
    assert frame["dt"].to_list() == ["2024-01-01"] * 2 + ["2024-01-02"] * 2 + [None]
    assert set(frame["kind"]) == {"a/b"}
    scanned = scan_table("events", source(file=file, format="parquet"), spark).collect()
    assert scanned.select("user", "dt", "kind").equals(frame.select("user", "dt", "kind"))
    assert scanned["tags"].to_list() == [["x"]] * 5


def test_the_values_of_folders_are_part_of_the_digest(spark: Path) -> None:
    before = digests("events", source(file="events/", format="parquet"), spark)
    (spark / "events" / "dt=2024-01-02").rename(spark / "events" / "dt=2024-01-03")
    after = digests("events", source(file="events/", format="parquet"), spark)
    assert [file[2] for file in before] == [file[2] for file in after]  # the same bytes
    assert before != after


def test_numbers_in_folders_are_numbers(tmp_path: Path) -> None:
    for hour in (9, 10):
        (tmp_path / f"hour={hour}").mkdir()
        (tmp_path / f"hour={hour}" / "a.csv").write_text(f"a,b\n{hour},x\n")
    assert read_table("events", source(file="hour=*/a.csv"), tmp_path)["hour"].to_list() == [10, 9]  # by name
    (tmp_path / "c.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="different columns"):
        read_table("events", source(file="**/*.csv"), tmp_path)


def test_patterns_are_sorted_by_name_and_typed_together(tmp_path: Path) -> None:
    for name, rows in {"log_2.csv": "a,b\n007,2.5\n", "log_1.csv": "a,b\n1,1.50\n", "log.txt": "no"}.items():
        (tmp_path / name).write_text(rows)
    (tmp_path / "log_3.csv").write_bytes(b"")
    frame = read_table("events", source(file="log_*.csv"), tmp_path, {"b": "x", "a": "y"})
    assert frame["a"].to_list() == ["1", "007"]  # text, for one of them has a leading zero
    assert frame["b"].to_list() == [1.5, 2.5]
    (tmp_path / "log_3.csv").write_text("a,c\n1,2\n")
    with pytest.raises(DataError, match="differ in the columns b, c"):
        read_table("events", source(file="log_*.csv"), tmp_path)
    (tmp_path / "log_[1].csv").write_text("a,b\n8,9\n")
    assert names(tmp_path, file="log_[1].csv") == ["log_[1].csv"]  # a file of that very name
    (tmp_path / "log_[1].csv").unlink()
    assert names(tmp_path, file="log_[1].csv") == ["log_1.csv"]


def test_a_one_hot_field_is_one_over_all_files(tmp_path: Path) -> None:
    """One file alone has a single index of `weekend`, which would read as its values."""
    (tmp_path / "a").write_text("1 5:1 9:1\n0 6:1 8:1\n")
    (tmp_path / "b").write_text("1 6:1 9:1\n0 5:1 9:1\n")
    keys = {"format": "libsvm", "columns": ["label", "user", "weekend"]}
    frame = read_table("events", source(files={"train": "a", "test": "b"}, **keys), tmp_path)
    assert frame["weekend"].to_list() == [9, 8, 9, 9]
    assert frame[PART].to_list() == [0, 0, 2, 2]
    assert frame[ROW].to_list() == [1, 2, 1, 2]


def test_archives(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as zipped:
        zipped.writestr("all/log/a.csv", "a,b\n1,2\n")
        zipped.writestr("all/log/b.csv", "a,b\n3,4\n")
    with tarfile.open(tmp_path / "all.tgz", "w:gz") as tarred:
        entry = tarfile.TarInfo("log/a.csv")
        entry.size = 8
        tarred.addfile(entry, io.BytesIO(b"a,b\n1,2\n"))
    assert read_table("events", source(file="all.zip/all/log/a.csv"), tmp_path)["a"].to_list() == [1]
    assert read_table("events", source(file="all.zip/all/log/*.csv"), tmp_path)["a"].to_list() == [1, 3]
    assert read_table("events", source(file="all.tgz/log/a.csv"), tmp_path)["b"].to_list() == [2]
    assert len(list((cache_root() / "unpacked").iterdir())) == 2  # each once
    with pytest.raises(DataError, match=r"did you mean 'a\.csv'"):
        read_table("events", source(file="all.zip/all/log/a.cvs"), tmp_path)
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as zipped:
        zipped.writestr("../../out.csv", "a,b\n1,2\n")
    with pytest.raises(DataError, match=r"table 'events': .*bad\.zip: .*leaves the folder"):
        read_table("events", source(file="bad.zip/out.csv"), tmp_path)
    assert len(list((cache_root() / "unpacked").iterdir())) == 2


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "_SUCCESS").write_bytes(b"")
    (tmp_path / "log.csv").write_text("a,b\n")
    for file, words in {
        "events/": r"no file with rows in .*events; the folder holds: _SUCCESS",
        "lag_*.csv": r"no file matches .*lag_\*\.csv; the folder holds: events, log\.csv",
        "lag.csv": r"no file .*lag\.csv; .*did you mean 'log\.csv'",
        "log.csv": r"the table is empty",
    }.items():
        with pytest.raises(DataError, match=words):
            read_table("events", source(file=file), tmp_path)


def test_arrow(tmp_path: Path) -> None:
    frame = pl.DataFrame({"a": [1, 2], "b": ["x", "y"]}, schema_overrides={"b": pl.Categorical})
    frame.write_ipc(tmp_path / "t.feather", compression="lz4")
    assert read_table("events", source(file="t.feather", format="arrow"), tmp_path, {"b": "x"})["b"].to_list() == [
        "x",
        "y",
    ]
    (tmp_path / "t.feather").write_text("a,b\n")
    with pytest.raises(DataError, match="not readable as arrow"):
        read_table("events", source(file="t.feather", format="arrow"), tmp_path, {"b": "x"})
    frame.write_ipc(tmp_path / "t.feather")
    with pytest.raises(DataError, match="column 'c'"):
        read_table("events", source(file="t.feather", format="arrow"), tmp_path, {"c": "x"})


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_lines(tmp_path: Path, newline: str) -> None:
    (tmp_path / "t").write_bytes(newline.join(["\ufeff1 2 3", "", '4 "5', "", ""]).encode())
    frame = read_table("events", source(file="t", format="lines"), tmp_path)
    assert frame["line"].to_list() == ["1 2 3", "", '4 "5']
    assert frame["number"].to_list() == [1, 2, 3]
    (tmp_path / "t").write_bytes(newline.encode() * 3)
    with pytest.raises(DataError, match="empty"):
        read_table("events", source(file="t", format="lines"), tmp_path)
    (tmp_path / "t").write_bytes("é".encode("iso-8859-1"))
    assert read_table("events", source(file="t", format="lines", encoding="latin-1"), tmp_path)["line"][0] == "é"
    with pytest.raises(DataError, match=r"row 1: not utf-8 text"):
        read_table("events", source(file="t", format="lines"), tmp_path)

"""Every format reads the same table; what cannot be read is named by table, column and row."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_kd.data.delimited import ROW
from cascade_kd.data.readers import PART, read_table
from cascade_kd.data.source import TableSource
from cascade_kd.errors import DataError

WANTED = {"a": "[roles] user", "b": "[roles] item"}
CELL = st.text(st.characters(codec="utf-8", exclude_characters='\n\r"', exclude_categories=("Cc", "Cs")), max_size=8)


def read(folder: Path, content: bytes, wanted: dict[str, str] | None = None, **source: Any) -> pl.DataFrame:
    (folder / "t.txt").write_bytes(content)
    return read_table("events", TableSource(file="t.txt", **source), folder, wanted or WANTED)


def refusal(folder: Path, content: bytes, wanted: dict[str, str] | None = None, **source: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(folder, content, wanted, **source)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize("separator", [",", "\t", ";", "|", "::", "|||", " ", "§", "=>"])
@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_any_separator(tmp_path: Path, separator: str, header: bool, newline: str) -> None:
    rows = [["1", "x", "1.5"], ["22", "é", ""], ["3", "z:|;", "-2"]]
    text = newline.join(separator.join(row) for row in ([["a", "b", "c"]] if header else []) + rows) + newline
    if separator in ("|", ";"):
        text = text.replace("z:|;", "z")
        rows[2][1] = "z"
    columns = None if header else ["a", "b", "c"]
    frame = read(tmp_path, text.encode(), dict.fromkeys("abc", "x"), separator=separator, columns=columns)
    assert frame[ROW].to_list() == [1, 2, 3]
    assert frame["a"].to_list() == [1, 22, 3]
    assert frame["b"].to_list() == [row[1] for row in rows]
    assert frame["c"].to_list() == [1.5, None, -2.0]


@settings(deadline=None, max_examples=40)
@given(rows=st.lists(st.tuples(CELL, CELL), min_size=1, max_size=6), separator=st.sampled_from(["::", "||", "\t"]))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, rows: list[Any], separator: str) -> None:
    glue = separator[0]
    rows = [(f"v{left.replace(glue, '_')}", f"w{right.replace(glue, '_')}") for left, right in rows]
    content = "".join(f"{left}{separator}{right}\n" for left, right in rows).encode()
    frame = read(tmp_path_factory.mktemp("t"), content, separator=separator, columns=["a", "b"])
    assert frame.select("a", "b").rows() == rows


def test_encodings(tmp_path: Path) -> None:
    text = "a,b\n1,Fantômas\n2,Señor\n"
    latin = read(tmp_path, text.encode("iso-8859-1"), encoding="ISO-8859-1")
    assert latin["b"].to_list() == ["Fantômas", "Señor"]
    assert latin.equals(read(tmp_path, text.encode("utf-8-sig")))
    assert latin.equals(read(tmp_path, text.replace(",", "::").encode("latin-1"), encoding="latin-1", separator="::"))
    message = refusal(tmp_path, text.encode("iso-8859-1"))
    assert "row 1" in message
    assert 'encoding = "iso-8859-1"' in message


def test_quotes(tmp_path: Path) -> None:
    assert read(tmp_path, b'a,b\n1,"x,y"\n2,"two\nlines"\n')["b"].to_list() == ["x,y", "two\nlines"]
    assert read(tmp_path, b'a\tb\n1\t"x\n2\ty"\n', separator="\t", quote="")["b"].to_list() == ['"x', 'y"']
    assert 'quote = ""' in refusal(tmp_path, b'a,b\n1,"x\n2,y\n')


def test_types_hold_for_the_whole_column(tmp_path: Path) -> None:
    many = "".join(f"{n},{n}\n" for n in range(1, 2000))
    assert read(tmp_path, f"a,b\n{many}x,1\n".encode())["a"].dtype == pl.String
    assert read(tmp_path, f"a,b\n{many}1,1.5\n".encode())["b"].dtype == pl.Float64
    assert read(tmp_path, b"a,b\n1,01234\n2,99\n")["b"].to_list() == ["01234", "99"]
    assert read(tmp_path, b"a,b\n1,0\n2,0.5\n")["b"].to_list() == [0.0, 0.5]
    long = [2**64 - 1, 2**64 - 2]
    assert read(tmp_path, f"a,b\n1,{long[0]}\n2,{long[1]}\n".encode())["b"].to_list() == [str(x) for x in long]
    assert math.isnan(read(tmp_path, b"a,b\n1,NaN\n")["b"][0])


@pytest.mark.parametrize("tail", [b"", b"\n", b"\n\n\n", b"\r\n\r\n"])
def test_blank_lines_at_the_end_are_no_rows(tmp_path: Path, tail: bytes) -> None:
    assert read(tmp_path, b"a,b\n1,2\n3," + tail)["a"].to_list() == [1, 3]


def test_typed_formats(tmp_path: Path) -> None:
    frame = pl.DataFrame({"b": [1.5, None], "a": [1, 2], "tags": [["x"], ["x", "y"]]})
    wanted = dict.fromkeys(["a", "b", "tags"], "x")
    frame.write_parquet(tmp_path / "t.txt")
    parquet = read(tmp_path, (tmp_path / "t.txt").read_bytes(), wanted, format="parquet")
    assert parquet.rows() == [(1, 1, 1.5, ["x"]), (2, 2, None, ["x", "y"])]
    lines = b'{"a": 1, "b": 1.5, "tags": ["x"]}\n{"a": 2, "b": null, "tags": ["x", "y"]}\n'
    assert read(tmp_path, lines, wanted, format="ndjson").equals(parquet)


def test_libsvm(tmp_path: Path) -> None:
    frame = read(
        tmp_path,
        b"-1 204:1 4798:1 7:0.25\n1 42:1 4798:1 7:3\n",
        dict.fromkeys(["label", "f1", "f3"], "x"),
        format="libsvm",
    )
    assert frame.rows() == [(1, -1, 204, 0.25), (2, 1, 42, 3.0)]
    named = read(tmp_path, b"1 5:1 6:1\n0 6:1 5:1\n", format="libsvm", columns=["y", "a", "b"])
    assert named.rows() == [(1, 5, 6), (2, 6, 5)]
    assert "row 2" in refusal(tmp_path, b"1 5:1 6:1\n0 6:1\n", format="libsvm", columns=["y", "a", "b"])
    assert "row 2: 'x' is not" in refusal(tmp_path, b"1 5:1 6:1\n0 6:1 x\n", format="libsvm", columns=["y", "a", "b"])
    mixed = refusal(tmp_path, b"1 5:1 6:1\n0 6:2 6:1\n", format="libsvm", columns=["y", "a", "b"])
    assert "column 'a'" in mixed


def test_three_files(tmp_path: Path) -> None:
    for number, part in enumerate(["train", "valid", "test"]):
        (tmp_path / part).write_text("a,b\n" + f"{number},9\n" * (number + 1))
    source = TableSource(files={"train": "train", "valid": "valid", "test": "test"})
    frame = read_table("events", source, tmp_path, WANTED)
    assert frame["a"].to_list() == frame[PART].to_list() == [0, 1, 1, 2, 2, 2]
    assert frame[ROW].to_list() == [1, 1, 2, 1, 2, 3]


@pytest.mark.parametrize(
    ("content", "source", "words"),
    [
        (b"", {}, ["table 'events'", "empty"]),
        (b"a,b\n", {}, ["table 'events'", "empty"]),
        (b"a,c\n1,2\n", {}, ["column 'b'", "wanted by [roles] item", "there are: a, c"]),
        (b"a\tb\n1\t2\n", {}, ["separator", "1 field", "a\\tb", 'try separator = "\\t"']),
        (b"a::b\n1::2\n", {"separator": ","}, ['try separator = "::"']),
        (b"1::2\n", {"separator": ":", "columns": ["a", "b"]}, ["3 fields", 'try separator = "::"']),
        (b"1,2,3\n", {"columns": ["a", "b"]}, ["row 1", "3 fields", "`columns` names 2"]),
        (b"a,b,a\n1,2,3\n", {}, ["names column 'a' twice"]),
        (b"a,b\n1,2\n3\n4,5\n", {}, ["row 2", "1 field where there are 2"]),
        (b"a,b\n1,2\n3,4,5\n", {}, ["row 2", "3 fields where there are 2"]),
        (b"a,b,c\n1,2,3\n3,4,5,6\n", {}, ["row 2", "4 fields where there are 3"]),  # c is not wanted
        (b'a,b,c\n1,"2",3\n3,4,5,6\n', {}, ["row 2", "4 fields where there are 3"]),
        (b"1::2\n3::4::5\n", {"separator": "::", "columns": ["a", "b"]}, ["row 2", "3 fields where there are 2"]),
        (b"1::2\n3::4\n5\n", {"separator": "::", "columns": ["a", "b"]}, ["row 3", "1 field where there are 2"]),
        (b'{"a": 1, "b": 2}\n{"a": 1, b}\n', {"format": "ndjson"}, ["row 2", "ndjson"]),
        (b'{"a": 1}\n', {"format": "ndjson"}, ["column 'b'"]),
        (b"PAR0", {"format": "parquet"}, ["not readable as parquet"]),
    ],
)
def test_refusals(tmp_path: Path, content: bytes, source: dict[str, Any], words: list[str]) -> None:
    message = refusal(tmp_path, content, **source)
    assert "table 'events'" in message
    for word in words:
        assert word in message


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text("x")
    with pytest.raises(DataError, match=r"did you mean 'ratings\.dat'"):
        read_table("events", TableSource(file="rating.dat"), tmp_path, WANTED)
    with pytest.raises(DataError, match="no file"):
        read_table("events", TableSource(file="nowhere/rating.dat"), tmp_path, WANTED)

"""What is wrong with raw events is said alike by both layouts, wherever in the file it stands."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_kd.config import load_dataset_definition
from cascade_kd.data import DatasetDefinition, prepare
from cascade_kd.data.delimited import typed
from cascade_kd.data.stream import layout
from cascade_kd.data.stream.columns import column_path, create, order_statistic, read_rows, write_at
from cascade_kd.data.stream.raw import TextTraits
from cascade_kd.errors import ConfigError, DataError

LINES = [f"u{n % 7},{n % 5},{1000 + n * 7 % 50},{1 + n % 5},{n / 4}" for n in range(60)]
DEFINITION = """
name = "toy"
licence = "made up"
path = "{path}"
[tables.events]
file = "{file}"
{columns}
{storage}
[roles]
user = "user"
item = "item"
time = "time"
[labels]
like = "{label}"
[[feature]]
name = "price"
kind = "numeric"
side = "pair"
table = "events"
available = "never"
{more}
"""
COLUMNS = 'columns = ["user", "item", "time", "rating", "price"]'
STREAM = '[storage]\nlayout = "stream"\nbucket_rows = 16\n'


def definition_of(folder: Path, storage: str, **keys: str) -> DatasetDefinition:
    values = {"file": "events.csv", "label": "rating >= 4", "more": "", "columns": COLUMNS, **keys}
    toml = folder / f"{len(list(folder.glob('*.toml')))}.toml"
    toml.write_text(DEFINITION.format(path=folder, storage=storage, **values))
    return load_dataset_definition(toml)[0]


def said(folder: Path, storage: str) -> str:
    """The message of the error, without the number of rows that it counts."""
    with pytest.raises(DataError) as caught:
        prepare(definition_of(folder, storage), base=folder)
    return re.sub(r"\d+ rows", "? rows", str(caught.value))


def line(number: int, **fields: str) -> Callable[[list[str]], list[str]]:
    """Line ``number`` (from 1) with other fields."""

    def changed(lines: list[str]) -> list[str]:
        names = ["user", "item", "time", "rating", "price"]
        row = dict(zip(names, lines[number - 1].split(","), strict=True)) | fields
        return [*lines[: number - 1], ",".join(row.values()), *lines[number:]]

    return changed


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (line(50, user=""), "column 'user', row 50"),
        (line(50, item="-3"), "column 'item', row 50"),
        (line(3, item="2.5"), "column 'item', row 3"),
        (line(44, time="nonsense"), "column 'time'"),
        (line(44, time="99999999999"), "years of seconds"),
        (line(50, rating=""), "column 'like', row 50"),
        (line(37, price="cheap"), "column 'price', row 37"),
        (line(58, price="inf"), "column 'price', row 58"),
        (lambda lines: [*lines[:40], "u1,2,3", *lines[40:]], "row 41: the row has 3 fields where there are 5 columns"),
        (lambda lines: [*lines[:40], "", *lines[40:]], "row 41: the row has 1 field where there are 5 columns"),
        (lambda lines: [*lines[:40], f"{lines[40]},6", *lines[41:]], "row 41: the row has 6 fields"),
        (lambda lines: [], "finds 1 field in the first line"),
        (lambda lines: ["", ""], "finds 1 field in the first line"),
        (lambda lines: [x.replace(",", ";") for x in lines], 'try separator = ";"'),
        (lambda lines: lines[:2], "part empty"),
    ],
)
def test_mistakes_are_said_alike(tmp_path: Path, change: Callable[[list[str]], list[str]], place: str) -> None:
    (tmp_path / "events.csv").write_text("\n".join(change(LINES)) + "\n")
    message = said(tmp_path, STREAM)
    assert place in message
    assert message == said(tmp_path, "")


def test_no_rows_are_said_alike(tmp_path: Path) -> None:
    (tmp_path / "events.csv").touch()
    assert "the table is empty" in (message := said(tmp_path, STREAM))
    assert message == said(tmp_path, "")
    (tmp_path / "events.csv").unlink()
    frame = pl.DataFrame(schema=dict.fromkeys(["user", "item", "time", "rating", "price"], pl.Int64))
    frame.write_parquet(tmp_path / "none.parquet")
    source = {"file": "none.parquet", "columns": 'format = "parquet"'}
    for storage in (STREAM, ""):
        with pytest.raises(DataError, match="the table is empty"):
            prepare(definition_of(tmp_path, storage, **source), base=tmp_path)


def test_blank_lines_at_the_end_and_missing_values_are_no_mistakes(tmp_path: Path) -> None:
    lines = line(60, price="")(line(16, price="")(LINES))
    (tmp_path / "events.csv").write_text("\n".join(lines) + "\n\n\r\n\n")
    prepared = prepare(definition_of(tmp_path, STREAM), base=tmp_path)
    meta = json.loads((prepared / "meta.json").read_text())
    assert sum(meta["counts"]["rows"].values()) == 60
    assert meta["counts"]["missing"] == {"price": 2}


def test_what_the_layout_cannot_have_is_refused_when_the_file_is_checked(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("\n".join(LINES))

    def refused(storage: str = STREAM, **keys: str) -> str:
        with pytest.raises(ConfigError) as caught:
            definition_of(tmp_path, storage, **keys)
        return str(caught.value)

    assert "leave `min_user_events` out" in refused(more="[filter]\nmin_user_events = 5")
    assert "a separator of one character" in (message := refused(f'separator = "::"\n{STREAM}'))
    assert re.search(r"\.toml:\d+: tables\.events\.separator", message)
    assert "convert the file" in refused(f'encoding = "iso-8859-1"\n{STREAM}')
    assert "reads more than its own row" in refused(label="rating > AVG(rating)")
    assert "belongs to layout" in refused("[storage]\nbucket_rows = 5")
    assert definition_of(tmp_path, STREAM, label="rating > LEAST(item, 3)")


@pytest.mark.parametrize("error", [KeyboardInterrupt, DataError("no")])
def test_nothing_is_left_of_a_preparation_that_did_not_end(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    (tmp_path / "events.csv").write_text("\n".join(LINES))

    def interrupted(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(layout, "write_stream", interrupted)
    with pytest.raises(type(error) if isinstance(error, DataError) else KeyboardInterrupt):
        prepare(definition_of(tmp_path, STREAM), base=tmp_path)
    assert list((cache / "datasets").iterdir()) == []


texts = st.one_of(
    st.none(),
    st.integers(-(10**20), 10**20).map(str),
    st.floats(allow_nan=False).map(str),
    st.sampled_from(["", "007", "1e5", "+3", "x", "12345678901234567.5"]),
)


@settings(deadline=None, max_examples=200)
@given(values=st.lists(texts, max_size=8), cut=st.integers(0, 8))
def test_text_is_typed_as_the_whole_column(values: list[str | None], cut: int) -> None:
    text = pl.Series("x", values, pl.String)
    traits = TextTraits.of(text[:cut]).merged(TextTraits.of(text[cut:]))
    assert traits.dtype == typed(text).dtype
    assert text.cast(traits.dtype).equals(typed(text))


@settings(deadline=None, max_examples=60)
@given(values=st.lists(st.integers(-(2**40), 2**40) | st.integers(0, 3), min_size=1, max_size=30), data=st.data())
def test_order_statistics_and_pieces_of_columns(
    tmp_path_factory: pytest.TempPathFactory, values: list[int], data: st.DataObject
) -> None:
    path = column_path(tmp_path_factory.mktemp("column"), "feature:x.y")
    create(path, np.int64, len(values))
    cut = data.draw(st.integers(0, len(values)))
    write_at(path, cut, np.array(values[cut:]))
    write_at(path, 0, np.array(values[:cut]))
    assert np.load(path).tolist() == values
    assert read_rows(path, cut, len(values)).tolist() == values[cut:]
    rank = data.draw(st.integers(0, len(values) - 1))
    assert order_statistic(path, rank) == sorted(values)[rank]

"""Tables that sql makes: their rows are right, come in one order, and what fails is said."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_kd.data import DatasetDefinition, prepare
from cascade_kd.data.delimited import ROW
from cascade_kd.data.derived import derived_tables
from cascade_kd.data.query import is_ordered, named_in, query_problems, said, table_problems, totally_ordered
from cascade_kd.data.source import TableSource
from cascade_kd.errors import DataError

FILES = {"a": {"file": "a.csv"}, "b": {"file": "b.csv"}}


def derive(folder: Path, query: str, *columns: str, sources: dict[str, object] | None = None) -> pl.DataFrame:
    read = {name: TableSource.model_validate(keys) for name, keys in (sources or FILES).items()}
    wanted = {"events": dict.fromkeys(columns, "a test")}
    return derived_tables({"events": query}, read, folder, wanted)["events"]


@settings(deadline=None, max_examples=25)
@given(
    rows=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.sampled_from("xyz")), min_size=2, max_size=12),
    order=st.sampled_from(["", "ORDER BY u", "ORDER BY u DESC", "ORDER BY u -- the end", "ORDER BY u LIMIT 5"]),
    data=st.data(),
)
def test_the_order_of_the_files_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int, str]], order: str, data: st.DataObject
) -> None:
    """UNION of two files whose rows are shuffled, and swapped between the files."""
    folder = tmp_path_factory.mktemp("t")
    query = f"SELECT u, i, w FROM a UNION ALL SELECT u, i, w FROM b {order}"
    frames = []
    for shuffled in (rows, data.draw(st.permutations(rows))):
        cut = len(rows) // 2
        for name, part in {"a": shuffled[:cut], "b": shuffled[cut:]}.items():
            (folder / f"{name}.csv").write_text("u,i,w\n" + "".join(f"{u},{i},{w}\n" for u, i, w in part))
        frames.append(derive(folder, query, "w", "u"))
    assert frames[0].equals(frames[1])
    down = "DESC" in order
    want = sorted(rows, key=lambda row: (-row[0] if down else row[0], *row[1:]))[: 5 if "LIMIT" in order else None]
    assert frames[0].select("u", "w").rows() == [(u, w) for u, _, w in want]
    assert frames[0][ROW].to_list() == list(range(1, len(want) + 1))


def test_parts_lines_and_lists(tmp_path: Path) -> None:
    (tmp_path / "train").write_text("1 7 8\n2 7\n3\n")
    (tmp_path / "test").write_text("1 9\n2 8 9\n")
    sources = {"lines": {"files": {"train": "train", "test": "test"}, "format": "lines"}}
    query = """
    SELECT part, LEFT(line, STRPOS(line, ' ') - 1) AS u,
        CAST(UNNEST(STRING_TO_ARRAY(SUBSTR(line, STRPOS(line, ' ') + 1), ' ')) AS BIGINT) AS i
    FROM lines WHERE line LIKE '% _%' ORDER BY part = 'test', u DESC
    """
    frame = derive(tmp_path, query, "part", "u", "i", sources=sources)
    assert frame.select("part", "u", "i").rows() == [
        ("train", "2", 7), ("train", "1", 7), ("train", "1", 8), ("test", "2", 8), ("test", "2", 9), ("test", "1", 9),
    ]  # fmt: skip


def test_parquet_is_read_where_it_is_asked(tmp_path: Path) -> None:
    pl.DataFrame({"u": [2, 1], "l": [[2, 1], [3]], "w": [None, "x"]}).write_parquet(tmp_path / "p")
    sources = {"p": {"file": "p", "format": "parquet"}, "unread": {"file": "nowhere.csv"}}
    assert derive(tmp_path, "SELECT * FROM p", "l", sources=sources)["l"].to_list() == [[3], [2, 1]]
    joined = "SELECT x.u, y.w FROM p AS x JOIN p AS y ON x.u = y.u ORDER BY x.u"
    assert derive(tmp_path, joined, "w", sources=sources)["w"].to_list() == ["x", None]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("SELECT x FROM a", ["table 'events': its sql fails", '"x"', "a (u, user)"]),
        ("SELECT user FROM a", ["""write "user", in double quotes"""]),
        ("SELECT u + user FROM a", ["""write "user", in double quotes"""]),
        ("SELECT CAST(\"user\" AS BIGINT) AS u FROM a", ["its sql fails"]),
        ("SELECT u FROM a WHERE u > 5", ["gives no rows"]),
        ("SELECT u AS v FROM a", ["column 'u'", "wanted by a test", "there are: v"]),
        ("SELECT u FROM c", ["no file", "c.csv"]),
        ("SELECT u FROM d", ["table 'd'", "not readable as parquet"]),
    ],
)  # fmt: skip
def test_what_fails_is_said(tmp_path: Path, query: str, words: list[str]) -> None:
    (tmp_path / "a.csv").write_text("u,user\n1,x\n2,y\n")
    (tmp_path / "d").write_text("no parquet")
    with pytest.raises(DataError) as caught:
        derive(
            tmp_path,
            query,
            "u",
            sources={"a": {"file": "a.csv"}, "c": {"file": "c.csv"}, "d": {"file": "d", "format": "parquet"}},
        )
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_text_of_a_query() -> None:
    assert is_ordered("WITH t AS (SELECT 1) SELECT * FROM t order\n by a")
    assert not is_ordered("SELECT ROW_NUMBER() OVER (ORDER BY a), 'ORDER BY b' FROM t -- ORDER BY c")
    assert not is_ordered('SELECT "ORDER" , by FROM (SELECT * FROM t ORDER BY a) /* ORDER BY a */')
    assert totally_ordered("SELECT * FROM t ORDER BY f(a, 1) DESC -- so", ["a", 'b"c']) == (
        'SELECT * FROM t ORDER BY f(a, 1) DESC, "a", "b""c" -- so'
    )
    assert totally_ordered("SELECT * FROM t ORDER BY a LIMIT 3", ["a"]) == 'SELECT * FROM t ORDER BY a, "a" LIMIT 3'
    assert totally_ordered("SELECT * FROM t", ["a"]) == "SELECT * FROM t"
    assert named_in("SELECT 'views' FROM \"carts\" JOIN buys -- test", ["views", "carts", "buys", "test"]) == [
        "carts",
        "buys",
    ]
    assert query_problems("SELECT a FROM t JOIN u USING (a)") == []
    assert "no source or file table 'u'" in table_problems("SELECT a FROM t JOIN u USING (a)", ["t"])[0]
    assert table_problems("SELECT user FROM t", ["t"]) == [said(Exception("unsupported function 'user'"))]


def test_a_data_set_of_sql(tmp_path: Path) -> None:
    """Events and items of one raw log; the same times, and rows in any order, give the same log."""
    rows = [(u, i, 10 * (i % 3), s) for u in range(6) for i in range(5) for s in [(u * i) % 4]]
    keys = {
        "name": "derived",
        "licence": "ours",
        "sources": {"log": {"file": "log.csv"}},
        "tables": {
            "events": {"sql": 'SELECT "user", item, t, MAX(s) AS s FROM log GROUP BY "user", item, t'},
            "items": {"sql": "SELECT item, MAX(s) AS best FROM log GROUP BY item"},
        },
        "roles": {"user": "user", "item": "item", "time": "t"},
        "labels": {"good": "s >= 2"},
        "feature": [{"name": "best", "kind": "numeric", "side": "item", "available": "recall"}],
        "split": {"kind": "leave-last-out"},
        "expect": {"events": 30, "users": 6, "items": 5},
    }
    definition = DatasetDefinition.model_validate(keys)
    made = []
    for order in (rows, rows[::-1], sorted(rows, key=lambda row: row[3])):
        text = "".join(f"{u},{i},{t},{s}\n" for u, i, t, s in order)
        (tmp_path / "log.csv").write_text("user,item,t,s\n" + text)
        made.append(prepare(definition, base=tmp_path))
    assert len(set(made)) == 3  # by the content of the file
    for name in ("events", "items", "users", "vocabulary"):
        tables = [pl.read_parquet(folder / f"{name}.parquet") for folder in made]
        assert tables[0].equals(tables[1])
        assert tables[0].equals(tables[2])

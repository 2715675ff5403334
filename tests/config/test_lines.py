from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from cascade_kd.config.lines import KeyPath, line_index, read_document
from cascade_kd.errors import ConfigError

# Every key carries the number of its own line as (part of) its value where it can.
NASTY = {
    "tables": (
        '# comment [not.a.table]\ntitle = "x"\n\n[a]\nk = 1\n[a.b]\nk = 2\n[c.d.e]\nk = 3\n[c]\nk = 4\n',
        {("title",): 2, ("a",): 4, ("a", "k"): 5, ("a", "b"): 6, ("c", "d", "e", "k"): 9, ("c",): 10, ("c", "k"): 11},
    ),
    "arrays of tables": (
        "[[stage]]\nname='a'\n[stage.model]\nx=1\n[[stage]]\nname='b'\n[[stage.samples]]\nf=1\n[[stage.samples]]\n"
        "f=2\n[stage.model]\nx=2\n[other]\ny=1\n",
        {
            ("stage",): 1,
            ("stage", 0): 1,
            ("stage", 0, "model", "x"): 4,
            ("stage", 1): 5,
            ("stage", 1, "name"): 6,
            ("stage", 1, "samples", 0): 7,
            ("stage", 1, "samples", 1, "f"): 10,
            ("stage", 1, "model"): 11,
            ("stage", 1, "model", "x"): 12,
            ("other", "y"): 14,
        },
    ),
    "dotted and quoted keys": (
        'a.b.c = 1\na.b.d = 2\n"q.r" . \'s t\' = 3\n["x\\u0041]" . y]\nk = 4\n3.14 = 5\n',
        {
            ("a",): 1,
            ("a", "b"): 1,
            ("a", "b", "d"): 2,
            ("q.r", "s t"): 3,
            ("xA]", "y"): 4,
            ("xA]", "y", "k"): 5,
            ("xA]", "y", "3", "14"): 6,
        },
    ),
    "inline tables and long arrays": (
        "s = [ # ] not here\n  { from = 'a' }, # {\n\n  { from = \"b]\", n = [1,\n 2] },\n]\n"
        "t = { u.v = 1, w = { x = 2 } }\n",
        {
            ("s",): 1,
            ("s", 0): 2,
            ("s", 0, "from"): 2,
            ("s", 1, "from"): 4,
            ("s", 1, "n"): 4,
            ("s", 1, "n", 1): 5,
            ("t", "u", "v"): 7,
            ("t", "w", "x"): 7,
        },
    ),
    "strings": (
        'a = """one\n[b]\nc = 1 \\"""\n""""\nd = \'\'\'\n\'\' # no comment\n\'\'\'\'\n'
        'e = "\\\\"\nf = \'\\\'\ng = "#"\nh = 1\n',
        {("a",): 1, ("d",): 5, ("e",): 8, ("f",): 9, ("g",): 10, ("h",): 11},
    ),
    "scalars": (
        "a = 1979-05-27 07:32:00\nb = 1979-05-27T00:32:00.999-07:00\nc = +1_000.5e-3\nd = inf\ne = true# c\nf = [1,\n"
        "1979-05-27 07:32:00,2]\ng = 0xdead_beef\n",
        {("a",): 1, ("b",): 2, ("c",): 3, ("d",): 4, ("e",): 5, ("f", 1): 7, ("f", 2): 7, ("g",): 8},
    ),
    "windows line ends, no end of line": ("a = 1\r\n[b]\r\nc = '''\r\nx'''\r\nd = 2", {("b", "c"): 3, ("b", "d"): 5}),
    "nested arrays of tables": (
        "[[a]]\n[[a.b]]\nx=1\n[[a.b]]\nx=2\n[[a]]\n[[a.b]]\n[a.b.c]\nx=3\n",
        {("a", 0, "b", 1, "x"): 5, ("a", 1, "b", 0): 7, ("a", 1, "b", 0, "c", "x"): 9},
    ),
    "empty things": (
        "a = []\nb = {}\nc = ''\nd = \"\"\n[e]\n[[f]]\ng = [[],\n[]]\n",
        {("e",): 5, ("f", 0): 6, ("f", 0, "g", 1): 8},
    ),
    "nothing": ("# only a comment", {}),
}


def paths_of(data: Any, path: KeyPath = ()) -> set[KeyPath]:
    """Every path of parsed data, the oracle for which paths there are."""
    if isinstance(data, dict):
        inner = data.items()
    elif isinstance(data, list):
        inner = dict(enumerate(data)).items()
    else:
        return {path}
    return {path} | {deeper for key, value in inner for deeper in paths_of(value, (*path, key))}


@pytest.mark.parametrize(("text", "wanted"), NASTY.values(), ids=NASTY)
def test_lines_of_keys(text: str, wanted: dict[KeyPath, int]) -> None:
    lines = line_index(text)
    assert {path: lines.get(path) for path in wanted} == wanted


@pytest.mark.parametrize(("text", "wanted"), NASTY.values(), ids=NASTY)
def test_the_index_has_exactly_the_paths_of_the_data(text: str, wanted: dict[KeyPath, int]) -> None:
    assert set(line_index(text)) == paths_of(tomllib.loads(text)) - {()}


def test_shipped_files_are_indexed(repository: Path) -> None:
    files = [*repository.glob("stages/**/*.toml"), *repository.glob("datasets/*.toml")]
    files += [path for path in repository.glob("benchmarks/**/*.toml") if "results" not in path.parts]
    assert files
    for path in files:
        document = read_document(path)
        assert set(document.lines) == paths_of(document.data) - {()}
        rows = path.read_text("utf-8").splitlines()
        for key, line in document.lines.items():
            name = str(key[0])
            if len(key) == 1 and not isinstance(document.data[name], (dict, list)):
                assert rows[line - 1].startswith(name), (path, key)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a = 1\nb = foo\n", 2, "Invalid value"),
        ("a = 1\na = 2\n", 2, "Cannot overwrite a value"),
        ("[a]\nb\n", 2, "Expected '='"),
        ("a = [1,\n2\n", 2, "at the end of the file"),
        ('a = "x\n', 1, "Illegal character"),
    ],
)
def test_syntax_errors_name_file_and_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_document(path)
    (problem,) = caught.value.problems
    assert (problem.file, problem.line) == (path.as_posix(), line)
    assert words in problem.message
    assert text.splitlines()[line - 1] in problem.message


def test_a_byte_order_mark_is_skipped_and_other_encodings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(b"\xef\xbb\xbfa = 1\n")
    assert read_document(path).data == {"a": 1}
    path.write_bytes(b"a = 1\nb = '\xe9'\n")
    with pytest.raises(ConfigError, match=r"a\.toml:2: not UTF-8 text"):
        read_document(path)
    with pytest.raises(ConfigError, match=r"cannot be read"):
        read_document(tmp_path)


def test_shown_path_is_relative_inside_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.toml").write_text("a = 1\n")
    monkeypatch.chdir(tmp_path)
    assert read_document(tmp_path / "x.toml").shown == "x.toml"
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert read_document(tmp_path / "x.toml").shown == (tmp_path / "x.toml").as_posix()


def test_what_the_parser_cannot_take_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    for text, words in (
        ("a = " + "1" * 5000, "cannot be read: Exceeds the limit"),
        ("a = " + "[" * 5000 + "]" * 5000, "cannot be read: maximum recursion depth"),
        ("\na = " + "[" * 150 + "1" + "]" * 150, "a.toml:2: lists or tables are nested more than 100 deep"),
        ("\na = " + "{b = " * 150 + "1" + "}" * 150, "a.toml:2: lists or tables are nested more than 100 deep"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=words):
            read_document(path)
    path.write_text("a = " + "[" * 50 + "]" * 50)
    assert read_document(path).data["a"]


def test_messages_hold_no_control_characters(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('name = "x"\0\x1b[2J\n')
    with pytest.raises(ConfigError) as caught:
        read_document(path)
    assert str(caught.value).isprintable()
    assert 'name = "x"' in str(caught.value)

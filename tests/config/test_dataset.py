"""``use`` in a data-set TOML: what goes over what, and that problems name the file that wrote the value."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cascade_kd.config import load_dataset_definition
from cascade_kd.data import DatasetDefinition
from cascade_kd.errors import ConfigError, Problem

Load = Callable[[str], DatasetDefinition]

BASE = """\
name = "base"
licence = "ours"
[tables.events]
file = "log.dat"
separator = "::"
columns = ["user", "item", "stars", "at"]
[tables.items]
file = "items.csv"
[roles]
user = "user"
item = "item"
time = "at"
[labels]
like = "stars >= 4"
[[feature]]
name = "kinds"
kind = "tags"
side = "item"
available = "recall"
[[feature]]
name = "price"
kind = "numeric"
side = "item"
available = "recall"
[split]
kind = "time"
valid = 0.2
[expect]
events = 10
"""


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CASCADE_KD_DATA", raising=False)
    (tmp_path / "base.toml").write_text(BASE)

    def load(text: str) -> DatasetDefinition:
        (tmp_path / "own.toml").write_text('use = "base.toml"\nname = "own"\n' + text)
        definition, file = load_dataset_definition("own.toml")
        assert file == tmp_path / "own.toml"
        return definition

    return load


def problems(load: Load, text: str) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        load(text)
    return list(caught.value.problems)


def test_keys_go_over_keys(load: Load) -> None:
    definition = load(
        '[tables.events]\nfile = "other.dat"\n[labels]\nlove = "stars = 5"\n[expect]\nusers = 3\n'
        '[[feature]]\nname = "age"\nkind = "numeric"\nside = "item"\navailable = "rank"\n'
        '[[feature]]\nname = "price"\ntransform = "log1p"\n'
    )
    assert (definition.name, definition.licence) == ("own", "ours")
    events = definition.tables["events"]
    assert (events.file, events.separator) == ("other.dat", "::")
    assert definition.labels == {"like": "stars >= 4", "love": "stars = 5"}
    assert [f.name for f in definition.feature] == ["kinds", "price", "age"]
    assert (definition.feature[1].transform, definition.feature[1].side) == ("log1p", "item")
    assert (definition.expect.events, definition.expect.users) == (10, 3)
    assert definition.split.valid == 0.2


def test_tables_whose_keys_exclude_one_another_are_replaced(load: Load) -> None:
    definition = load(
        '[sources.log]\nfile = "log.dat"\n[tables.events]\nsql = "SELECT * FROM log"\n'
        '[split]\nkind = "leave-last-out"\n'
    )
    assert definition.tables["events"].separator == ","
    assert definition.split.kind == "leave-last-out"
    assert definition.tables["items"].file == "items.csv"


def test_problems_name_the_file_that_wrote_the_value(load: Load, tmp_path: Path) -> None:
    found = problems(
        load,
        '[[feature]]\nname = "age"\nkind = "numerical"\nside = "item"\navailable = "rank"\n'
        '[[feature]]\nname = "price"\nsize = 3\n[split]\nvalid = 2\n',
    )
    assert [(p.file, p.line, p.key) for p in found] == [
        ("own.toml", 5, "feature.age.kind"),
        ("own.toml", 10, "feature.price.size"),
        ("own.toml", 12, "split.valid"),
    ]
    (found,) = problems(load, '[labels]\nlike = "stars >="\n')
    assert (found.file, found.line, found.key) == ("own.toml", 4, "labels.like")
    (found,) = problems(load, '[labels]\n[[feature]]\nname = "price"\nside = "user"\n')
    assert (found.file, found.line, found.key) == ("own.toml", 4, "feature.price.table")
    (tmp_path / "base.toml").write_text(BASE.replace("0.2", "2").replace('kind = "tags"', 'kind = "tag"'))
    found = problems(load, '[[feature]]\nname = "price"\nfill = 0\n[[feature]]\nname = "kinds"\nlength = 0\n')
    assert {(p.file, p.line, p.key) for p in found} == {
        ("own.toml", 8, "feature.kinds.length"),
        ("base.toml", 17, "feature.kinds.kind"),
        ("base.toml", 27, "split.valid"),
    }
    (tmp_path / "base.toml").write_text(BASE.replace("0.2", "2").replace('licence = "ours"\n', ""))
    assert [(p.file, p.key) for p in problems(load, '[split]\nkind = "time"\n')] == [("base.toml", "licence")]


def test_a_feature_declared_twice_in_one_file_is_refused(load: Load) -> None:
    twice = '[[feature]]\nname = "price"\nkind = "numeric"\nside = "item"\navailable = "rank"\n'
    (found,) = problems(load, twice + twice)
    assert (found.file, found.line, found.key) == ("own.toml", 9, "feature.price.name")
    assert "declared twice" in found.message


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ('use = "own.toml"\nname = "own"\n', "leads back to a file that uses it"),
        ('use = "nowhere"\nname = "own"\n', "no data set 'nowhere' in the catalogue"),
        ('use = "nowhere.toml"\nname = "own"\n', "does not exist"),
        ("use = 3\nname = 'own'\n", "want a data set of the catalogue"),
        ('use = "base.toml"\n', "a name of its own"),
        ('use = "base.toml"\nname = "own"\nuze = 3\n', "unknown key"),
    ],
)
def test_what_use_refuses(load: Load, tmp_path: Path, head: str, words: str) -> None:
    (tmp_path / "own.toml").write_text(head)
    with pytest.raises(ConfigError) as caught:
        load_dataset_definition("own.toml")
    (problem,) = caught.value.problems
    assert words in problem.message
    assert problem.file == "own.toml"
    assert problem.line == (0 if problem.key == "name" else 3 if problem.key == "uze" else 1)


def test_data_of_a_used_file_counts_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "data").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    own = tmp_path / "b" / "own.toml"
    own.write_text('use = "../a/base.toml"\nname = "own"\n')
    monkeypatch.delenv("CASCADE_KD_DATA", raising=False)

    def path() -> str | None:
        return load_dataset_definition(own)[0].path

    (tmp_path / "a" / "base.toml").write_text(BASE)
    assert path() == str(tmp_path / "a")
    (tmp_path / "a" / "base.toml").write_text('path = "data"\n' + BASE)
    assert path() == str(tmp_path / "a" / "data")
    (tmp_path / "root" / "data").mkdir(parents=True)
    monkeypatch.setenv("CASCADE_KD_DATA", str(tmp_path / "root"))
    assert path() == "data"  # $CASCADE_KD_DATA comes first
    own.write_text('use = "../a/base.toml"\nname = "own"\npath = "elsewhere"\n')
    assert path() == "elsewhere"


def test_a_missing_key_says_what_it_is_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.toml").write_text("[roles]\nitem = 'item'\n[tables.events]\nfile = 'x'\n")
    with pytest.raises(ConfigError) as caught:
        load_dataset_definition("own.toml")
    said = {problem.key: problem.message for problem in caught.value.problems}
    assert set(said) == {"name", "licence", "labels", "roles.user"}
    assert (
        said["roles.user"]
        == "required key is missing: the column with the user's id, in the events and in the users table"
    )
    assert all(": " in message for message in said.values())

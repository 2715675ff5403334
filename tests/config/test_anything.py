"""Whatever a user writes, loading it gives an experiment or a clear message; never another exception."""

from __future__ import annotations

import contextlib
import datetime
import tomllib
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import tomlkit

from cascade_kd.config import load_experiment, resolved_toml
from cascade_kd.errors import ConfigError

ODD: list[Any] = [
    None,  # the key is left out
    3,
    -1.5,
    float("inf"),
    10**30,
    "",
    "x",
    "all",
    True,
    [],
    [[]],
    ["x", 1],
    {},
    {"x": 1},
    [{"x": 1}],
    datetime.datetime(2024, 1, 2, 3, 4, 5),
]
FILES = ("exp.toml", "little.toml", "stages/recall.toml", "stages/prerank.toml")


def places(data: Any) -> Iterator[tuple[Any, Any]]:
    """(table or list, key or place) of every value inside."""
    keys = data.keys() if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    for key in list(keys):
        yield data, key
        yield from places(data[key])


@pytest.mark.parametrize("name", FILES)
def test_any_value_anywhere(project: Any, name: str) -> None:
    path = project.folder / name
    good = tomllib.loads(path.read_text("utf-8"))
    refused = 0
    for number in range(sum(1 for _ in places(good))):
        for odd in ODD[number % 2 :: 2]:
            data = deepcopy(good)
            holder, key = list(places(data))[number]
            if odd is None:
                del holder[key]
            else:
                holder[key] = odd
            path.write_text(tomlkit.dumps(data), "utf-8")
            refused += refuses_or_round_trips(project.folder)
    assert refused > number, "most of these are wrong"


def refuses_or_round_trips(folder: Path) -> bool:
    try:
        config = load_experiment(folder / "exp.toml")
    except ConfigError as error:
        caught = error
    else:
        (folder / "resolved.toml").write_text(resolved_toml(config), "utf-8")
        assert load_experiment(folder / "resolved.toml") == config
        return False
    lines = str(caught).splitlines()
    assert len(lines) == len(set(lines)) == len(caught.problems), caught
    assert all(problem.message and problem.file for problem in caught.problems), caught
    return True


@pytest.mark.parametrize("value", ["", "x", "3", "[]", "{}", "{x = 1}", "[1", "true", "1979-05-27", "=", "\n"])
def test_any_override_anywhere(project: Any, value: str) -> None:
    keys = (
        "name dataset seeds stage stage.rank stage.rank.name stage.rank.use stage.rank.model stage.rank.train "
        "stage.rank.train.samples stage.prerank.train.samples.0 stage.rank.x.y distill distill.0 distill.0.method "
        "evaluate expected expected.rank expected.rank.auc x.y.z"
    )
    for key in keys.split():
        with contextlib.suppress(ConfigError):
            project.load(f"{key}={value}")

"""The README's Python runs as it stands, on a small copy of the demo."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

SMALL = [
    "seeds=[0]",
    "stage.prerank.keep=20",
    "stage.recall.train.epochs=2",
    "stage.prerank.train.epochs=2",
    "stage.rank.train.epochs=3",
    "stage.rank.train.learning_rate=5e-3",
]


def test_python_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The embedded world at a tenth of its rows: the demo's own size belongs to `make demo`.
    prepare = importlib.import_module("cascade_kd.data.prepare")
    full = prepare.generate
    monkeypatch.setattr(
        prepare, "generate", lambda world: full(world.model_copy(update={"rows": 20_000, "users": 300}))
    )
    monkeypatch.chdir(tmp_path)
    names = {"SMALL": SMALL, "OUT": tmp_path / "run"}
    failures, tests = doctest.testfile(
        str(ROOT / "README.md"), module_relative=False, globs=names, optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert tests > 10
    assert failures == 0

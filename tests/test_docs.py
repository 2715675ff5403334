"""The reference of the data-set TOML says what the code says."""

from __future__ import annotations

import runpy
import tomllib
from pathlib import Path

from cascade_kd.data import DatasetDefinition

DOCS = Path(__file__).parent.parent / "docs"


def test_the_key_tables_are_those_of_the_models() -> None:
    page = (DOCS / "data.md").read_text("utf-8")
    assert runpy.run_path(str(DOCS / "make_reference.py"))["written"](page) == page, "run docs/make_reference.py"


def test_the_example_is_a_data_set() -> None:
    page = (DOCS / "data.md").read_text("utf-8")
    toml = page.split("```toml\n", 1)[1].split("```", 1)[0]
    DatasetDefinition.model_validate(tomllib.loads(toml))

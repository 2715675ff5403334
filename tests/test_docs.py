"""The references of data-set and stage TOMLs say what the code says."""

from __future__ import annotations

import runpy
import tomllib
from pathlib import Path

from cascade_kd.data import DatasetDefinition

DOCS = Path(__file__).parent.parent / "docs"


def test_the_key_tables_are_those_of_the_models() -> None:
    reference = runpy.run_path(str(DOCS / "make_reference.py"))
    assert set(reference["PAGES"]) == {DOCS / "data.md", DOCS / "stages.md", DOCS / "distill.md"}
    for path, tables in reference["PAGES"].items():
        page = path.read_text("utf-8")
        assert reference["written"](page, tables) == page, "run docs/make_reference.py"


def test_the_example_is_a_data_set() -> None:
    page = (DOCS / "data.md").read_text("utf-8")
    toml = page.split("```toml\n", 1)[1].split("```", 1)[0]
    DatasetDefinition.model_validate(tomllib.loads(toml))

"""docs/datasets.md covers the catalogue."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from cascade_kd.config.catalogue import names

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "datasets.py"
PAGE = (ROOT / "docs" / "datasets.md").read_text("utf-8")


def test_every_data_set_has_a_section() -> None:
    here, elsewhere = PAGE.split("# Formats without a copy here")
    assert {*re.findall("^## (.+)$", PAGE, re.MULTILINE)} == {*names("datasets")}
    for name in re.findall("^## (.+)$", here, re.MULTILINE):
        for command in ("describe", "audit"):
            (block,) = re.findall(f"<!-- cascade-kd data {command} {name} -->\n```text\n(.*?)```", here, re.DOTALL)
            assert block.startswith(f"{name}:" if command == "audit" else f"{name}\n"), (name, command)
    assert "```" not in elsewhere


def test_every_flag_is_explained() -> None:
    for section in PAGE.split("\n## ")[1:]:
        flags = re.findall("^flagged: '(.+?)'", section, re.MULTILINE)
        told = section.rsplit("```", 1)[-1]
        assert all(f"`{name}`" in told for name in flags), section[:20]
        assert ("Nothing is flagged" in told) <= (not flags)


def test_the_script_replaces_its_blocks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("datasets_page", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = "a\n<!-- cascade-kd data audit x -->\n```text\nold\n```\n\n```text\nkept\n```\n"
    page += "<!-- cascade-kd data audit y -->\n```text\nabsent\n```\n"
    monkeypatch.setattr(script, "printed", lambda command: None if command.endswith("y") else f"new {command}\n")
    monkeypatch.setattr(sys, "argv", ["datasets.py"])
    assert script.BLOCK.sub(script.block, page) == page.replace("old", "new data audit x")
    monkeypatch.setattr(sys, "argv", ["datasets.py", "y"])
    assert script.BLOCK.sub(script.block, page) == page

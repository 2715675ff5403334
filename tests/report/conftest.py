"""Loads the plain modules of this folder, which is no package."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"report_tests_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def made_up() -> ModuleType:
    """The factory of reports: ``made_up.make_report(seeds=3, distilled=True, stages=...)``."""
    return _load("made_up")


@pytest.fixture(scope="session")
def chromium() -> ModuleType:
    """The DevTools client."""
    return _load("chromium")

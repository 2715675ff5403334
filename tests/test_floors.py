"""The floors hold: a module imports only from strictly lower floors (its own package aside)."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "cascade_kd"

FLOORS = {
    "errors": 0,
    "lazy": 0,
    "types": 1,
    "masked": 1,
    "report": 1,
    "streams": 1,
    "interrupt": 1,
    "memory": 1,
    "losses": 2,
    "metrics": 2,
    "retrieval": 2,
    "data": 2,
    "models": 3,
    "stages": 4,
    "distill": 4,
    "cascade": 5,
    "train": 6,
    "evaluate": 6,
    "serve": 6,
    "config": 7,
    "experiment": 8,
    "cli": 9,
    "testing": 9,
}


def unit(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, unit) of every import of the library's own modules, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            modules = (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if node.module == "cascade_kd"
                else [node.module or ""]
            )
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        for module in modules:
            parts = module.split(".")
            if parts[0] == "cascade_kd" and len(parts) > 1:
                yield node.lineno, parts[1]


MODULES = sorted(path for path in ROOT.rglob("*.py") if unit(path) not in ("__init__", "__main__", "catalogue"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    own = unit(path)
    for line, other in imports(path):
        assert other == own or FLOORS[other] < FLOORS[own], (
            f"{path}:{line}: {own} (floor {FLOORS[own]}) imports {other}"
        )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 400


def lazy_table(tree: ast.Module) -> dict[str, str]:
    """Name -> module of a package whose names load on first use; empty for another."""
    tables = [
        ast.literal_eval(node.args[1])
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "lazy"
    ]
    return tables[0] if tables else {}


PACKAGES = [path for path in sorted(ROOT.rglob("__init__.py")) if lazy_table(ast.parse(path.read_text("utf-8")))]


@pytest.mark.parametrize("path", PACKAGES, ids=lambda path: path.parent.name)
def test_lazy_names_are_what_type_checkers_see(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    package = ".".join(path.parent.relative_to(ROOT.parent).parts)
    (checked,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: (node.module or "").removeprefix(f"{package}.")
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert lazy_table(tree) == seen
    loaded = importlib.import_module(package)
    assert all(hasattr(loaded, name) for name in loaded.__all__)
    assert not hasattr(loaded, "no_such_name")


@pytest.mark.parametrize("path", PACKAGES, ids=lambda path: path.parent.name)
def test_no_module_takes_the_place_of_a_lazy_name(path: Path) -> None:
    """A module, once imported, is an attribute of its package, and would hide a name that was to load on first use."""
    modules = {found.stem for found in path.parent.iterdir() if found.suffix == ".py" or found.is_dir()}
    assert not modules & set(lazy_table(ast.parse(path.read_text("utf-8"))))


def test_catalogues_hold_no_python() -> None:
    for folder in ("stages", "datasets"):
        assert not list((ROOT.parent / folder).rglob("*.py"))

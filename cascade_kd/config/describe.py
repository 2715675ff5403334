"""What there is, one row of text a thing: for ``cascade-kd list``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from cascade_kd.config import catalogue
from cascade_kd.config.dataset import read_layers
from cascade_kd.config.lines import read_document

Row = tuple[str, ...]


def describe_catalogue(what: Literal["stages", "datasets"]) -> list[Row]:
    """(name, type, level, first comment) of every stage, (name, description, licence) of every data set."""
    describe: Callable[[Path], Row] = _stage if what == "stages" else _dataset
    return [(name, *describe(catalogue.find(what, name))) for name in catalogue.names(what)]


def describe_distillers() -> list[Row]:
    """(method, first line of its config's docstring) of every distiller."""
    from cascade_kd.config.tables import DISTILLERS

    return [(name, (config.__doc__ or "").strip().splitlines()[0]) for name, config in DISTILLERS.items()]


def _stage(path: Path) -> Row:
    data = read_document(path).data
    return _plain(data.get("type")), _plain(data.get("level")), _first_comment(path)


def _dataset(path: Path) -> Row:
    data, _ = read_layers(path)
    return _plain(data.get("description")) or _first_comment(path), _plain(data.get("licence"))


def _first_comment(path: Path) -> str:
    first = path.read_text("utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def _plain(value: object) -> str:
    """A text on one line; nothing for no text."""
    return " ".join(value.split()) if isinstance(value, str) else ""

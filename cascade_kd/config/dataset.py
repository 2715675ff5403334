"""A data-set TOML, by catalogue name or path, with the data sets that it uses, as a validated definition.

``use = "movielens-1m"`` starts from another data set's file. What stands in the file itself goes over it key by key,
``[[feature]]`` entries of the same name likewise, others are added. Two tables are replaced as a whole, since their
keys exclude one another: ``[split]``, and a table or source that gives another one of ``file``, ``files`` and ``sql``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cascade_kd.config import catalogue
from cascade_kd.config.lines import Document, KeyPath, read_document
from cascade_kd.config.problems import validate
from cascade_kd.config.sources import Layer, Sources, merge
from cascade_kd.data.definition import DatasetDefinition
from cascade_kd.data.download import folders
from cascade_kd.errors import ConfigError, Problem, UserError

ORIGINS = ("file", "files", "sql")


def load_dataset_definition(path_or_name: str | Path, *, beside: Path | None = None) -> tuple[DatasetDefinition, Path]:
    """The definition and its file; relative data paths in it count from the file's folder.

    A relative ``path_or_name`` counts from ``beside``, None is the working directory. Raises ConfigError with all
    problems of the file, UserError where there is no such file or name.
    """
    return read_definition(catalogue.resolve("datasets", str(path_or_name), beside=beside))


def read_definition(path: Path) -> tuple[DatasetDefinition, Path]:
    """The definition in a file that exists, and the file's absolute path. Raises ConfigError with all problems."""
    data, layers = read_layers(path)
    problems: list[Problem] = []
    if len(layers) > 1 and "name" not in layers[0].data:
        problems.append(layers[0].problem(("name",), "required key is missing: a name of its own beside `use`"))
    definition, faults = validate(DatasetDefinition, data)
    problems += [Sources(layers).problem(fault) for fault in faults]
    if definition is None or problems:
        raise ConfigError(in_order(problems))
    return definition, path.resolve()


def read_layers(path: Path) -> tuple[dict[str, Any], tuple[Layer, ...]]:
    """The data of a file with that of the files it uses below it, and where each value stands, the file first.

    The places of ``[[feature]]`` in the layers are those in the data. Raises ConfigError.
    """
    merged: dict[str, Any] = {}
    layers: tuple[Layer, ...] = ()
    places: dict[str, int] = {}
    for document in reversed(_documents(path)):
        own = {key: value for key, value in document.data.items() if key != "use"}
        moved = _feature_places(own.get("feature"), places)
        if moved:
            own["feature"] = {moved[place]: entry for place, entry in enumerate(own["feature"])}
        below = _kept(merged, own)
        layer = Layer(document.shown, own, _moved_lines(document, moved))
        layers = (layer, *(Layer(of.shown, _kept(of.data, own), of.lines) for of in layers))
        merged = _rooted(merge(below, own), document.path.parent) if document.path != path else merge(below, own)
    if isinstance(merged.get("feature"), dict):
        merged["feature"] = [merged["feature"][place] for place in sorted(merged["feature"])]
    return merged, layers


def in_order(problems: list[Problem]) -> list[Problem]:
    """Without repeats; files in the order they came up, within a file by line."""
    files = list(dict.fromkeys(problem.file for problem in problems))
    return sorted(dict.fromkeys(problems), key=lambda problem: (files.index(problem.file), problem.line))


def _documents(path: Path) -> list[Document]:
    """The file and those that it uses, each after the one that names it."""
    documents = [read_document(path)]
    while "use" in documents[-1].data:
        last = documents[-1]
        problem = Layer(last.shown, last.data, last.lines).problem
        use = last.data["use"]
        if not isinstance(use, str):
            raise ConfigError([problem(("use",), "want a data set of the catalogue, or the path of a data-set TOML")])
        try:
            below = catalogue.resolve("datasets", use, beside=last.path.parent)
        except UserError as error:
            raise ConfigError([problem(("use",), str(error))]) from error
        if below.resolve() in [document.path.resolve() for document in documents]:
            raise ConfigError([problem(("use",), f"'{use}' leads back to a file that uses it")])
        documents.append(read_document(below))
    return documents


def _feature_places(entries: object, places: dict[str, int]) -> list[int]:
    """The merged place of each ``[[feature]]``: that of the same name below, else a new one, noted in ``places``."""
    if not isinstance(entries, list):
        return []
    moved: list[int] = []
    for entry in entries:
        name = entry.get("name") if isinstance(entry, dict) else None
        known = places.get(name) if isinstance(name, str) else None
        if known is None or known in moved:  # twice in one file: kept apart, for the definition to refuse
            known = len(places)
            places[name if isinstance(name, str) and name not in places else f"\0{known}"] = known
        moved.append(known)
    return moved


def _moved_lines(document: Document, moved: list[int]) -> Mapping[KeyPath, int]:
    """The lines of a file, with the features at their merged places."""
    return {
        (path[0], moved[int(path[1])], *path[2:]) if moved and path[0] == "feature" and len(path) > 1 else path: line
        for path, line in document.lines.items()
    }


def _kept(below: Mapping[Any, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What of ``below`` holds under ``own``, where tables that exclude one another are replaced."""
    kept = {key: value for key, value in below.items() if not (key == "split" and key in own)}
    for group in ("tables", "sources"):
        theirs, ours = kept.get(group), own.get(group)
        if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
            kept[group] = {name: of for name, of in theirs.items() if not _comes_from_elsewhere(of, ours.get(name))}
    return kept


def _comes_from_elsewhere(theirs: object, ours: object) -> bool:
    """Whether both say where the rows come from, in another way."""
    if not (isinstance(theirs, Mapping) and isinstance(ours, Mapping)):
        return False
    before, now = ({key for key in ORIGINS if key in of} for of in (theirs, ours))
    return bool(before and now and before != now)


def _rooted(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A used file's own folder instead of its relative data path, where that is where the data is."""
    path = data.get("path")
    if "generator" in data or (path is None and "url" in data) or not isinstance(path, str | None):
        return data
    there = next((at for at in folders(path or ".", folder) if at.is_dir()), None)
    if there is None or not there.is_relative_to(folder):
        return data
    return {**data, "path": str(there.resolve())}

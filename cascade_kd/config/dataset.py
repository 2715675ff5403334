"""A data-set TOML, by catalogue name or path, as a validated definition."""

from __future__ import annotations

from pathlib import Path

from cascade_kd.config import catalogue
from cascade_kd.config.lines import read_document
from cascade_kd.config.problems import validate
from cascade_kd.config.sources import Layer, Sources
from cascade_kd.data.definition import DatasetDefinition
from cascade_kd.errors import ConfigError, Problem


def load_dataset_definition(path_or_name: str | Path, *, beside: Path | None = None) -> tuple[DatasetDefinition, Path]:
    """The definition and its file; relative data paths in it count from the file's folder.

    A relative ``path_or_name`` counts from ``beside``, None is the working directory. Raises ConfigError with all
    problems of the file, UserError where there is no such file or name.
    """
    return read_definition(catalogue.resolve("datasets", str(path_or_name), beside=beside))


def read_definition(path: Path) -> tuple[DatasetDefinition, Path]:
    """The definition in a file that exists, and the file's absolute path. Raises ConfigError with all problems."""
    document = read_document(path)
    definition, faults = validate(DatasetDefinition, document.data)
    if definition is None:
        sources = Sources((Layer(document.shown, document.data, document.lines),))
        raise ConfigError(in_order([sources.problem(fault) for fault in faults]))
    return definition, path.resolve()


def in_order(problems: list[Problem]) -> list[Problem]:
    """Without repeats; files in the order they came up, within a file by line."""
    files = list(dict.fromkeys(problem.file for problem in problems))
    return sorted(dict.fromkeys(problems), key=lambda problem: (files.index(problem.file), problem.line))

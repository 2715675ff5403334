"""A checked experiment written out again: complete, inline, and with one hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import tomlkit
from pydantic import BaseModel
from tomlkit.items import Array, InlineTable, Table

from cascade_kd.config.experiment import ExperimentConfig
from cascade_kd.config.stage import NOT_A_TEACHERS, StageConfig, TeacherConfig


def resolved_toml(config: ExperimentConfig) -> str:
    """The experiment as TOML, every default written out, no ``use``; it loads again to an equal config.

    A data set is named as in the experiment; one that is no catalogue name by its absolute path.
    """
    document = tomlkit.document()
    for key, value in resolved(config).items():
        if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
            array = tomlkit.aot()
            for entry in value:
                array.append(_table(entry))
            document.append(key, array)
        else:
            document.append(key, _item(value, inline=False))
    return tomlkit.dumps(document)


def resolved(config: ExperimentConfig) -> dict[str, Any]:
    """The experiment as the plain data of an experiment TOML."""
    plain: dict[str, Any] = {
        "name": config.name,
        "dataset": config.dataset,
        "seeds": list(config.seeds),
        "rounds": config.rounds,
        "init_from": config.init_from,
        "deterministic": config.deterministic,
        "stage": [_stage(stage) for stage in config.stages],
        "teacher": [_teacher(teacher) for teacher in config.teachers],
        "distill": [_dump(pair) for pair in config.distill],
        "objective": [_dump(objective) for objective in config.objectives],
        "transfer": _dump(config.transfer),
        "codistill": _dump(config.codistill),
        "evaluate": _dump(config.evaluate),
        "expected": {name: {key: list(band) for key, band in of.items()} for name, of in config.expected.items()},
    }
    return {key: value for key, value in plain.items() if value is not None and value not in ([], {})}


def config_sha256(config: ExperimentConfig) -> str:
    """Hash of all that decides a run: the resolved experiment with the data set's definition in place of its name."""
    content = resolved(config) | {"dataset": config.definition.content()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _stage(stage: StageConfig) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "name": stage.name,
        "type": stage.type,
        "level": stage.level,
        "keep": stage.keep,
        "features": stage.features if isinstance(stage.features, str) else list(stage.features),
        "label_weight": stage.label_weight,
        "upstream_weight": stage.upstream_weight,
        "refresh": stage.refresh,
        "model": _dump(stage.model),
        "train": _dump(stage.train),
        "index": _dump(stage.index),
    }
    return {key: value for key, value in plain.items() if value is not None}


def _teacher(teacher: TeacherConfig) -> dict[str, Any]:
    if teacher.model is not None:
        plain = _stage(teacher.model)
        kept = {key: value for key, value in plain.items() if key not in NOT_A_TEACHERS}
        return kept | {"copies": teacher.copies}
    if teacher.members:
        return {"name": teacher.name, "members": list(teacher.members)}
    return {"name": teacher.name, "column": teacher.column, "scores": teacher.scores}


def _dump(model: BaseModel | None) -> dict[str, Any] | None:
    """Plain data of a config; what is None stays unwritten, as TOML has no null."""
    if model is None:
        return None
    plain = model.model_dump(mode="json", by_alias=True, exclude_none=True)
    for source in plain.get("samples", []):
        if isinstance(source, dict) and source.get("per_positive") == 0:
            del source["per_positive"]
    return plain


def _table(values: Mapping[str, Any]) -> Table:
    table = tomlkit.table()
    for key, value in values.items():
        table.append(key, _item(value, inline=False))
    return table


def _item(value: Any, *, inline: bool) -> Any:
    """A TOML item; tables inside lists are written inline."""
    if isinstance(value, Mapping):
        if not inline:
            return _table(value)
        small: InlineTable = tomlkit.inline_table()
        for key, inner in value.items():
            small.append(key, _item(inner, inline=True))
        return small
    if isinstance(value, list):
        array: Array = tomlkit.array()
        for inner in value:
            array.append(_item(inner, inline=True))
        return array
    return tomlkit.item(value)

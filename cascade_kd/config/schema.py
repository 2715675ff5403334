"""JSON Schema of the three file kinds, for editors that complete and check TOML."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from cascade_kd.config.files import ExperimentFile, StageEntry, StageFile, TeacherEntry
from cascade_kd.config.tables import DISTILLERS, OBJECTIVES, TYPES
from cascade_kd.data.definition import DatasetDefinition

DIALECT = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]


def json_schemas() -> dict[str, Schema]:
    """``experiment``, ``stage`` and ``dataset``: one schema each, complete in itself."""
    stage = _schema(StageFile)
    stage["required"] = ["type", "level"]
    _add_model_tables(stage)

    experiment = _schema(ExperimentFile)
    definitions = experiment.setdefault("$defs", {})
    entry = _move_in(StageEntry, definitions)
    entry["required"] = ["name"]
    definitions["StageEntry"] = entry
    definitions["TeacherEntry"] = _move_in(TeacherEntry, definitions) | {"required": ["name"]}
    definitions["TrainConfig"].pop("required", None)  # the stage file holds the rest
    for models in (DISTILLERS, OBJECTIVES):
        for model in models.values():
            definitions[model.__name__] = _move_in(model, definitions)
    experiment["properties"]["stage"]["items"] = {"$ref": "#/$defs/StageEntry"}
    experiment["properties"]["teacher"]["items"] = {"$ref": "#/$defs/TeacherEntry"}
    for table, models in (("distill", DISTILLERS), ("objective", OBJECTIVES)):
        choices = [{"$ref": f"#/$defs/{model.__name__}"} for model in models.values()]
        experiment["properties"][table]["items"] = {"oneOf": choices}
    return {"experiment": experiment, "stage": stage, "dataset": _dataset_schema()}


def _dataset_schema() -> Schema:
    """With ``use``, the file below holds the rest, but for the name."""
    dataset = _schema(DatasetDefinition)
    use = (
        'A data set of the catalogue such as "movielens-1m", or the path of a data-set TOML, that this one starts from.'
    )
    dataset["properties"] = {"use": {"type": "string", "description": use}, **dataset["properties"]}
    dataset["anyOf"] = [{"required": ["name", "use"]}, {"required": dataset.pop("required")}]
    for part in ("Roles", "FeatureDefinition"):
        dataset["$defs"][part].pop("required", None)
    dataset["$defs"]["FeatureDefinition"]["required"] = ["name"]
    return dataset


def _schema(model: type[BaseModel]) -> Schema:
    return {"$schema": DIALECT, **model.model_json_schema(by_alias=True)}


def _move_in(model: type[BaseModel], definitions: Schema) -> Schema:
    """The schema of a model, its own definitions moved to the common ones."""
    schema = model.model_json_schema(by_alias=True)
    definitions.update(schema.pop("$defs", {}))
    return schema


def _add_model_tables(stage: Schema) -> None:
    """What ``[model]`` may hold depends on ``type``: one condition a built-in type."""
    definitions = stage.setdefault("$defs", {})
    stage["allOf"] = []
    for name, kind in TYPES.items():
        config = kind.config
        definitions[config.__name__] = _move_in(config, definitions)
        stage["allOf"].append(
            {
                "if": {"properties": {"type": {"const": name}}, "required": ["type"]},
                "then": {"properties": {"model": {"$ref": f"#/$defs/{config.__name__}"}}},
            }
        )

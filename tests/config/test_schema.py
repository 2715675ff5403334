from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from cascade_kd.config import json_schemas, resolved_toml

jsonschema = pytest.importorskip("jsonschema", reason="the extra `report` brings jsonschema")


@pytest.fixture(scope="module")
def checkers() -> dict[str, Any]:
    schemas = json_schemas()
    assert set(schemas) == {"experiment", "stage", "dataset"}
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    return {kind: jsonschema.Draft202012Validator(schema) for kind, schema in json.loads(json.dumps(schemas)).items()}


def read(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text("utf-8"))


def test_shipped_files_fit(checkers: dict[str, Any], repository: Path) -> None:
    kinds = {"stages": "stage", "datasets": "dataset", "benchmarks": "experiment"}
    for folder, kind in kinds.items():
        for path in (repository / folder).rglob("*.toml"):
            if "results" not in path.parts:
                data = read(path)
                beside = "stage" if "level" in data else "dataset"  # files that an experiment names
                found = beside if kind == "experiment" and "stage" not in data else kind
                assert [error.message for error in checkers[found].iter_errors(data)] == [], path


def test_a_project_and_its_resolved_form_fit(checkers: dict[str, Any], project: Any) -> None:
    checkers["experiment"].validate(read(project.folder / "exp.toml"))
    checkers["dataset"].validate(read(project.folder / "little.toml"))
    checkers["experiment"].validate(tomllib.loads(resolved_toml(project.load())))


def test_a_stage_that_uses_a_file_need_not_repeat_its_label(checkers: dict[str, Any]) -> None:
    stage = '[[stage]]\nname = "recall"\nuse = "recall/two-tower"\ntrain.epochs = 1\n'
    checkers["experiment"].validate(tomllib.loads(f'name = "short"\ndataset = "movielens-1m"\n{stage}'))


@pytest.mark.parametrize(
    ("kind", "toml"),
    [
        ("experiment", "name = 'a'\ndataset = 'b'"),
        ("experiment", "name = 'a/b'\ndataset = 'b'\nstage = [{ name = 'x' }]"),
        ("experiment", "name = 'a'\ndataset = 'b'\nstage = [{ use = 'x' }]"),
        ("experiment", "name = 'a'\ndataset = 'b'\nstage = [{ name = 'x', kep = 1 }]"),
        ("experiment", "name = 'a'\ndataset = 'b'\nstage = [{ name = 'x', train.epochs = 0 }]"),
        ("experiment", "name = 'a'\ndataset = 'b'\nstage = [{ name = 'x' }]\ndistill = [{ method = 'rd' }]"),
        ("experiment", "name = 'a'\ndataset = 'b'\nstage = [{ name = 'x' }]\nexpected.x.auc = [1]"),
        ("stage", "level = 'rank'"),
        ("stage", "type = 'dcnv2'\nlevel = 'never'"),
        ("stage", "type = 'dcnv2'\nlevel = 'rank'\nmodel.cros_layers = 1"),
        ("stage", "type = 'dcnv2'\nlevel = 'rank'\ntrain.epochs = 1"),
        ("stage", "type = 'dcnv2'\nlevel = 'rank'\nname = 'x'"),
        ("dataset", "name = 'a'"),
    ],
)
def test_mistakes_do_not_fit(checkers: dict[str, Any], kind: str, toml: str) -> None:
    assert not checkers[kind].is_valid(tomllib.loads(toml))


def test_keys_of_a_plug_in_are_left_open(checkers: dict[str, Any]) -> None:
    assert checkers["stage"].is_valid({"type": "my.own:Model", "level": "rank", "model": {"anything": 1}})


def test_keys_are_described(checkers: dict[str, Any]) -> None:
    schema = checkers["experiment"].schema
    assert "candidates the stage hands on" in schema["$defs"]["StageEntry"]["properties"]["keep"]["description"]
    for definition in ("StageEntry", "TrainConfig", "SampleSource", "LogitDistillConfig", "EvaluateConfig"):
        for key, value in schema["$defs"][definition]["properties"].items():
            assert value.get("description"), (definition, key)
    dataset = checkers["dataset"].schema
    models = ("TableSource", "Roles", "FilterDefinition", "SplitDefinition", "ExpectDefinition", "FeatureDefinition")
    for table in (dataset, *(dataset["$defs"][name] for name in models)):
        for key, value in table["properties"].items():
            assert value.get("description"), key


def test_a_data_set_that_uses_another(checkers: dict[str, Any]) -> None:
    short = {"name": "b", "use": "a", "roles": {"part": "p"}, "feature": [{"name": "f", "available": "rank"}]}
    assert checkers["dataset"].is_valid(short)
    assert not checkers["dataset"].is_valid(short | {"feature": [{"available": "rank"}]})
    assert not checkers["dataset"].is_valid({key: value for key, value in short.items() if key != "use"})

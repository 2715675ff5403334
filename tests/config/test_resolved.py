from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cascade_kd.config import config_sha256, load_experiment, resolved_toml


def again(config: Any, folder: Path) -> Any:
    """The config, written out and read again from another folder."""
    folder.mkdir(exist_ok=True)
    path = folder / "config.toml"
    path.write_text(resolved_toml(config), "utf-8")
    return load_experiment(path)


def test_round_trip(project: Any, tmp_path: Path) -> None:
    config = project.load()
    read = again(config, tmp_path / "run")
    assert read == config
    assert resolved_toml(read) == resolved_toml(config)
    assert config_sha256(read) == config_sha256(config)


def test_round_trip_of_everything_that_can_be_set(project: Any, tmp_path: Path) -> None:
    project.edit("exp.toml", "#head", "rounds = 3\ninit_from = 'runs/earlier \"one\"'\ndeterministic = true")
    project.edit("exp.toml", "#recall", "index.kind = 'torch'\nrefresh = true\nmodel.similarity = 'cosine'")
    project.edit(
        "exp.toml",
        "#prerank",
        "label_weight = 'rest'\ntrain.learning_rate = 1e-7\ntrain.max_steps = 3\ntrain.monitor = 'logloss'\n"
        "train.patience = 0\nmodel.hidden = []",
    )
    project.edit("exp.toml", "#distill", "schedule = 'cosine'\nend_weight = 0.125\nwarmup_steps = 7\nweight = 0.3")
    project.edit("exp.toml", "#expected", "[expected.cascade]\n'ndcg@10' = [0.1, 0.2]\n[evaluate]\nmask_seen = false")
    config = project.load("stage.rank.label_weight=2")
    read = again(config, tmp_path / "run")
    assert read == config
    assert read.stage("prerank").train.learning_rate == 1e-7
    assert read.distill[0].end_weight == 0.125


def test_round_trip_without_distillers(project: Any, tmp_path: Path) -> None:
    config = project.load(without_distill=True)
    assert again(config, tmp_path / "run") == config
    assert config_sha256(config) != config_sha256(project.load())


def test_round_trip_of_a_plug_in(project: Any, tmp_path: Path, plug_in: Callable[[str, str], None]) -> None:
    plug_in(
        "round_trip_models",
        "import torch\nfrom pydantic import BaseModel\n"
        "class Config(BaseModel, extra='forbid', frozen=True):\n"
        "    width: int | None = None\n    table: dict[str, list[int]] = {}\n"
        "    pairs: tuple[tuple[str, str], ...] = ()\n"
        "class M(torch.nn.Module):\n    Config = Config\n",
    )
    project.edit("stages/rank.toml", '"dcnv2"', '"round_trip_models:M"')
    model = "[model.table]\nx = [1]\n'y z' = []\n"
    project.edit(
        "stages/rank.toml", "[model]\nhidden = [16]\ncross_layers = 1\n", f"model.pairs = [['a', 'b']]\n{model}"
    )
    config = project.load()
    assert again(config, tmp_path / "run") == config


def test_round_trip_of_shipped_experiments(repository: Path, tmp_path: Path) -> None:
    config = load_experiment(repository / "benchmarks" / "demo.toml")
    assert again(config, tmp_path / "run") == config
    assert tomllib.loads(resolved_toml(config))["dataset"] == "synthetic"


def test_everything_is_inline_and_complete(project: Any) -> None:
    data = tomllib.loads(resolved_toml(project.load()))
    assert data["dataset"] == str(project.folder / "little.toml")
    assert [stage["name"] for stage in data["stage"]] == ["recall", "prerank", "rank"]
    for stage in data["stage"]:
        assert "use" not in stage
        assert stage["train"]["optimizer"] == "adam"
    assert data["stage"][1]["train"]["samples"] == [
        {"from": "impressions", "weight": 1.0},
        {"from": "upstream", "per_positive": 4, "weight": 1.0},
    ]
    assert data["stage"][2]["model"] == {
        "embedding_size": 16,
        "hidden": [16],
        "cross_layers": 1,
        **{k: v for k, v in data["stage"][2]["model"].items() if k not in ("embedding_size", "hidden", "cross_layers")},
    }
    assert data["distill"][0]["weight"] == 0.5


@pytest.mark.parametrize(
    "override", ["seeds=[0]", "stage.rank.keep=9", "distill.0.weight=0.4", "stage.recall.train.epochs=1", "rounds=2"]
)
def test_every_key_counts_in_the_hash(project: Any, override: str) -> None:
    assert config_sha256(project.load(override)) != config_sha256(project.load())


def test_the_hash_knows_the_data_set_and_not_its_place(project: Any, tmp_path: Path) -> None:
    config = project.load()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    text = (project.folder / "little.toml").read_text("utf-8")
    (elsewhere / "copy.toml").write_text(text, "utf-8")
    assert config_sha256(project.load("dataset=elsewhere/copy.toml")) == config_sha256(config)
    (elsewhere / "copy.toml").write_text(text.replace("rating >= 4", "rating >= 5"), "utf-8")
    assert config_sha256(project.load("dataset=elsewhere/copy.toml")) != config_sha256(config)


def test_files_take_no_part_in_equality(project: Any) -> None:
    config = project.load()
    assert replace(config, file=Path("x"), dataset_file=Path("y")) == config
    assert replace(config, rounds=2) != config

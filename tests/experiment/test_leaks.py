"""From files to weights: what comes after training changes nothing in training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from cascade_kd.config import load_dataset_definition, load_experiment
from cascade_kd.data import Dataset, WorldConfig, generate, load, prepare
from cascade_kd.experiment import run
from cascade_kd.train import ProgressLog, load_checkpoint

Write = Callable[[str, str, pl.DataFrame], Path]
STAGES = ("recall", "prerank", "rank")


@pytest.fixture
def events(tmp_path: Path) -> pl.DataFrame:
    """The log of a world whose other tables are files already; the row number stands in as position."""
    tables = generate(WorldConfig(rows=3000, users=60, items=50))
    for name in ("users", "items"):
        tables[name].write_parquet(tmp_path / f"{name}.parquet")
    return tables["events"].with_columns(position=pl.int_range(pl.len()))


@pytest.fixture
def write(tmp_path: Path, tiny_dataset: Path) -> Write:
    """Writes a log, and a TOML of its own for it: ``write(name, split, events)``."""
    text = tiny_dataset.read_text("utf-8")
    start, end = text.index("[generator]"), text.index("[roles]")
    tables = "".join(f'[tables.{name}]\nfile = "{name}.parquet"\nformat = "parquet"\n' for name in ("users", "items"))

    def written(name: str, split: str, events: pl.DataFrame) -> Path:
        events.write_parquet(tmp_path / f"{name}.parquet")
        log = f'[tables.events]\nfile = "{name}.parquet"\nformat = "parquet"\n'
        own = text[:start] + tables + log + text[end:]
        own = own.replace('request = "request"', 'request = "request"\nposition = "position"')
        own = own.replace('[split]\nkind = "time"', f'[split]\nkind = "{split}"')
        (tmp_path / f"{name}.toml").write_text(own, "utf-8")
        return tmp_path / f"{name}.toml"

    return written


def loaded(file: Path) -> tuple[Dataset, pl.DataFrame]:
    definition, _ = load_dataset_definition(file)
    prepared = prepare(definition, base=file.parent)
    return load(prepared), pl.read_parquet(prepared / "events.parquet")


@pytest.mark.parametrize(("split", "later"), [("time", "valid and test"), ("per-user-time", "test")])
def test_labels_after_training_change_no_feature_and_no_weight(
    tmp_path: Path, tiny: Callable[..., Path], write: Write, events: pl.DataFrame, split: str, later: str
) -> None:
    plain, log = loaded(write("plain", split, events))
    rows = log.filter(pl.col("part") >= (2 if later == "test" else 1))["position"].to_numpy()
    labels = {name: events[name].to_numpy().copy() for name in ("click", "conversion", "dwell")}
    for column in labels.values():
        column[rows] = column[np.random.default_rng(0).permutation(rows)]
    shuffled, _ = loaded(write("shuffled", split, events.with_columns(pl.Series(k, v) for k, v in labels.items())))
    assert plain.sha256 != shuffled.sha256

    train = plain.rows("train")
    assert torch.equal(train, shuffled.rows("train"))
    names = [feature.name for feature in plain.features]
    inputs = []
    for dataset in (plain, shuffled):
        requests = dataset.requests_of(train, part="train")
        item_R, row_R = dataset.events.item_N[train], torch.arange(len(train))
        inputs.append(dataset.inputs(names, requests, item_R, row_R, part="train", event_R=train))
    for name in names:
        one, two = ((x.user | x.item)[name] for x in inputs)  # type: ignore[operator]
        assert torch.equal(one, two), name

    # The best epoch is chosen on validation: where its labels are shuffled too, one epoch leaves no choice.
    file = tiny(epochs=2 if later == "test" else 1)
    text = file.read_text("utf-8")
    weights: list[dict[str, torch.Tensor]] = []
    for name in ("plain", "shuffled"):
        file.write_text(text.replace('dataset = "tiny.toml"', f'dataset = "{name}.toml"'), "utf-8")
        run(load_experiment(file), tmp_path / "runs" / name, device="cpu", progress=ProgressLog(quiet=True))
        checkpoints = tmp_path / "runs" / name / "checkpoints" / "0"
        places = [(0, stage) for stage in STAGES] + [(1, "prerank")]
        found = {
            place: load_checkpoint(checkpoints / str(place[0]) / place[1] / "best.safetensors") for place in places
        }
        weights.append({f"{place}: {key}": x for place, saved in found.items() for key, x in saved.model.items()})
    assert weights[0].keys() == weights[1].keys()
    for key, x in weights[0].items():
        assert torch.equal(x, weights[1][key]), key


def test_a_training_label_does_change_the_weights(
    tmp_path: Path, tiny: Callable[..., Path], write: Write, events: pl.DataFrame
) -> None:
    """The test above could fail: one training label turned is enough."""
    click = events["click"].to_numpy().copy()
    click[0] = 1 - click[0]
    file = tiny(epochs=1, distill="")
    text = file.read_text("utf-8")
    weights = []
    for name, table in (("plain", events), ("turned", events.with_columns(click=click))):
        write(name, "time", table)
        file.write_text(text.replace('dataset = "tiny.toml"', f'dataset = "{name}.toml"'), "utf-8")
        run(load_experiment(file), tmp_path / "runs" / name, device="cpu", progress=ProgressLog(quiet=True))
        weights.append(load_checkpoint(tmp_path / "runs" / name / "checkpoints/0/0/rank/best.safetensors").model)
    assert any(not torch.equal(x, weights[1][key]) for key, x in weights[0].items())

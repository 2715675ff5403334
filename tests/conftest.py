"""Fixtures shared by all tests: a cache of their own, one thread, and a tiny experiment on the embedded world."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cascade_kd.config import load_dataset_definition
from cascade_kd.data import Dataset, WorldConfig, generate, load, prepare

ROOT = Path(__file__).parent.parent

TINY_STAGES = """
[[stage]]
name = "recall"
use = "recall/two-tower"
keep = 20
model = {{ embedding_size = 8, hidden = [16], output_size = 8 }}
train = {{ label = "click", batch_size = 256, epochs = {epochs}, monitor = "recall@20", learning_rate = 1e-2 }}

[[stage]]
name = "prerank"
use = "prerank/two-tower"
keep = 10
model = {{ embedding_size = 4, hidden = [8], output_size = 4, dropout = 0.1 }}
train = {{ label = "click", batch_size = 512, epochs = {epochs}, learning_rate = 1e-2 }}

[[stage]]
name = "rank"
use = "rank/dcnv2"
keep = 5
model = {{ embedding_size = 4, hidden = [8], cross_layers = 1, dropout = 0.1 }}
train = {{ label = "click", batch_size = 512, epochs = {epochs}, learning_rate = 1e-2 }}
"""

TINY_DISTILL = """
[[distill]]
teacher = "rank"
student = "prerank"
method = "logit"
loss = "kl"
temperature = 2.0
weight = 0.5
"""


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own: nothing is found that another test or the user left."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("CASCADE_KD_CACHE", str(folder))
    return folder


@pytest.fixture
def tiny_dataset(tmp_path: Path) -> Path:
    """The embedded world at 6,000 rows, 120 users, 80 items."""
    text = (ROOT / "datasets" / "synthetic.toml").read_text("utf-8")
    for key, value in (("rows", 6000), ("users", 120), ("items", 80)):
        line = next(line for line in text.splitlines() if line.startswith(f"{key} = "))
        text = text.replace(line, f"{key} = {value}", 1)
    path = tmp_path / "tiny.toml"
    path.write_text(text, "utf-8")
    return path


@pytest.fixture(scope="session")
def loaded() -> dict[str, Dataset]:
    return {}


@pytest.fixture
def dataset(tiny_dataset: Path, loaded: dict[str, Dataset]) -> Dataset:
    """The tiny world in memory; frozen, so it is prepared once a process."""
    if "tiny" not in loaded:
        definition, file = load_dataset_definition(tiny_dataset)
        loaded["tiny"] = load(prepare(definition, base=file.parent))
    return loaded["tiny"]


@pytest.fixture
def tiny(tiny_dataset: Path) -> Callable[..., Path]:
    """Writes a three-stage experiment on the tiny world: ``tiny(seeds=[0], epochs=2, more=..., extra=...)``."""

    def write(
        *,
        seeds: list[int] | None = None,
        epochs: int = 2,
        distill: str = TINY_DISTILL,
        more: str = "",
        extra: str = "",
        name: str = "tiny",
    ) -> Path:
        head = f'name = "{name}"\ndataset = "{tiny_dataset.name}"\nseeds = {seeds or [0]}\n{extra}\n'
        tail = f"{distill}{more}\n[evaluate]\nmask_seen = false\n"
        path = tiny_dataset.parent / f"{name}-experiment.toml"
        path.write_text(head + TINY_STAGES.format(epochs=epochs) + tail, "utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def layout_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One small world in shuffled Parquet files, as a data set in memory and as a stream of several buckets."""
    folder = tmp_path_factory.mktemp("world")
    text = (ROOT / "datasets" / "synthetic.toml").read_text("utf-8")
    start, end = text.index("[generator]"), text.index("[roles]")
    tables = ""
    for name, table in generate(WorldConfig(kind="world", rows=3000, users=60, items=40)).items():
        table.sample(fraction=1.0, shuffle=True, seed=1).write_parquet(folder / f"{name}.parquet")
        tables += f'[tables.{name}]\nfile = "{name}.parquet"\nformat = "parquet"\n'
    files: dict[str, Path] = {}
    for layout, storage in (("memory", ""), ("stream", '[storage]\nlayout = "stream"\nbucket_rows = 500\n')):
        files[layout] = folder / f"{layout}.toml"
        files[layout].write_text(f'{text[:start]}path = "."\n{tables}{text[end:]}{storage}', "utf-8")
    return files


@pytest.fixture
def data_folder() -> Path:
    """``$CASCADE_KD_DATA``; skips with the reason where there is none."""
    given = os.environ.get("CASCADE_KD_DATA")
    if not given or not Path(given).is_dir():
        pytest.skip("CASCADE_KD_DATA names no folder with the real data sets")
    return Path(given)


@pytest.fixture
def repository() -> Path:
    """The checkout's top folder."""
    return ROOT

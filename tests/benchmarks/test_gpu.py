"""The check of everything on a GPU: the CPU against itself, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from cascade_kd.data import load, prepare

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "speed" / "gpu.py"


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a CUDA device")
def test_without_cuda_it_says_so(gpu: ModuleType) -> None:
    with pytest.raises(SystemExit, match="this torch sees no CUDA device; --device cpu --small tries the script"):
        gpu.main([])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_cuda_agrees_with_the_cpu(gpu: ModuleType) -> None:
    assert gpu.main(["--small", "--only", "checks"]) == 0


@pytest.mark.parametrize("use", ["recall/two-tower", "rank/esmm"])
def test_a_stage_agrees_with_itself(gpu: ModuleType, use: str, tmp_path: Path) -> None:
    config = gpu.experiment(use, tmp_path, 8000, batch_size=512)
    dataset = load(prepare(config.definition, base=config.dataset_file.parent))
    losses, metrics = gpu.check_stage(use, dataset, config.stages[-1], "cpu", 2)
    assert losses["ok"]
    assert losses["gap"] == metrics["gap"] == 0.0
    assert losses["first_loss"] != losses["last_loss"]  # it trains
    assert metrics["figures"] > 10


def test_weights_that_differ_are_found(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Nudged(gpu.Trained):
        made = 0

        def step(self, number: int) -> float:
            Nudged.made += 1
            return super().step(number) + 0.01 * (Nudged.made % 2)

        def evaluated(self) -> dict[str, float]:
            Nudged.made += 1
            return {name: value + 0.01 * (Nudged.made % 2) for name, value in super().evaluated().items()}

    monkeypatch.setattr(gpu, "Trained", Nudged)
    config = gpu.experiment("rank/lr", tmp_path, 8000, batch_size=512)
    dataset = load(prepare(config.definition, base=config.dataset_file.parent))
    losses, metrics = gpu.check_stage("rank/lr", dataset, config.stages[-1], "cpu", 1)
    assert not losses["ok"]
    assert not metrics["ok"]
    assert metrics["gap"] == pytest.approx(0.01)


@pytest.mark.parametrize("kind", ["torch", "flat", "ivf"])
def test_an_index_agrees_with_itself(gpu: ModuleType, kind: str) -> None:
    row = gpu.check_index(kind, "cpu", 3000, 16)
    assert row["ok"]
    assert row["gap"] == 0.0
    assert row["recall_cpu"] >= 0.9
    assert row["served_by"] == ("torch" if kind == "torch" else "faiss")


def test_the_file_of_results(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [gpu.verdict("index", "flat", 1e-9, 1e-5), gpu.verdict("stage", "rank/lr", 2e-3, 1e-3)]
    monkeypatch.setattr(gpu, "results", lambda options: iter(rows))
    assert gpu.main(["--device", "cpu", "--out", str(tmp_path / "gpu.jsonl")]) == 1
    lines = [json.loads(text) for text in (tmp_path / "gpu.jsonl").read_text("utf-8").splitlines()]
    assert [(line["what"], line["ok"], line["device"]) for line in lines] == [
        ("flat", True, "cpu"),
        ("rank/lr", False, "cpu"),
    ]


def test_only_means_count_as_figures(gpu: ModuleType) -> None:
    tree = {"recall": {"auc": {"mean": 0.5, "n": 3}, "gauc": {"mean": None}, "index": {"recall@5": {"mean": 1.0}}}}
    assert dict(gpu.numbers(tree | {"seconds": 2.0})) == {"/recall/auc": 0.5}

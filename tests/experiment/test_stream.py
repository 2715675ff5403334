"""A whole run on a log that is read from disk: the same cascade as from memory, and every guarantee it can have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cascade_kd.config import load_experiment
from cascade_kd.experiment import RunResult, run
from cascade_kd.train import ProgressLog, load_checkpoint

Tiny = Callable[..., Path]


def go(tiny: Tiny, dataset: Path, out: Path, *overrides: str) -> RunResult:
    file = tiny(epochs=3)
    text = file.read_text("utf-8")
    file.write_text(text.replace('dataset = "tiny.toml"', f'dataset = "{dataset.as_posix()}"'), "utf-8")
    config = load_experiment(file, overrides=overrides)
    return run(config, out, device="cpu", progress=ProgressLog(quiet=True))


def weights(out: Path, stage: str, number: int) -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(out / "checkpoints" / "0" / str(number) / stage / "best.safetensors").model)


def test_a_stream_trains_the_cascade_that_memory_trains(
    tiny: Tiny, layout_files: dict[str, Path], tmp_path: Path
) -> None:
    trees = {}
    for layout, path in layout_files.items():
        result = go(tiny, path, tmp_path / layout)
        trees[layout] = result.report.seeds["0"]
    memory, stream = trees["memory"], trees["stream"]
    # Rows come in another order, so weights differ; what does not depend on weights is the same.
    assert stream["baseline"]["reference"] == memory["baseline"]["reference"]
    for stage in ("prerank", "rank"):
        a, b = (tree["stages"][stage]["auc"] for tree in (stream, memory))
        assert a["n"] == b["n"]
        assert abs(a["mean"] - b["mean"]) < 3 * b["stderr"]
        assert a["mean"] > 0.5 + 2 * a["stderr"]


@pytest.mark.slow
def test_weight_0_is_the_undistilled_run_on_a_stream(
    tiny: Tiny, layout_files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(tiny, layout_files["stream"], tmp_path / "run", "distill.0.weight=0.0")
    before, after = (weights(tmp_path / "run", "prerank", number) for number in (0, 1))
    assert all(torch.equal(before[name], after[name]) for name in before)
    monkeypatch.setenv("CASCADE_KD_CACHE", str(tmp_path / "another-cache"))
    go(tiny, layout_files["stream"], tmp_path / "distilled")
    taught = weights(tmp_path / "distilled", "prerank", 1)
    assert any(not torch.equal(before[name], taught[name]) for name in before)
    again = weights(tmp_path / "distilled", "prerank", 0)
    assert all(torch.equal(before[name], again[name]) for name in before)  # same seed, same result

"""Whole runs with row-sparse optimisers: resume and repetition bit for bit, distillation included."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cascade_kd.config import load_experiment
from cascade_kd.experiment import RunResult, run
from cascade_kd.interrupt import Interrupted
from cascade_kd.train import ProgressLog, load_checkpoint, samples

Tiny = Callable[..., Path]
RATE = "learning_rate = 1e-2"


def go(file: Path, out: Path, *, resume: bool = False) -> RunResult:
    return run(load_experiment(file), out, device="cpu", resume=resume, progress=ProgressLog(quiet=True))


def row_sparse(file: Path) -> Path:
    """Another optimiser of the tables in every stage."""
    text = file.read_text("utf-8")
    assert text.count(RATE) == 3
    for kind in ("sparse-adam", "sparse-adagrad", "rowwise-adagrad"):
        text = text.replace(RATE, f'learning_rate = 0.01, embedding_optimizer = "{kind}"', 1)
    file.write_text(text, "utf-8")
    return file


@pytest.mark.slow  # resumes of other optimisers are in test_guarantees
def test_a_stopped_run_is_resumed_to_the_same_weights(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = row_sparse(tiny(epochs=2))
    go(file, tmp_path / "whole")
    monkeypatch.setenv("CASCADE_KD_CACHE", str(tmp_path / "other-cache"))
    drawn, seen = samples.Sampler.batch, []

    def interrupting(self: samples.Sampler, step: int) -> samples.Batch:
        seen.append(step)
        if seen.count(7) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return drawn(self, step)

    for _ in range(2):  # in the middle of the pre-ranker, undistilled and distilled
        seen.clear()
        monkeypatch.setattr(samples.Sampler, "batch", interrupting)
        with pytest.raises(Interrupted):
            go(file, tmp_path / "stopped", resume=(tmp_path / "stopped").exists())
    monkeypatch.setattr(samples.Sampler, "batch", drawn)
    go(file, tmp_path / "stopped", resume=True)
    for stage in ("0/recall", "0/prerank", "0/rank", "1/prerank"):
        a, b = (
            load_checkpoint(tmp_path / name / "checkpoints" / "0" / stage / "last.safetensors")
            for name in ("whole", "stopped")
        )
        for name, tensor in a.model.items():
            assert torch.equal(tensor, b.model[name]), (stage, name)
        for name, state in a.optimizer.items():
            for key, tensor in state.items():
                assert torch.equal(tensor, b.optimizer[name][key]), (stage, name, key)
    folder = tmp_path / "whole" / "checkpoints" / "0" / "0"
    for stage, keys in (("recall", {"exp_avg", "exp_avg_sq"}), ("prerank", {"sum"}), ("rank", {"row_sum"})):
        assert load_checkpoint(folder / stage / "last.safetensors").optimizer["fields.table.weight"].keys() - keys == {
            "step"
        }

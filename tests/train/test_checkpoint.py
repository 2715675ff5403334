"""Checkpoints: exact round trips, no pickle, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cascade_kd.errors import RunError
from cascade_kd.train.checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimizer_state,
    restore_optimizer,
    save_checkpoint,
)


def trained(steps: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for step in range(steps):
        one_step(model, optimizer, step)
    return model, optimizer


def one_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def test_a_restored_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    model, optimizer = trained(5)
    path = tmp_path / "deep" / "last.safetensors"
    save_checkpoint(path, Checkpoint(model.state_dict(), {"step": 5}, optimizer_state(model, optimizer)))
    again, fresh = trained(0)
    checkpoint = load_checkpoint(path)
    again.load_state_dict(dict(checkpoint.model))
    restore_optimizer(again, fresh, checkpoint.optimizer)
    for step in range(5, 9):
        one_step(model, optimizer, step)
        one_step(again, fresh, step)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert path.stat().st_mode == path.with_suffix(".json").stat().st_mode  # as readable as any other file of the run
    assert checkpoint.meta == {"step": 5} == json.loads(path.with_suffix(".json").read_text())


def test_another_file_is_refused_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    path.write_bytes(b"half a file")
    with pytest.raises(RunError, match=r"last\.safetensors: not a readable checkpoint"):
        load_checkpoint(path)


def test_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = trained(1)
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, Checkpoint(model.state_dict(), {"step": 1}))
    before = path.read_bytes()

    def crash(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", crash)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, Checkpoint(model.state_dict(), {"step": 2}))
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.json", "best.safetensors"]

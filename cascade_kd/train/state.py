"""What a training keeps: its story so far, and its files (floor 6)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cascade_kd.models.shards import shards_of
from cascade_kd.train.checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimizer_state,
    restore_optimizer,
    save_checkpoint,
)
from cascade_kd.train.distributed import rank
from cascade_kd.train.settings import TrainConfig
from cascade_kd.train.task import Task

BEST_FILE = "best.safetensors"  # the model alone, by its best monitor
BESIDE_FILE = "beside.safetensors"  # what was trained with the best model and is not served
BESIDE = "beside."  # before the names of its tensors while it is trained


@dataclass
class State:
    """What changes while training, all of it in every checkpoint.

    ``loss_sum`` and, where the loss has several parts, ``part_sums`` are over the epoch so far; ``norms`` are those of
    the parts' gradients in the last step of the epoch, if asked for; ``peers`` the steps of the peers' weights in use.
    """

    step: int = 0
    loss_sum: float = 0.0
    part_sums: dict[str, float] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)
    best: float | None = None
    best_epoch: int = 0
    bad_epochs: int = 0  # in a row
    plateaus: int = 0  # in all
    finished: bool = False
    curve: list[dict[str, Any]] = field(default_factory=list)
    peers: dict[str, int] = field(default_factory=dict)

    def note(self, stage: str, loss: float, parts: Mapping[str, float]) -> None:
        """A step was taken at this loss, the sum of these parts. Raises FloatingPointError where it is not finite."""
        if not math.isfinite(loss):
            raise FloatingPointError(f"stage '{stage}': the loss is {loss} at step {self.step}")
        self.loss_sum += loss
        if len(parts) > 1:
            for name, part in parts.items():
                self.part_sums[name] = self.part_sums.get(name, 0.0) + part
        self.step += 1


def rate_factor(state: State, train: TrainConfig, steps_per_epoch: int) -> float:
    """What learning rates are multiplied by in the epoch that ``state`` is in."""
    epochs = state.step // steps_per_epoch
    drops = sum(epochs >= milestone for milestone in train.milestones) if train.milestones else state.plateaus
    factor: float = train.plateau_factor**drops
    return factor


def is_finished(folder: Path) -> bool:
    """Whether ``folder`` holds a training that came to its end."""
    last = folder / "last.json"
    return last.exists() and bool(json.loads(last.read_text("utf-8"))["state"]["finished"])


def load_best(model: nn.Module, folder: Path) -> list[dict[str, Any]]:
    """Give ``model`` the best weights of a finished training; returns its learning curve."""
    model.load_state_dict(dict(load_checkpoint(folder / BEST_FILE).model))
    curve: list[dict[str, Any]] = json.loads((folder / "last.json").read_text("utf-8"))["state"]["curve"]
    return curve


def end_epoch(
    task: Task,
    model: nn.Module,
    folder: Path,
    state: State,
    value: float,
    *,
    more_is_better: bool,
    steps_per_epoch: int,
    last_step: int,
    about: dict[str, Any],
) -> None:
    """Note the epoch's monitor ``value``, and save the model if it is the best so far."""
    _close_epoch(state, steps_per_epoch, value, more_is_better, task.train, last_step)
    if state.best_epoch <= task.hint_epochs:  # no label was learnt yet: any later epoch is better
        state.best, state.bad_epochs, state.plateaus = None, 0, 0
    if state.bad_epochs == 0:
        _save_best(task, model, folder, state, about)


def _close_epoch(
    state: State, steps_per_epoch: int, value: float, more_is_better: bool, train: TrainConfig, last_step: int
) -> None:
    """Note the epoch's monitor and losses, and whether the training is over."""
    epoch = -(-state.step // steps_per_epoch)
    steps = state.step - (epoch - 1) * steps_per_epoch
    better = state.best is None or (value > state.best if more_is_better else value < state.best)
    if better:
        state.best, state.best_epoch, state.bad_epochs = value, epoch, 0
    else:
        state.bad_epochs += 1
        state.plateaus += 1
    state.finished = state.step >= last_step or (train.patience > 0 and state.bad_epochs >= train.patience)
    point = {"epoch": epoch, "step": state.step, "loss": state.loss_sum / steps, "metric": train.monitor}
    if state.part_sums:
        point["losses"] = {name: total / steps for name, total in state.part_sums.items()}
    if state.norms:
        point["gradient_norms"] = state.norms
    state.curve.append(point | {"value": value if math.isfinite(value) else None})
    state.loss_sum, state.part_sums, state.norms = 0.0, {}, {}


def _save_best(task: Task, model: nn.Module, folder: Path, state: State, about: dict[str, Any]) -> None:
    """The model alone, which will be served; beside it a joint teacher and the other students, where there are any."""
    weights = state_dict(model)
    served = {name: tensor for name, tensor in weights.items() if not name.startswith(BESIDE)}
    if rank() > 0:
        return
    story = about | {"state": vars(state)}
    if len(served) < len(weights) and (task.others or any(teacher.train is not None for teacher in task.teachers)):
        beside = {name.removeprefix(BESIDE): x for name, x in weights.items() if name.startswith(BESIDE)}
        save_checkpoint(folder / BESIDE_FILE, Checkpoint(beside, story))
    save_checkpoint(folder / BEST_FILE, Checkpoint(served, story))


def state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The weights by name, a shared one once, under its first name; whole tables on rank 0."""
    shards = shards_of(model)
    held: set[int] = set()
    weights: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in held:
            held.add(id(tensor))
            weights[name] = shards[name].whole(tensor) if name in shards else tensor
    return weights


def own_rows(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of tables that are shared out, this rank's rows."""
    shards = shards_of(model)
    return {name: shards[name].own(tensor) if name in shards else tensor for name, tensor in tensors.items()}


def save(
    path: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], state: State, about: dict[str, Any]
) -> None:
    """All that a resume needs. Rank 0 writes; tables that are shared out are whole in the file."""
    shards = shards_of(model)
    saved: dict[str, dict[str, Tensor]] = {}
    for optimizer in optimizers:
        saved |= optimizer_state(model, optimizer)
    for name in sorted(shards.keys() & saved.keys()):
        saved[name] = {key: shards[name].whole(x) if x.dim() == 2 else x for key, x in saved[name].items()}
    weights = state_dict(model)
    if rank() > 0:
        return
    save_checkpoint(path, Checkpoint(weights, about | {"state": vars(state)}, saved))


def own_state(model: nn.Module, saved: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """The same of the optimisers' state."""
    shards = shards_of(model)
    return {
        name: {key: shards[name].own(x) if name in shards and x.dim() == 2 else x for key, x in state.items()}
        for name, state in saved.items()
    }


def resume(path: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> State:
    """Where a saved training stands, its weights and optimisers restored; a new one if there is none."""
    if not path.exists():
        return State()
    checkpoint = load_checkpoint(path)
    model.load_state_dict(own_rows(model, checkpoint.model), strict=False)
    first_names = {id(x): name for name, x in reversed(list(model.state_dict(keep_vars=True).items()))}
    assert set(first_names.values()) <= checkpoint.model.keys(), "a checkpoint leaves out second names alone"
    for optimizer in optimizers:
        restore_optimizer(model, optimizer, own_state(model, checkpoint.optimizer))
    return State(**checkpoint.meta["state"])

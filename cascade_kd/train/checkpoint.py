"""Checkpoints: safetensors with their story in the header, no pickle (floor 6).

A ``.safetensors`` file alone is enough to resume: its metadata holds the JSON. The ``.json`` beside it is a copy for
people. Both are written to a temporary name and renamed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cascade_kd.errors import RunError
from cascade_kd.report import atomic_path, atomic_write_text

_META = "cascade_kd"
_MODEL = "model/"
_OPTIMIZER = "optimizer/"
ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")  # torch's Adam makes it in its first step


@dataclass(frozen=True)
class Checkpoint:
    """Model tensors by name, optimiser state by (parameter name, key), and the training's story as plain JSON."""

    model: Mapping[str, Tensor]
    meta: Mapping[str, Any]
    optimizer: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write ``path`` (.safetensors) and its ``.json``, each atomically."""
    tensors = {_MODEL + name: tensor.detach().contiguous().cpu() for name, tensor in checkpoint.model.items()}
    for name, state in checkpoint.optimizer.items():
        for key, tensor in state.items():
            tensors[f"{_OPTIMIZER}{key}/{name}"] = tensor.detach().contiguous().cpu()
    text = json.dumps(checkpoint.meta, indent=1, sort_keys=True)
    with atomic_path(path) as temporary:  # written from where the tensors are: no copy of a table in memory
        save_file(tensors, temporary, metadata={_META: text})
    atomic_write_text(path.with_suffix(".json"), text + "\n")


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU; its tensors stay in the file, mapped, until they are used.

    Raises RunError when the file is not one of ours.
    """
    model: dict[str, Tensor] = {}
    optimizer: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(os.fspath(path), framework="pt", device="cpu") as file:
            meta = json.loads(file.metadata()[_META])
            for name in file.keys():  # noqa: SIM118 - safe_open is not a mapping
                if name.startswith(_MODEL):
                    model[name.removeprefix(_MODEL)] = file.get_tensor(name)
                else:
                    key, _, parameter = name.removeprefix(_OPTIMIZER).partition("/")
                    optimizer.setdefault(parameter, {})[key] = file.get_tensor(name)
    except Exception as error:
        raise RunError(f"{path}: not a readable checkpoint ({error}); remove it and run again without it") from error
    return Checkpoint(model, meta, optimizer)


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """The optimiser's state by parameter name; numbers (Adam's step) become tensors."""
    state: dict[str, dict[str, Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter in optimizer.state:
            state[name] = {key: torch.as_tensor(value) for key, value in optimizer.state[parameter].items()}
    return state


def restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Put back what a saved state holds of this optimiser's parameters; parameters without one start fresh.

    Raises RunError when the state is that of another kind of optimiser.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    packed = optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for place, parameter in enumerate(parameters):
        saved = state.get(names[parameter])
        if saved is None:
            continue
        held = packed["state"].get(place)
        wanted = set(held or ADAM_STATE)
        if set(saved) != wanted:
            raise RunError(
                f"init_from: the earlier run's optimiser kept {sorted(saved)} for '{names[parameter]}', this one keeps "
                f"{sorted(wanted)}; keep the stage's optimizer and embedding_optimizer as they were"
            )
        if held is None:
            packed["state"][place] = dict(saved)
        else:  # in place: there is no second copy of a table's state
            for key, value in saved.items():
                held[key].copy_(value)
    optimizer.load_state_dict(packed)

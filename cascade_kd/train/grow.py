"""Continue from an earlier run on newer events: grown vocabularies, kept optimiser state (floor 6).

V rows of a fused embedding table, M training rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn

from cascade_kd.data import Dataset
from cascade_kd.errors import RunError
from cascade_kd.models import FieldEmbedding
from cascade_kd.train.checkpoint import load_checkpoint
from cascade_kd.types import USER_ID

VOCABULARY = "vocabulary.parquet"
TRAINED_UNTIL = "trained_until.parquet"
KEEP = "keep the stage's [model] and features as they were"


@dataclass(frozen=True)
class Grown:
    """Weights to start from and optimiser state to go on with, in the shapes of the new vocabularies.

    ``origin`` names what they come from: the earlier stage's key and step.
    """

    model: dict[str, Tensor]
    optimizer: dict[str, dict[str, Tensor]]
    origin: dict[str, Any]


def save_origin(dataset: Dataset, folder: Path) -> None:
    """Keep what a later run needs to continue: the vocabularies and every user's last training moment."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = [
        pl.DataFrame({"vocabulary": [name] * len(values), "code": range(1, len(values) + 1), "value": values})
        for name, values in dataset.vocabularies.items()
    ]
    pl.concat(frames).write_parquet(folder / VOCABULARY)
    rows = dataset.rows("train")
    last_U1 = torch.full((dataset.num_users + 1,), -1, dtype=torch.int64, device=rows.device).scatter_reduce(
        0, dataset.events.user_N[rows], dataset.events.time_N[rows], "amax"
    )
    users = pl.DataFrame({"value": dataset.vocabularies[USER_ID], "until": last_U1[1:].cpu().numpy()})
    users.filter(pl.col("until") >= 0).write_parquet(folder / TRAINED_UNTIL)


def newer_rows(dataset: Dataset, folder: Path) -> Tensor:
    """Training rows [M] that come after the earlier run's last training event of the same user.

    Raises RunError when there is none.
    """
    until = _read(folder / TRAINED_UNTIL)
    known = pl.DataFrame({"value": dataset.vocabularies[USER_ID]}).join(until, on="value", how="left")
    until_U1 = torch.cat([torch.tensor([-1]), torch.from_numpy(known["until"].fill_null(-1).to_numpy().copy())])
    rows = dataset.rows("train")
    events = dataset.events
    newer = rows[events.time_N[rows] > until_U1.to(rows.device)[events.user_N[rows]]]
    if len(newer) == 0:
        raise RunError(
            f"init_from: the training part holds no event after those of the earlier run ({folder.parent}); "
            "add newer events to the data set, or leave init_from out to train from the start"
        )
    return newer


def embedding_tables(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Of every fused table, by its name: its fields, the first row of every vocabulary, and which are compressed.

    Kept in each checkpoint.
    """
    return {
        name: {
            "fields": [*m.user.names, *m.item.names],
            "offsets": m.offsets,
            "compressed": [vocabulary for vocabulary, rows in m.rows.items() if rows.compressed],
        }
        for name, m in model.named_modules()
        if isinstance(m, FieldEmbedding)
    }


def grow(folder: Path, vocabulary: Path, model: nn.Module, dataset: Dataset) -> Grown:
    """Fit an earlier run's stage in ``folder`` (best weights, last optimiser state) to ``model``'s vocabularies.

    A value known to both keeps its embedding row and its moments; a new value keeps ``model``'s fresh row and starts
    with zero moments. Fields and all other tensors must be the same. Raises RunError otherwise.
    """
    best = load_checkpoint(_existing(folder / "best.safetensors"))
    last = load_checkpoint(_existing(folder / "last.safetensors"))
    old = _read(vocabulary)
    held = best.meta["embedding_tables"]
    for table, now in embedding_tables(model).items():
        fields = held.get(table, {}).get("fields")
        if fields != now["fields"]:
            raise RunError(f"init_from: the earlier run's stage reads {fields}, this one {now['fields']}; {KEEP}")
        compressed = [*held[table].get("compressed", ()), *now["compressed"]]
        if compressed:
            raise RunError(
                f"init_from: embedding_max_rows gives the values of vocabulary '{compressed[0]}' shared rows, which "
                "cannot follow them into another vocabulary; train from the start, without init_from"
            )
    rows = {
        f"{table}.table.weight": _row_map(module, held[table]["offsets"], old, dataset)
        for table, module in model.named_modules()
        if isinstance(module, FieldEmbedding) and module.rows
    }
    gone = sorted(set(best.model) - set(model.state_dict()))
    if gone:
        lacks = f"the earlier run's stage has a tensor '{gone[0]}' that this one lacks"
        raise RunError(f"init_from: {lacks}; its model was another one; {KEEP}")
    fresh = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    weights = {name: _moved(name, fresh[name].clone(), best.model, rows.get(name)) for name in fresh}
    optimizer: dict[str, dict[str, Tensor]] = {}
    for name, state in last.optimizer.items():
        if name.startswith("beside."):  # trained with the model then, not a part of it
            continue
        optimizer[name] = {
            key: value
            if value.dim() == 0
            else _moved(name, value.new_zeros(*fresh[name].shape[:1], *value.shape[1:]), {name: value}, rows.get(name))
            for key, value in state.items()
        }
    return Grown(weights, optimizer, {"key": last.meta["key"], "step": last.meta["state"]["step"]})


def _moved(name: str, target: Tensor, source: Mapping[str, Tensor], rows: tuple[Tensor, Tensor] | None) -> Tensor:
    if name not in source:
        raise RunError(f"init_from: the earlier run's stage has no tensor '{name}'; its model was another one; {KEEP}")
    was, now = source[name].shape, target.shape
    if (was[1:] != now[1:]) if rows is not None else (was != now):
        raise RunError(f"init_from: tensor '{name}' was {tuple(was)} and is {tuple(now)} now; {KEEP}")
    if rows is None:
        return source[name].clone()
    new_V, old_V = rows
    target[new_V] = source[name][old_V]
    return target


def _row_map(
    module: FieldEmbedding, old_offsets: dict[str, Any], old: pl.DataFrame, dataset: Dataset
) -> tuple[Tensor, Tensor]:
    """Table rows now and then, of the values that both runs know; row 0 of a vocabulary stands for the unknown."""
    new_rows: list[Tensor] = []
    old_rows: list[Tensor] = []
    for vocabulary, offset in module.offsets.items():
        if vocabulary not in old_offsets:
            continue
        values = dataset.vocabularies[vocabulary]
        now = pl.DataFrame({"value": values, "now": range(1, len(values) + 1)}, schema_overrides={"now": pl.Int64})
        both = now.join(old.filter(pl.col("vocabulary") == vocabulary), on="value")
        zero = torch.zeros(1, dtype=torch.int64)
        new_rows.append(torch.cat([zero, torch.from_numpy(both["now"].to_numpy().copy())]) + offset)
        old_rows.append(torch.cat([zero, torch.from_numpy(both["code"].to_numpy().copy())]) + old_offsets[vocabulary])
    return torch.cat(new_rows), torch.cat(old_rows)


def _existing(path: Path) -> Path:
    if not path.exists():
        raise RunError(f"init_from: {path} is missing; name a finished run with the same stages and seeds")
    return path


def _read(path: Path) -> pl.DataFrame:
    return pl.read_parquet(_existing(path))

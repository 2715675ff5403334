"""The files of a prepared data set, read into tensors (floor 2). N rows, T tags."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from cascade_kd.data.lookup import Events, History
from cascade_kd.data.meta import SCHEMA
from cascade_kd.data.stream.columns import column_names, column_path
from cascade_kd.errors import DataError

FILES = ("meta.json", "users.parquet", "items.parquet", "vocabulary.parquet")


def read_meta(prepared: Path) -> dict[str, Any]:
    """``meta.json``. Raises ``DataError`` if a file is missing or of another schema."""
    events = ("log/user.npy", "events") if (prepared / "log").is_dir() else ("events.parquet",)
    missing = [name for name in (*FILES, *events) if not (prepared / name).exists()]
    if missing:
        raise DataError(f"{prepared} is no prepared data set: {', '.join(missing)} missing; prepare it again")
    meta: dict[str, Any] = json.loads((prepared / "meta.json").read_text(encoding="utf8"))
    if meta.get("schema") != SCHEMA:
        raise DataError(
            f"{prepared} was prepared in schema {meta.get('schema')}, this version reads {SCHEMA}; prepare it again"
        )
    return meta


def _tensor(column: pl.Series) -> Tensor:
    """A column as a tensor with memory of its own: [N], or [N, T] for lists and arrays of one width."""
    if isinstance(column.dtype, pl.List):
        width = column.list.len().max() or 0
        assert isinstance(width, int)
        column = column.list.to_array(width)
    assert column.null_count() == 0, column.name
    return torch.from_numpy(np.array(column.to_numpy(), order="C", copy=True))


def read_table(path: Path) -> dict[str, Tensor]:
    """The columns of the user or item table: name -> [rows] or [rows, T]."""
    return {column.name: _tensor(column) for column in pl.read_parquet(path)}


def read_vocabularies(path: Path) -> dict[str, pl.Series]:
    """Vocabulary -> the raw values of the codes 1, 2, ..., as text."""
    table = pl.read_parquet(path).sort("vocabulary", "code")
    return {str(name): rows["value"] for (name,), rows in table.group_by("vocabulary", maintain_order=True)}


def _mapped(folder: Path) -> dict[str, Tensor]:
    """The columns of a log on disk: read where they are touched, and a write to a tensor stays in memory."""
    return {name: torch.from_numpy(np.load(column_path(folder, name), mmap_mode="c")) for name in column_names(folder)}


def read_events(prepared: Path) -> Events:
    """The log, of either layout."""
    log = prepared / "log"
    columns = _mapped(log) if log.is_dir() else read_table(prepared / "events.parquet")

    def of(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): x for name, x in columns.items() if name.startswith(prefix)}

    return Events(
        user_N=columns["user"],
        item_N=columns["item"],
        time_N=columns["time"],
        part_N=columns["part"],
        labels=of("label:"),
        columns=of("feature:"),
        statistics=of("statistic:"),
        request_N=columns.get("request"),
        position_N=columns.get("position"),
        oracle_N=columns.get("oracle"),
    )


def histories_of(meta: Mapping[str, Any]) -> dict[str, History]:
    """The histories that the data set declares, by name."""
    return {h["name"]: History(h["name"], h["length"], h.get("events")) for h in meta.get("histories", ())}

"""``meta.json`` of a prepared directory: features, statistics, histories, counts (floor 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import polars as pl

from cascade_kd.data.definition import DatasetDefinition
from cascade_kd.data.encode import Encoded
from cascade_kd.data.log import Log
from cascade_kd.types import ITEM_ID, PARTS, USER_ID, Feature


def prepared_meta(
    definition: DatasetDefinition, log: Log, encoded: list[Encoded], not_described: Mapping[str, int]
) -> dict[str, Any]:
    """All of ``meta.json`` but schema, name and digest. ``not_described``: table -> ids of the log that it lacks."""
    labels = list(definition.labels)
    train = log.events.filter(pl.col("part") == 0)
    prior = {label: train[f"label:{label}"].cast(pl.Float64).mean() for label in labels}
    by_kind = {kind: [f for f in definition.feature if f.kind == kind] for kind in ("statistic", "history")}
    histories = [{"name": f.name, "length": f.history_length, "events": f.events} for f in by_kind["history"]]
    return {
        "features": [asdict(feature) for feature in _features(definition, log, encoded)],
        "num_users": len(log.user_ids),
        "num_items": len(log.item_ids),
        "time_offset": log.events["time"].min() if definition.roles.time else 0,
        "has_time": definition.roles.time is not None,
        "has_requests": definition.roles.request is not None,
        "split": definition.split.kind,
        "labels": labels,
        "statistics": [
            {**f.model_dump(mode="json"), "prior": prior[f.value] if f.value else 0.0} for f in by_kind["statistic"]
        ],
        "histories": histories,
        "numeric": {part.feature.name: part.scale for part in encoded if part.scale},
        "counts": _counts(labels, log, encoded, not_described),
        "tags_index": {},
    }


def _features(definition: DatasetDefinition, log: Log, encoded: list[Encoded]) -> list[Feature]:
    """The ids first, then the declared features in their order."""
    items = len(log.item_ids) + 1
    stored = {part.feature.name: part.feature for part in encoded}
    features = [
        Feature(USER_ID, "categorical", "user", "recall", len(log.user_ids) + 1, vocabulary=USER_ID),
        Feature(ITEM_ID, "categorical", "item", "recall", items, vocabulary=ITEM_ID),
    ]
    for f in definition.feature:
        if f.kind == "history":
            features.append(Feature(f.name, f.kind, f.side, f.available, items, f.history_length, ITEM_ID))
        elif f.kind == "statistic":
            features.append(Feature(f.name, f.kind, f.side, f.available))
        else:
            features.append(stored[f.name])
    return features


def _counts(labels: list[str], log: Log, encoded: list[Encoded], not_described: Mapping[str, int]) -> dict[str, Any]:
    """What ``describe`` prints."""
    parts = {name: log.events.filter(pl.col("part") == code) for code, name in enumerate(PARTS)}
    return {
        "rows": {name: len(rows) for name, rows in parts.items()},
        "users": {name: rows["user"].n_unique() for name, rows in parts.items()},
        "items": {name: rows["item"].n_unique() for name, rows in parts.items()},
        "time": {name: [rows["time"].min(), rows["time"].max()] for name, rows in parts.items()},
        "label_rate": {
            label: {name: rows[f"label:{label}"].cast(pl.Float64).mean() for name, rows in parts.items()}
            for label in labels
        },
        "requests": log.events["request"].n_unique() if "request" in log.events.columns else None,
        "dropped": log.dropped,
        "not_described": dict(not_described),
        "missing": {part.feature.name: part.missing for part in encoded},
    }

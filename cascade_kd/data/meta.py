"""``meta.json`` of a prepared directory: features, statistics, histories, counts (floor 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl

from cascade_kd.data.definition import DatasetDefinition
from cascade_kd.data.encode import Encoded
from cascade_kd.data.log import Log
from cascade_kd.types import ITEM_ID, PARTS, USER_ID, Feature

SCHEMA = 2  # of a prepared directory


@dataclass(frozen=True)
class Summary:
    """The counts of a log; ``positives`` by label and part, the other maps by part."""

    num_users: int
    num_items: int
    rows: dict[str, int]
    users: dict[str, int]
    items: dict[str, int]
    time: dict[str, tuple[int, int]]
    positives: dict[str, dict[str, int]]
    requests: int | None
    dropped: dict[str, int]  # what the filter left out


def summary_of(log: Log) -> Summary:
    """The counts of a log in memory."""
    labels = [name for name in log.events.columns if name.startswith("label:")]
    counted = log.events.select("user", "item", "time", "part", *labels)
    parts = {name: counted.filter(pl.col("part") == code) for code, name in enumerate(PARTS)}
    return Summary(
        num_users=len(log.user_ids),
        num_items=len(log.item_ids),
        rows={name: len(rows) for name, rows in parts.items()},
        users={name: rows["user"].n_unique() for name, rows in parts.items()},
        items={name: rows["item"].n_unique() for name, rows in parts.items()},
        time={name: (rows["time"].min(), rows["time"].max()) for name, rows in parts.items()},  # type: ignore[misc]
        positives={
            label.removeprefix("label:"): {name: int((rows[label] > 0).sum()) for name, rows in parts.items()}
            for label in labels
        },
        requests=log.events["request"].n_unique() if "request" in log.events.columns else None,
        dropped=log.dropped,
    )


def prepared_meta(
    definition: DatasetDefinition, log: Summary, encoded: list[Encoded], not_described: Mapping[str, int]
) -> dict[str, Any]:
    """All of ``meta.json`` but schema, name and digest. ``not_described``: table -> ids of the log that it lacks."""
    labels = list(definition.labels)
    prior = {label: log.positives[label]["train"] / log.rows["train"] for label in labels}
    span = log.time["train"][1] - log.time["train"][0]
    by_kind = {kind: [f for f in definition.feature if f.kind == kind] for kind in ("statistic", "history")}
    histories = [{"name": f.name, "length": f.history_length, "events": f.events} for f in by_kind["history"]]
    return {
        "features": [asdict(feature) for feature in _features(definition, log, encoded)],
        "num_users": log.num_users,
        "num_items": log.num_items,
        "time_offset": min(first for first, _ in log.time.values()) if definition.roles.time else 0,
        "has_time": definition.roles.time is not None,
        "has_requests": definition.roles.request is not None,
        "split": definition.split.kind,
        "labels": labels,
        "expected": definition.expect.model_dump(mode="json", exclude_defaults=True),
        "statistics": [
            {
                **f.model_dump(mode="json", include={"name", "keys", "aggregate", "value", "smoothing"}),
                "prior": prior[f.value] if f.value else 0.0,
                "window": f.window_seconds,
                "span": span if f.window_seconds is None else f.window_seconds,
            }
            for f in by_kind["statistic"]
        ],
        "histories": histories,
        "numeric": {part.feature.name: part.scale for part in encoded if part.scale},
        "counts": _counts(encoded, log, not_described),
        "tags_index": {},
    }


def _features(definition: DatasetDefinition, log: Summary, encoded: list[Encoded]) -> list[Feature]:
    """The ids first, then the declared features in their order."""
    items = log.num_items + 1
    stored = {part.feature.name: part.feature for part in encoded}
    features = [
        Feature(USER_ID, "categorical", "user", "recall", log.num_users + 1, vocabulary=USER_ID),
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


def _counts(encoded: list[Encoded], log: Summary, not_described: Mapping[str, int]) -> dict[str, Any]:
    """What ``describe`` prints."""
    return {
        "rows": log.rows,
        "users": log.users,
        "items": log.items,
        "time": {name: list(ends) for name, ends in log.time.items()},
        "label_rate": {
            label: {name: count / log.rows[name] for name, count in by_part.items()}
            for label, by_part in log.positives.items()
        },
        "requests": log.requests,
        "dropped": log.dropped,
        "not_described": dict(not_described),
        "missing": {part.feature.name: part.missing for part in encoded},
    }

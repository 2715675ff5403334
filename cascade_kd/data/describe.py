"""What a prepared data set holds, as plain data and as tables for a terminal (floor 2)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from cascade_kd.errors import DataError
from cascade_kd.types import PARTS


def description(prepared: Path) -> dict[str, Any]:
    """Sizes, parts, label rates, what was dropped, and every feature, as JSON values.

    Keys: name, sha256, split, users, items, events, requests (None without), parts (part -> rows, users, items, from,
    to; unix seconds), label_rate (label -> part -> mean), dropped (events, users, items), not_described (table -> ids
    of the log that it lacks), features (name, kind, side, available, vocabulary size, length, missing).
    Raises ``DataError`` if ``prepared`` is not a prepared directory.
    """
    path = prepared / "meta.json"
    if not path.is_file():
        raise DataError(f"{prepared} is no prepared data set: meta.json is missing; prepare it again")
    meta = json.loads(path.read_text(encoding="utf-8"))
    counts = meta["counts"]
    parts = {
        part: {
            "rows": counts["rows"][part],
            "users": counts["users"][part],
            "items": counts["items"][part],
            "from": counts["time"][part][0] if meta["has_time"] else None,
            "to": counts["time"][part][1] if meta["has_time"] else None,
        }
        for part in PARTS
    }
    features = [
        {
            "name": feature["name"],
            "kind": feature["kind"],
            "side": feature["side"],
            "available": feature["available"],
            "vocabulary": max(feature["size"] - 1, 0),
            "length": feature["length"],
            "missing": counts["missing"].get(feature["name"], 0),
        }
        for feature in meta["features"]
    ]
    return {
        "name": meta["name"],
        "sha256": meta["sha256"],
        "split": meta["split"],
        "users": meta["num_users"],
        "items": meta["num_items"],
        "events": sum(counts["rows"].values()),
        "requests": counts["requests"],
        "parts": parts,
        "label_rate": counts["label_rate"],
        "dropped": counts["dropped"],
        "not_described": counts["not_described"],
        "features": features,
    }


def render(description: Mapping[str, Any]) -> list[Table]:
    """The tables of a :func:`description`: sizes, parts with label rates, features."""
    return [_sizes(description), _parts(description), _features(description)]


def _sizes(description: Mapping[str, Any]) -> Table:
    table = Table(title=description["name"], show_header=False, title_justify="left")
    table.add_column("what")
    table.add_column("how many", justify="right")
    for what in ("users", "items", "events", "requests"):
        if description[what] is not None:
            table.add_row(what, f"{description[what]:,}")
    for what, count in description["dropped"].items():
        table.add_row(f"{what} dropped by the filter", f"{count:,}")
    for holder, count in description["not_described"].items():
        table.add_row(f"without a row in {holder}", f"{count:,}")
    table.add_row("sha256", description["sha256"][:16])
    return table


def _parts(description: Mapping[str, Any]) -> Table:
    table = Table(title=f"split: {description['split']}", title_justify="left")
    table.add_column("part")
    for column in ("rows", "users", "items", *description["label_rate"], "from", "to"):
        table.add_column(column, justify="right")
    for part, numbers in description["parts"].items():
        rates = [f"{rate[part]:.4f}" for rate in description["label_rate"].values()]
        sizes = [f"{numbers[column]:,}" for column in ("rows", "users", "items")]
        table.add_row(part, *sizes, *rates, _day(numbers["from"]), _day(numbers["to"]))
    return table


def _features(description: Mapping[str, Any]) -> Table:
    table = Table(title="features", title_justify="left")
    for column in ("name", "kind", "side", "available"):
        table.add_column(column, no_wrap=True)
    for column in ("vocabulary", "length", "missing"):
        table.add_column(column, justify="right")
    for feature in description["features"]:
        sizes = (feature["vocabulary"], feature["length"] if feature["length"] > 1 else 0, feature["missing"])
        names = (feature["name"], feature["kind"], feature["side"], feature["available"])
        table.add_row(*names, *(f"{size:,}" if size else "" for size in sizes))
    return table


def _day(seconds: int | None) -> str:
    """Unix seconds as a day of UTC; as they are where they lie outside the calendar."""
    if seconds is None:
        return ""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
    except (OverflowError, ValueError, OSError):
        return str(seconds)

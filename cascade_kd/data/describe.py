"""What a prepared data set holds, as plain data and as tables for a terminal (floor 2)."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from cascade_kd.data.features import UNIT_SECONDS
from cascade_kd.errors import DataError
from cascade_kd.types import LEVELS, PARTS


def description(prepared: Path) -> dict[str, Any]:
    """Sizes, parts, label rates, what was dropped, and every feature, as JSON values.

    Keys: name, sha256, split, users, items, events, requests (None without), expected (what of these the TOML expects
    and preparation has verified), parts (part -> rows, users, items, from, to; unix seconds), label_rate (label -> part
    -> mean), dropped (events, users, items), not_described (table -> ids of the log that it lacks), features (name,
    kind, side, available, vocabulary size, length, missing, detail), levels (level -> names of the features that are
    online there, and of those that are privileged).
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
    details = _details(meta)
    features = [
        {
            "name": feature["name"],
            "kind": feature["kind"],
            "side": feature["side"],
            "available": feature["available"],
            "vocabulary": max(feature["size"] - 1, 0),
            "length": feature["length"],
            "missing": counts["missing"].get(feature["name"], 0),
            "detail": details.get(feature["name"], ""),
        }
        for feature in meta["features"]
    ]
    available = {feature["name"]: LEVELS.index(feature["available"]) for feature in features}
    levels = {
        level: {
            "online": [name for name, first in available.items() if first <= depth],
            "privileged": [name for name, first in available.items() if first > depth],
        }
        for depth, level in enumerate(LEVELS)
        if level != "never"
    }
    return {
        "name": meta["name"],
        "sha256": meta["sha256"],
        "split": meta["split"],
        "users": meta["num_users"],
        "items": meta["num_items"],
        "events": sum(counts["rows"].values()),
        "requests": counts["requests"],
        "expected": meta.get("expected", {}),
        "parts": parts,
        "label_rate": counts["label_rate"],
        "dropped": counts["dropped"],
        "not_described": counts["not_described"],
        "features": features,
        "levels": levels,
    }


def render(description: Mapping[str, Any]) -> list[Table]:
    """The tables of a :func:`description`: sizes, parts with label rates, features, what each level sees of them."""
    return [_sizes(description), _parts(description), _features(description), _levels(description)]


def _details(meta: Mapping[str, Any]) -> dict[str, str]:
    """What a look-up or a vector is, in words: feature -> detail."""
    details: dict[str, str] = {}
    for feature in meta["features"]:
        if feature["kind"] in ("tags", "vector"):
            details[feature["name"]] = f"{'at most' if feature['kind'] == 'tags' else 'width'} {feature['length']}"
    for history in meta["histories"]:
        details[history["name"]] = f"last {history['length']}" + (
            f" of {history['events']}" if history["events"] else ""
        )
    for statistic in meta["statistics"]:
        value = f" of {statistic['value']}" if statistic["value"] else ""
        window = "" if statistic.get("window") is None else f" within {_span(statistic['window'])}"
        details[statistic["name"]] = f"{statistic['aggregate']}{value} by {' x '.join(statistic['keys'])}{window}"
    return details


def _sizes(description: Mapping[str, Any]) -> Table:
    expected = {what: f"{want:,}" for what, want in description["expected"].items() if isinstance(want, int)}
    rates = description["expected"].get("label_rate", {})
    table = _table(description["name"], "", "how many", *(["expected"] if expected or rates else []), words=("",))
    for what in ("users", "items", "events", "requests"):
        if description[what] is not None:
            table.add_row(what, f"{description[what]:,}", *([expected[what]] if what in expected else []))
    for label, rate in rates.items():
        rows = [
            (numbers["rows"], description["label_rate"][label][part]) for part, numbers in description["parts"].items()
        ]
        table.add_row(f"share of {label}", f"{sum(n * x for n, x in rows) / sum(n for n, _ in rows):.4f}", str(rate))
    left_out = {f"{what} dropped by the filter": count for what, count in description["dropped"].items()}
    left_out |= {f"without a row in {holder}": count for holder, count in description["not_described"].items()}
    for what, count in left_out.items():
        if count:
            table.add_row(what, f"{count:,}")
    table.add_row("sha256", description["sha256"][:16])
    return table


def _parts(description: Mapping[str, Any]) -> Table:
    columns = ("part", "rows", "users", "items", *description["label_rate"], "from", "to")
    table = _table(f"split: {description['split']}", *columns, words=("part",))
    for part, numbers in description["parts"].items():
        rates = [f"{rate[part]:.4f}" for rate in description["label_rate"].values()]
        sizes = [f"{numbers[column]:,}" for column in ("rows", "users", "items")]
        table.add_row(part, *sizes, *rates, _day(numbers["from"]), _day(numbers["to"]))
    return table


def _features(description: Mapping[str, Any]) -> Table:
    words = ("name", "kind", "side", "available", "detail")
    table = _table("features", *words[:-1], "values", "missing", words[-1], words=words)
    table.columns[-1].no_wrap, table.columns[-1].overflow = False, "fold"
    for feature in description["features"]:
        names = (feature["name"], feature["kind"], feature["side"], feature["available"])
        sizes = (f"{feature[key]:,}" if feature[key] else "" for key in ("vocabulary", "missing"))
        table.add_row(*names, *sizes, feature["detail"])
    return table


def _levels(description: Mapping[str, Any]) -> Table:
    """How many features a stage of each level sees, and which ones only its teacher may see."""
    table = _table("levels", "level", "online", "privileged", "which", words=("level", "which"))
    table.columns[-1].no_wrap, table.columns[-1].overflow = False, "fold"
    for level, names in description["levels"].items():
        table.add_row(
            level, *(str(len(names[key])) for key in ("online", "privileged")), ", ".join(names["privileged"])
        )
    return table


def _table(title: str, *columns: str, words: Collection[str]) -> Table:
    """An empty table whose columns hold numbers, but for those in ``words``."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in words else "right", no_wrap=True)
    return table


def _span(seconds: int) -> str:
    """Seconds in the largest unit that measures them, as a TOML writes a window."""
    return next(f"{seconds // unit}{name}" for name, unit in reversed(UNIT_SECONDS.items()) if seconds % unit == 0)


def _day(seconds: int | None) -> str:
    """Unix seconds as a day of UTC; as they are where they lie outside the calendar."""
    if seconds is None:
        return ""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
    except (OverflowError, ValueError, OSError):
        return str(seconds)

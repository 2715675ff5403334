"""The run directory: whose it is, what is in it, what a resume may reuse (floor 8)."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from cascade_kd.errors import RunError
from cascade_kd.report import atomic_write_text

CONFIG = "config.toml"
METRICS = "metrics.json"
REPORT = "report.html"
EVENTS = "events.ndjson"
CHECKPOINTS = "checkpoints"
ORIGIN = "origin"  # what `init_from` of a later run reads
CRASH = "crash.txt"


def check_folder(folder: Path, config_toml: str, *, resume: bool) -> None:
    """Whether ``folder`` may become this run's own; nothing is written.

    Raises RunError if it holds a run and ``resume`` is not set, if it holds none and ``resume`` is set, or if the
    resolved configuration differs: the first difference is named.
    """
    held = folder / CONFIG
    if not held.exists():
        if resume:
            raise RunError(f"{folder} holds no run to resume; run without --resume")
        if folder.is_dir() and any(path.name != CRASH for path in folder.iterdir()):
            raise RunError(f"{folder} is not empty and holds no run; choose another --out")
        return
    if not resume:
        raise RunError(f"{folder} already holds a run; continue it with --resume, or choose another --out")
    difference = first_difference(tomllib.loads(held.read_text("utf-8")), tomllib.loads(config_toml))
    if difference:
        raise RunError(f"{folder} holds a run of another configuration: {difference}; choose another --out")


def claim(folder: Path, config_toml: str) -> None:
    """Make ``folder`` this run's own: once the data is there and fit, so that a data error leaves no run behind."""
    if not (folder / CONFIG).exists():
        atomic_write_text(folder / CONFIG, config_toml)


def check_data(folder: Path, data_sha256: str) -> None:
    """Note the data's hash at the first start, compare it at a resume. Raises RunError if it differs."""
    path = folder / ORIGIN / "data.json"
    if not path.exists():
        atomic_write_text(path, json.dumps({"sha256": data_sha256}) + "\n")
        return
    held = json.loads(path.read_text("utf-8"))["sha256"]
    if held != data_sha256:
        raise RunError(
            f"{folder} holds a run on other data (sha256 {held[:12]}…, now {data_sha256[:12]}…); choose another --out"
        )


def first_difference(held: Any, wanted: Any, key: str = "") -> str:
    """The first key that differs between two resolved configurations, with both values; empty if none does."""
    if isinstance(held, dict) and isinstance(wanted, dict):
        for name in [*held, *(name for name in wanted if name not in held)]:
            path = f"{key}.{name}" if key else name
            if name not in wanted or name not in held:
                return f"{path} is {'new' if name in wanted else 'gone'}"
            found = first_difference(held[name], wanted[name], path)
            if found:
                return found
        return ""
    if isinstance(held, list) and isinstance(wanted, list) and len(held) == len(wanted):
        pairs = enumerate(zip(held, wanted, strict=True))
        return next((text for i, (a, b) in pairs if (text := first_difference(a, b, f"{key}.{i}"))), "")
    return "" if held == wanted else f"{key} was {held!r}, now {wanted!r}"


def trim_events(path: Path, reached: dict[tuple[int, int, str], int]) -> None:
    """Drop logged points that lie beyond their stage's last checkpoint: a resume will log them again.

    ``reached`` maps (seed, round, stage) to the checkpoint's step; stages without one lose all their points.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text("utf-8").splitlines():
        try:
            point = json.loads(line)
        except json.JSONDecodeError:
            continue  # the line that a kill cut off
        before = "peers" in point  # an exchange comes before its step
        if point["step"] + before <= reached.get((point["seed"], point["round"], point["stage"]), -1):
            kept.append(line)
    atomic_write_text(path, "".join(f"{line}\n" for line in kept))

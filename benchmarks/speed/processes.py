"""A contender's process: run it, read its figures, keep them."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
PEERS = ROOT / "benchmarks" / "peers"
PREFIX = "RESULT "


def run(name: str, command: Sequence[str], folder: Path, *, threads: int) -> dict[str, Any]:
    """Run one process and return what it printed. Raises ``SystemExit`` with its messages if it fails."""
    libraries = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS")
    environment = {**os.environ, **dict.fromkeys(libraries, str(threads)), "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {"BENCH_STARTED": repr(time.time()), "OMP_WAIT_POLICY": "passive"}
    load = os.getloadavg()
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith(PREFIX)]
    if done.returncode or not lines:
        raise SystemExit(f"{name} failed ({done.returncode}):\n{done.stderr[-3000:]}")
    return {"load": [round(x, 2) for x in load], **json.loads(lines[-1].removeprefix(PREFIX))}


def commit() -> str:
    """The commit, with ``+`` if the library or the benchmarks differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "cascade_kd", "datasets", "benchmarks/peers", "benchmarks/speed")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def keep(line: dict[str, Any], out: Path | None) -> None:
    """Append a measurement to the file of results."""
    if out:
        rounded = {key: round(value, 5) if isinstance(value, float) else value for key, value in line.items()}
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rounded) + "\n")


def spread(values: list[float], digits: int) -> str:
    """Median and range."""
    low, middle, high = (f"{x:,.{digits}f}" for x in (min(values), statistics.median(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({low} to {high})"


def markdown(rows: list[list[str]]) -> str:
    """The rows as a table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)

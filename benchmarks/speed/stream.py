"""A log larger than memory: prepared with layout "stream" and iterated once, in how much time, memory and disk.

    python benchmarks/speed/stream.py [--rows 1_000_000] [--max-rss-gib 4] [--max-disk-gb 20]

Writes unordered Parquet files of 8 columns (and an item table) below --folder, with a mean of the label for each (user,
category of the item) of 10^7 pairs at most, prepares them and reads one shuffled epoch of 8 columns. Generation,
preparation and the epoch each run in a process of their own, whose peak resident memory is its own; pages of
memory-mapped files count as memory. The peak of the disk is of the raw files, the cache and all that is on its way,
looked at twice a second. Fails above the limits, and appends one JSON line to --out.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

CATEGORIES = 99
DAYS = 60
CHUNK = 1_000_000
TOML = """
name = "stream-benchmark"
licence = "generated"
path = "{folder}"
[tables.events]
file = "events"
format = "parquet"
[tables.items]
file = "items.parquet"
format = "parquet"
[roles]
user = "user"
item = "item"
time = "time"
[labels]
click = "click = 1"
[[feature]]
name = "category"
kind = "categorical"
side = "item"
available = "recall"
[[feature]]
name = "channel"
kind = "categorical"
side = "context"
available = "recall"
[[feature]]
name = "page"
kind = "categorical"
side = "context"
min_count = 2
available = "recall"
[[feature]]
name = "price"
kind = "numeric"
side = "pair"
table = "events"
transform = "log1p"
available = "rank"
[[feature]]
name = "dwell"
kind = "numeric"
side = "pair"
table = "events"
available = "never"
[[feature]]
name = "user_category_click_rate"
kind = "statistic"
side = "pair"
keys = ["user", "item.category"]
value = "click"
aggregate = "mean"
available = "rank"
[split]
kind = "{split}"
[storage]
layout = "stream"
bucket_rows = {bucket_rows}
"""
COLUMNS = ["user", "item", "label:click", "feature:channel", "feature:page", "feature:price", "feature:dwell"]
COLUMNS += ["statistic:user_category_click_rate"]


def generate(folder: Path, rows: int) -> None:
    """Files of a million rows in no order of time."""
    users, items = max(rows // 1_000, 10), max(rows // 1_000, 10)
    (folder / "events").mkdir(parents=True)
    rng = np.random.default_rng(0)
    category = rng.integers(0, CATEGORIES, items)
    pl.DataFrame({"item": np.arange(items), "category": category}).write_parquet(folder / "items.parquet")
    for number, start in enumerate(range(0, rows, CHUNK)):
        count = min(CHUNK, rows - start)
        frame = pl.DataFrame(
            {
                "user": rng.integers(0, users, count),
                "item": (items * rng.random(count) ** 2).astype(np.int64),
                "time": rng.integers(1_700_000_000, 1_700_000_000 + DAYS * 86_400, count),
                "click": (rng.random(count) < 0.2).astype(np.int8),
                "channel": np.array(["web", "app", "mail", "tv"])[rng.integers(0, 4, count)],
                "page": rng.integers(0, 1_000, count).astype(np.int32),
                "price": rng.integers(1, 10_000, count) / 100,
                "dwell": rng.integers(0, 600, count).astype(np.float32),
            }
        )
        frame.write_parquet(folder / "events" / f"part-{number:05d}.parquet")


def prepare(toml: Path) -> str:
    from cascade_kd.config import load_dataset_definition
    from cascade_kd.data import prepare

    definition, file = load_dataset_definition(toml)
    return str(prepare(definition, base=file.parent))


def iterate(prepared: Path) -> int:
    """One shuffled epoch of the training part; how many rows came."""
    from cascade_kd.data.stream import StreamReader

    reader = StreamReader(prepared / "events" / "part=train", COLUMNS, batch_size=4096, seed=0)
    return sum(len(reader.batch(step)["sample"]) for step in range(reader.steps_per_epoch))


def run_phase(phase: str, folder: Path, options: argparse.Namespace) -> tuple[dict[str, float], Any]:
    """One phase in a process of its own, and the disk that it takes at most meanwhile."""
    command = [sys.executable, __file__, "--phase", phase, "--folder", str(folder), "--rows", str(options.rows)]
    environment = {**os.environ, "CASCADE_KD_CACHE": str(folder / "cache")}
    start, peak = time.perf_counter(), 0
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
        while child.poll() is None:
            peak = max(peak, size_of(folder))
            time.sleep(0.5)
        assert child.stdout is not None
        said = json.loads(child.stdout.read() or "{}")
    if child.returncode:
        raise SystemExit(f"{phase} failed with exit code {child.returncode}")
    figures = {"seconds": round(time.perf_counter() - start, 1), "rss_gib": round(said["rss"] / 2**30, 3)}
    return {**figures, "disk_gb": round(max(peak, size_of(folder)) / 1e9, 3), "took": said["seconds"]}, said["result"]


def size_of(folder: Path) -> int:
    """The bytes on disk of all files below a folder from which files vanish meanwhile."""
    total, folders = 0, [folder]
    while folders:
        try:
            for entry in os.scandir(folders.pop()):
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                else:
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
        except FileNotFoundError:
            continue
    return total


def phase(options: argparse.Namespace) -> None:
    """What the child does: one JSON object with its result and its peak resident memory in bytes."""
    start = time.perf_counter()
    result: object = None
    if options.phase == "generate":
        generate(options.folder, options.rows)
    elif options.phase == "prepare":
        result = prepare(options.folder / "benchmark.toml")
    else:
        (prepared,) = (options.folder / "cache" / "datasets").iterdir()
        result = iterate(prepared)
    seconds = round(time.perf_counter() - start, 2)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"result": result, "rss": peak, "seconds": seconds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--bucket-rows", type=int, default=2_000_000)
    parser.add_argument("--split", default="time", choices=["time", "per-user-time", "leave-last-out"])
    parser.add_argument("--max-rss-gib", type=float, default=4.0)
    parser.add_argument("--max-disk-gb", type=float, default=20.0)
    parser.add_argument("--folder", type=Path, help="where its files lie meanwhile; default: a temporary folder")
    parser.add_argument("--out", type=Path, help="append the figures as one JSON line")
    parser.add_argument("--phase", choices=["generate", "prepare", "iterate"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.phase:
        phase(options)
        return
    folder = Path(tempfile.mkdtemp(prefix="stream-benchmark-", dir=options.folder))
    try:
        text = TOML.format(folder=folder, split=options.split, bucket_rows=options.bucket_rows)
        (folder / "benchmark.toml").write_text(text)
        phases: dict[str, dict[str, float]] = {}
        for name in ("generate", "prepare", "iterate"):
            phases[name], result = run_phase(name, folder, options)
            rows = result if name == "iterate" else options.rows
            print(f"{name:8s} {rows / phases[name]['took']:>12,.0f} rows/s  {phases[name]}", flush=True)
    finally:
        shutil.rmtree(folder)
    rss = max(phases[name]["rss_gib"] for name in ("prepare", "iterate"))
    disk = max(figures["disk_gb"] for figures in phases.values())
    about = {"benchmark": "stream", "rows": options.rows, "bucket_rows": options.bucket_rows, "split": options.split}
    cores = len(os.sched_getaffinity(0))
    line = {**about, "trained_rows": rows, "cores": cores, "rss_gib": rss, "disk_gb": disk, "phases": phases}
    if options.out:
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    if rss > options.max_rss_gib or disk > options.max_disk_gb:
        raise SystemExit(
            f"{rss} GiB of memory and {disk} GB of disk; {options.max_rss_gib} and {options.max_disk_gb} allowed"
        )


if __name__ == "__main__":
    main()

"""What every contender measures in the same way, in its own process: marks, memory, one JSON line.

A runner imports what it needs, calls :func:`imported`, makes its loader and hands it to :func:`finish`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

STARTED = float(os.environ.get("BENCH_STARTED", time.time()))  # unix seconds at which the process was started
PREFIX = "RESULT "
HISTORY_LENGTH = 50
marks: dict[str, float] = {}
cpu_marks: dict[str, float] = {}


def options(doc: str | None) -> argparse.Namespace:
    """The command line of every runner."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the raw MovieLens-1M files")
    parser.add_argument("--converted", type=Path, required=True, help="the folder of what --convert writes")
    parser.add_argument("--work", type=Path, required=True, help="the folder of what the loader stores")
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--history", action="store_true", help=f"with the user's last {HISTORY_LENGTH} films")
    parser.add_argument("--all-features", action="store_true", help="all that the library makes of the set")
    parser.add_argument("--cached", action="store_true", help="store what a later run of the same --work can use")
    parser.add_argument("--convert", action="store_true", help="only write the files that the loader reads")
    return parser.parse_args()


def mark(name: str) -> None:
    """Wall-clock seconds since the process was started."""
    marks[name] = time.time() - STARTED
    cpu_marks[name] = time.process_time()


def imported() -> None:
    """All imports are done: what follows counts as loading. Gives torch the threads that the others get."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    mark("imported")


def converted() -> None:
    """The files that the loader reads are written."""
    mark("done")
    show({"convert_s": marks["done"] - marks["imported"]})


def finish(epoch: Callable[[], Iterable[Mapping[str, Tensor]]], packages: Iterable[str]) -> None:
    """Take the first batch of an epoch, then one whole epoch; print the figures. A batch maps names to tensors."""
    first = dict(next(iter(epoch())))
    mark("first_batch")
    memory = memory_mib()
    rows, positives = 0, 0.0
    start = time.perf_counter()
    for batch in epoch():
        rows += len(batch["label"])
        positives += float(batch["label"].sum())
    seconds = time.perf_counter() - start
    show(
        {
            "import_s": marks["imported"],
            "first_batch_s": marks["first_batch"],
            "first_batch_after_imports_s": marks["first_batch"] - marks["imported"],
            "cpu_s": cpu_marks["first_batch"] - cpu_marks["imported"],
            **memory,
            "epoch_s": seconds,
            "epoch_rows_per_s": rows / seconds,
            "train_rows": rows,
            "label_rate": positives / rows,
            "columns": {name: list(x.shape) for name, x in sorted(first.items())},
            "versions": {"python": sys.version.split()[0]} | {name: version(name) for name in packages},
            **{f"{name}_s": seconds for name, seconds in marks.items() if name not in ("imported", "first_batch")},
        }
    )


def memory_mib() -> dict[str, float]:
    """Peak resident memory of this process, and the sum of the peaks of the processes it started."""
    parents: dict[int, int] = {}
    peaks: dict[int, float] = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except OSError:
            continue  # it ended meanwhile
        pid = int(status.parent.name)
        parents[pid] = int(fields["PPid"])
        peaks[pid] = int(fields.get("VmHWM", "0 kB").split()[0]) / 1024
    mine, family = os.getpid(), {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"peak_rss_mib": own, "helpers_peak_rss_mib": sum(peaks[pid] for pid in family - {mine})}


def show(figures: Mapping[str, object]) -> None:
    """One line for the driver to read."""
    print(PREFIX + json.dumps(figures), flush=True)

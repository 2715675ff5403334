"""Time of a training step against the length of its embedding table, with row-sparse optimisers and with dense Adam.

    python benchmarks/speed/optimizer.py [--threads 2] [--out benchmarks/results/optimizer.jsonl]

Every length has a process of its own, which alternates between a table of that length and one of 100,000 rows:

- step: look-up, backward pass and update, of 4096 x 10 uniform ids;
- network: the same below an MLP of 400-400-400 with its loss and Adam, a training step as a ranker has it;
- bare: ``index_select`` of the same rows and ``index_copy_`` of them back, what no optimiser can do without.

Times are [least, median] of the turns; growth is that of the least time, and the median over the turns of the long
table's time by the short one's. Other work on the machine spoils medians first. Peak memory is what the process added
after its imports: both tables, their state and the short-lived tensors of a step.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cascade_kd.models import MLP, Table
from cascade_kd.train.loop import flushed_denormals
from cascade_kd.train.row_optimizers import RowAdagrad, RowAdam

BATCH, FIELDS, DIM, SHORT = 4096, 10, 8, 100_000
LENGTHS = {
    "rowwise-adagrad": (10**5, 10**6, 10**7, 10**8),
    "sparse-adam": (10**5, 10**6, 10**7, 3 * 10**7),
    "adam": (10**4, 10**5, 10**6, 10**7),
}


def optimizer_of(kind: str, table: Table) -> torch.optim.Optimizer:
    if kind == "adam":
        return torch.optim.Adam([table.weight], lr=1e-3, fused=True)
    if kind == "sparse-adam":
        return RowAdam([table], lr=1e-3)
    return RowAdagrad([table], lr=0.05, rowwise=True)


class Trained:
    """A table, its optimiser and a network above it."""

    def __init__(self, kind: str, rows: int) -> None:
        start = time.perf_counter()
        self.rows = rows
        self.table = Table(rows, DIM, std=0.05)
        self.optimizer = optimizer_of(kind, self.table)
        self.init_s = time.perf_counter() - start
        self.mlp = MLP(FIELDS * DIM, (400, 400, 400))
        self.head = nn.Linear(400, 1)
        self.dense = torch.optim.Adam([*self.mlp.parameters(), *self.head.parameters()], lr=1e-3, fused=True)
        self.generator = torch.Generator().manual_seed(rows)

    def ids(self) -> Tensor:
        return torch.randint(0, self.rows, (BATCH, FIELDS), generator=self.generator)

    def step(self, ids: Tensor, grad: Tensor) -> None:
        self.optimizer.zero_grad()
        self.table(ids).backward(grad)
        self.optimizer.step()

    def network(self, ids: Tensor, grad: Tensor) -> None:
        self.optimizer.zero_grad()
        self.dense.zero_grad()
        deep, _ = self.mlp(self.table(ids).flatten(1), ())
        nn.functional.binary_cross_entropy_with_logits(self.head(deep), grad[:, 0, :1].sigmoid()).backward()
        self.dense.step()
        self.optimizer.step()

    def bare(self, ids: Tensor, grad: Tensor) -> None:
        with torch.no_grad():
            weight, flat = self.table.weight, ids.flatten()
            weight.index_copy_(0, flat, weight.index_select(0, flat))


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(kind: str, rows: int, turns: int) -> dict[str, Any]:
    """One length against the short table, in this process."""
    Trained(kind, 1000).step(torch.zeros(BATCH, FIELDS, dtype=torch.int64), torch.zeros(BATCH, FIELDS, DIM))
    before = peak_bytes()
    short, long = Trained(kind, SHORT), Trained(kind, rows)
    grad = torch.randn(BATCH, FIELDS, DIM) * 1e-3
    actions: dict[str, Callable[[Trained, Tensor, Tensor], None]] = {
        "step": Trained.step,
        "network": Trained.network,
        "bare": Trained.bare,
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in actions}
    with flushed_denormals():
        for turn in range(turns + 3):
            for name, action in actions.items():
                pair = []
                for trained in (short, long) if turn % 2 else (long, short):
                    ids = trained.ids()
                    start = time.perf_counter()
                    action(trained, ids, grad)
                    pair.append(time.perf_counter() - start)
                if turn >= 3:
                    seconds[name].append((pair[0], pair[1]) if turn % 2 else (pair[1], pair[0]))
    found: dict[str, Any] = {"benchmark": "optimizer", "kind": kind, "rows": rows, "turns": turns}
    for name, pairs in seconds.items():
        short_s, long_s = zip(*pairs, strict=True)
        found[f"{name}_ms"] = [round(1000 * f(long_s), 2) for f in (min, statistics.median)]
        found[f"{name}_ms_short"] = [round(1000 * f(short_s), 2) for f in (min, statistics.median)]
        found[f"{name}_growth"] = [
            round(min(long_s) / min(short_s), 2),
            round(statistics.median(b / a for a, b in pairs), 2),
        ]
    held = long.table.weight.nbytes + sum(x.nbytes for x in long.optimizer.state[long.table.weight].values())
    return found | {
        "init_s": round(long.init_s, 2),
        "table_and_state_gb": round(held / 1e9, 3),
        "peak_gb": round((peak_bytes() - before) / 1e9, 3),
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--most", type=int, default=10**8, help="the longest table")
    parser.add_argument("--out", type=Path, help="append the figures, one JSON line a length")
    parser.add_argument("--only", nargs=2, metavar=("KIND", "ROWS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        torch.set_num_threads(args.threads)
        print(json.dumps(measure(args.only[0], int(args.only[1]), args.turns)))
        return
    for kind, lengths in LENGTHS.items():
        for rows in lengths:
            if rows <= args.most:
                command = [sys.executable, __file__, "--only", kind, str(rows)]
                command += ["--turns", str(args.turns), "--threads", str(args.threads)]
                line = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                print(line, end="", flush=True)
                if args.out:
                    with args.out.open("a", encoding="utf-8") as file:
                        file.write(line)


if __name__ == "__main__":
    main()

"""A long embedding table shared out by row over ranks: memory, time and bytes of a training step.

    torchrun --standalone --nproc-per-node 2 benchmarks/speed/shards.py [--rows 100000000] [--steps 50]

Every rank looks 40,960 uniform ids up (a batch of 4,096 with 10 fields), takes the gradient of their sum of squares and
updates by row-wise Adagrad. Rank 0 prints one JSON line: the rank's peak memory, the table's and its state's share, the
median step, and what a rank gives to collectives in a step.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections import Counter
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from cascade_kd.models import Table
from cascade_kd.models.shards import Shard
from cascade_kd.streams import generator_at, stream
from cascade_kd.train.distributed import barrier, joined, num_ranks, rank
from cascade_kd.train.row_optimizers import RowAdagrad

IDS = 40_960
DIM = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    given: Counter[str] = Counter()
    inner = dist.all_to_all_single

    def counting(output: torch.Tensor, rows: torch.Tensor, *splits: Any) -> Any:
        given["bytes"] += rows.numel() * rows.element_size()
        return inner(output, rows, *splits)

    dist.all_to_all_single = counting
    with joined(torch.device("cpu")):
        shard = Shard(options.rows, rank(), num_ranks())
        table = Table(shard.end - shard.first, DIM, 1e-2)
        table.shard = shard if num_ranks() > 1 else None
        optimizer = RowAdagrad([table], lr=1e-2, rowwise=True)
        seconds = []
        for step in range(options.steps):
            generator = generator_at(stream("ids", rank()), step)
            code_E = torch.randint(options.rows, (IDS,), generator=generator)
            barrier()
            start = time.perf_counter()
            optimizer.zero_grad()
            table(code_E).square().sum().backward()
            optimizer.step()
            seconds.append(time.perf_counter() - start)
        line = {
            "rows": options.rows,
            "ranks": num_ranks(),
            "table_and_state_gb": round((shard.end - shard.first) * (DIM + 1) * 4 / 1e9, 3),
            "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3),
            "step_ms": round(1000 * median(seconds), 2),
            "given_per_step": round(given["bytes"] / options.steps),
        }
        if rank() == 0:
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()

"""Throughput and bytes of one training over ranks, each with one thread, beside one process with as many threads.

Beside them a codistilled pair in one process of one thread: what a step of a peer costs, that of one training being 1.

    python benchmarks/speed/ranks.py --out runs/ranks --ranks 1 2 >> benchmarks/results/ranks.jsonl

Trains the ranker of the embedded world on a million rows, in steps of ``--batches`` rows of all ranks together, with a
dense and with a row-sparse update of its tables, in turns, ``--turns`` times. One JSON line each: impressions a second
of the last epoch, and what one rank gives to collectives in a step, bytes: a ring all-reduce sends 2 (N - 1) / N of it,
an all-gather N - 1 times. The one step of the recall stage is counted, too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

ROWS = 1_000_000
OPTIMIZERS = ("same", "rowwise-adagrad")
PAIR = '{ stage = "rank", peers = 2, data = "same", burn_in_steps = 0, exchange_steps = 50 }'


def counted(out: Path, file: Path, overrides: list[str]) -> None:
    """One rank: the run, and the payload of its collectives."""
    import torch.distributed as dist

    from cascade_kd.config import load_experiment
    from cascade_kd.experiment.run import run
    from cascade_kd.train import ProgressLog

    given: Counter[str] = Counter()

    def counting(name: str, place: int) -> None:
        inner = getattr(dist, name)

        def call(*args: Any, **keys: Any) -> Any:
            given[name] += args[place].numel() * args[place].element_size()
            return inner(*args, **keys)

        setattr(dist, name, call)

    counting("all_reduce", 0)
    counting("all_gather", 1)
    run(
        load_experiment(file, overrides=overrides),
        out,
        device="cpu",
        progress=ProgressLog(quiet=True),
    )
    if int(os.environ.get("RANK", "0")) == 0:
        (out / "given.json").write_text(json.dumps(given), "utf-8")


def measure(out: Path, ranks: int, threads: int, overrides: list[str], steps: int) -> dict[str, Any]:
    """One run of ``ranks`` processes."""
    shutil.rmtree(out, ignore_errors=True)
    here = Path(__file__).resolve()
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *launcher, str(here), "--out", str(out), "--worker", *overrides]
    env = os.environ | {"OMP_NUM_THREADS": str(threads), "CASCADE_KD_CACHE": str(out.parent / "cache")}
    shutil.rmtree(out.parent / "cache" / "stages", ignore_errors=True)
    subprocess.run(command, check=True, env=env)
    lines = map(json.loads, (out / "events.ndjson").read_text("utf-8").splitlines())
    rate = [line["samples_per_s"] for line in lines if line["stage"] == "rank" and "samples_per_s" in line][-1]
    given = json.loads((out / "given.json").read_text("utf-8"))
    return {"impressions_per_s": rate, "given_per_step": {name: round(size / steps) for name, size in given.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batches", type=int, nargs="+", default=[2_048, 16_384])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--worker", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    file = Path(__file__).parents[1] / "distill" / "codistill-world.toml"
    if options.worker is not None:
        counted(options.out, file, options.worker)
        return
    settings = [(ranks, 1, 1) for ranks in options.ranks]
    settings += [(1, ranks, 1) for ranks in options.ranks if ranks > 1] + [(1, 1, 2)]
    turns = itertools.product(range(options.turns), options.batches, OPTIMIZERS, settings)
    for turn, batch, optimizer, (ranks, threads, peers) in turns:
        steps = ROWS // batch
        train = {"max_steps": steps, "batch_size": batch, "embedding_optimizer": optimizer}
        overrides = ["seeds=[0]", *(f"stage.rank.train.{key}={value}" for key, value in train.items())]
        overrides += [f"codistill={PAIR}"] if peers > 1 else []
        found = measure(options.out / "run", ranks, threads, overrides, steps)
        found["impressions_per_s"] *= peers  # they take turns, and each counts its own
        what = {
            "turn": turn,
            "batch": batch,
            "optimizer": optimizer,
            "ranks": ranks,
            "threads": threads,
            "peers": peers,
        }
        print(json.dumps(what | found), flush=True)


if __name__ == "__main__":
    main()

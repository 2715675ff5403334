"""What distilling costs: a step on cached teacher scores and a joint step, beside the plain steps, alternating.

    python benchmarks/speed/distill.py [--steps 40] [--turns 9] [--out benchmarks/results/distill-cost.jsonl]

Four trainings of the two-tower pre-ranker and the ranker of benchmarks/distill/movielens-1m.toml, as an experiment
makes them, go a few steps each in turn: the student alone, the student on cached scores, the ranker alone, both jointly
over shared embeddings. Ratios are of CPU time in turns, then the median of them. Drawing rows, look-ups, loss, backward
pass and update are in a step, validation and checkpoints are not. Bounds: cached <= 1.05 x student; joint <= student +
ranker.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import nn

from cascade_kd.config import load_experiment
from cascade_kd.data import load, prepare
from cascade_kd.experiment import joint, training
from cascade_kd.experiment.rounds import train_rounds
from cascade_kd.experiment.store import Store
from cascade_kd.experiment.training import Workshop
from cascade_kd.interrupt import DeferredInterrupt
from cascade_kd.memory import kept_memory
from cascade_kd.train import ProgressLog, Task
from cascade_kd.train.loop import flushed_denormals, train_epoch, trained_beside
from cascade_kd.train.optimizers import make_optimizers
from cascade_kd.train.state import State
from cascade_kd.train.task import make_batches, make_loss, make_sampler

BASE = Path(__file__).parents[1] / "distill" / "movielens-1m.toml"
PAIR = '\n[[distill]]\nteacher = "rank"\nstudent = "prerank"\nmethod = "logit"\nloss = "mse"\nweight = 0.5\n'
JOINT = PAIR + 'mode = "joint"\nshare = ["embedding"]\n'
BOUNDS = {"cached": 1.05, "joint": 1.0}


def tasks_of(distill: str, out: Path) -> dict[tuple[str, int], Task]:
    """By stage and round, the trainings that an experiment makes, each a step old."""
    made: dict[tuple[str, int], Task] = {}
    real = training.fit

    def recording(task: Task, *args: Any, about: dict[str, Any]) -> list[dict[str, Any]]:
        made[task.stage, about["round"]] = task
        return real(replace(task, train=task.train.model_copy(update={"max_steps": 1})), *args, about=about)

    toml = out / "experiment.toml"
    toml.write_text(BASE.read_text("utf-8").partition("\n[expected")[0] + distill, "utf-8")
    config = load_experiment(toml, overrides=["seeds=[0]"])
    dataset = load(prepare(config.definition, base=config.dataset_file.parent))
    with (
        patch.object(training, "fit", recording),
        patch.object(joint, "fit", recording),
        ProgressLog(quiet=True) as log,
    ):
        train_rounds(Workshop(config, dataset, out / "run", Store(out / "store"), log), 0)
    return made


def stepper(task: Task, steps: int) -> Callable[[], float]:
    """CPU seconds of ``steps`` further steps of a training, which other work disturbs less than the clock."""
    model = cast(nn.Module, task.model)
    sampler = make_sampler(task)
    batches, loss_parts = make_batches(task, sampler), make_loss(task, sampler)
    with trained_beside(model, task.beside):
        optimizers = make_optimizers(model, task.train)

    def go() -> float:
        log, state = ProgressLog(quiet=True), State()
        with trained_beside(model, task.beside), log.stage(task.stage, 1, steps, "auc", {"seed": 0, "round": 0}) as bar:
            start = time.process_time()
            with DeferredInterrupt() as interrupt, flushed_denormals():
                train_epoch(task, model, optimizers, batches, loss_parts, state, steps, 1, bar, interrupt)
            return time.process_time() - start

    return go


def measure(steps: int, turns: int) -> dict[str, Any]:
    """CPU milliseconds a step, medians of turns, and the two ratios."""
    with tempfile.TemporaryDirectory(prefix="distill-cost-") as folder:
        offline, together = Path(folder) / "offline", Path(folder) / "joint"
        for path in (offline, together):
            path.mkdir()
        of_offline, of_joint = tasks_of(PAIR, offline), tasks_of(JOINT, together)
        go = {
            "student": stepper(of_offline["prerank", 0], steps),
            "cached": stepper(of_offline["prerank", 1], steps),
            "ranker": stepper(of_offline["rank", 0], steps),
            "joint": stepper(of_joint["prerank", 1], steps),
        }
        taken: dict[str, list[float]] = {name: [] for name in go}
        for turn in range(turns + 1):
            for name in sorted(go, reverse=bool(turn % 2)):
                seconds = go[name]()
                if turn:  # the first turn warms all up
                    taken[name].append(1000 * seconds / steps)
    ratios = {
        "cached": [c / s for c, s in zip(taken["cached"], taken["student"], strict=True)],
        "joint": [j / (s + r) for j, s, r in zip(taken["joint"], taken["student"], taken["ranker"], strict=True)],
    }
    return {
        "cpu_ms_a_step": {name: round(statistics.median(of), 2) for name, of in taken.items()},
        "cached/student": round(statistics.median(ratios["cached"]), 4),
        "joint/(student+ranker)": round(statistics.median(ratios["joint"]), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--out", type=Path, help="append the figures as one JSON line")
    options = parser.parse_args()
    with kept_memory():
        found = measure(options.steps, options.turns)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=BASE.parent)
    line = {
        "benchmark": "distill",
        "commit": commit.stdout.strip(),
        "threads": torch.get_num_threads(),
        "steps": options.steps,
        "turns": options.turns,
        **found,
    }
    print(json.dumps(line, indent=1))
    if options.out:
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()

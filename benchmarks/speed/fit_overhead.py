"""Training throughput of the ranker: ``fit`` beside a hand-written minimal PyTorch loop, alternating in one process.

    python benchmarks/speed/fit_overhead.py [--dataset movielens-1m] [--steps 100] [--rounds 5]

The loop trains the same model on the same batches with the same optimiser. Its batches are made before the clock
starts and held in memory, so the loop pays for forward, backward and the optimiser alone; ``fit`` pays for drawing the
batch, sampling negatives, gathering features and looking up histories and statistics as well. Validation and
checkpoints are left out of both.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path

import torch

from cascade_kd.config import load_experiment
from cascade_kd.data import Dataset, load, prepare
from cascade_kd.experiment.nets import stage_features
from cascade_kd.interrupt import DeferredInterrupt
from cascade_kd.losses import bce
from cascade_kd.models import DCNv2
from cascade_kd.streams import scoped_seed
from cascade_kd.train import ProgressLog, Task
from cascade_kd.train.loop import train_epoch
from cascade_kd.train.state import State
from cascade_kd.train.task import make_loss, make_sampler
from cascade_kd.types import Inputs

Prepared = tuple[Inputs, torch.Tensor]


def adam(model: torch.nn.Module, rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=rate, fused=True)


def by_hand(model: DCNv2, batches: list[Prepared], rate: float) -> float:
    """Seconds of the minimal loop."""
    optimizer = adam(model, rate)
    start = time.perf_counter()
    for inputs, label_R in batches:
        loss = bce(model(inputs).logits_R, label_R).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return time.perf_counter() - start


def by_fit(task: Task, steps: int) -> float:
    """Seconds of the same steps in ``fit``'s own loop: sampler, look-ups, loss, progress, interrupt handling."""
    assert isinstance(task.model, torch.nn.Module)
    optimizer = adam(task.model, task.train.learning_rate)
    sampler = make_sampler(task)
    loss_parts = make_loss(task, sampler)
    log = ProgressLog(quiet=True)
    about = {"seed": 0, "round": 0}
    with log.stage(task.stage, 1, sampler.steps_per_epoch, "auc", about) as bar:
        start = time.perf_counter()
        with DeferredInterrupt() as interrupt, scoped_seed():
            train_epoch(task, task.model, [optimizer], sampler, loss_parts, State(), steps, 1, bar, interrupt)
        return time.perf_counter() - start


def task_of(dataset: Dataset, experiment: str) -> Task:
    config = load_experiment(experiment)
    stage = config.stages[-1]
    assert stage.train is not None
    # Sampled negatives from the whole catalogue stand in for the upstream lists, which take a trained cascade.
    samples = tuple(
        s.model_copy(update={"source": "uniform"}) if s.source == "upstream" else s for s in stage.train.samples
    )
    features = stage_features(stage, stage.model_type, dataset)
    with scoped_seed(0):
        model = stage.model_type(stage.model, features)
    train = stage.train.model_copy(update={"samples": samples})
    return Task(stage.name, model, features, dataset, train, dataset.rows("train"), seed=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="benchmarks/movielens-1m/logit.toml")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="append the figures as one JSON line")
    args = parser.parse_args()
    config = load_experiment(args.experiment)
    dataset = load(prepare(config.definition, base=config.dataset_file.parent))
    task = task_of(dataset, args.experiment)
    torch.set_flush_denormal(True)

    sampler = make_sampler(task)
    batches: list[Prepared] = []
    for step in range(args.steps):
        batch = sampler.batch(step)
        inputs = dataset.inputs(
            task.names, batch.requests, batch.item_R, batch.row_R, part="train", event_R=batch.event_R
        )
        batches.append((inputs, batch.label_R))
    rows = sum(len(label_R) for _, label_R in batches)
    start = copy.deepcopy(task.model.state_dict())  # type: ignore[attr-defined]

    seconds: dict[str, list[float]] = {"by hand": [], "fit": []}
    for turn in range(args.rounds + 1):
        for name in seconds:
            task.model.load_state_dict(start)  # type: ignore[attr-defined]
            assert isinstance(task.model, DCNv2)
            took = (
                by_hand(task.model, batches, task.train.learning_rate)
                if name == "by hand"
                else by_fit(task, args.steps)
            )
            if turn:  # the first turn warms both up
                seconds[name].append(took)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = statistics.median(a / b for a, b in zip(seconds["by hand"], seconds["fit"], strict=True))
    for name, value in median.items():
        print(f"{name:8s} {rows / value:>10,.0f} rows/s   {1000 * value / args.steps:.1f} ms a step")
    print(f"fit / by hand {ratio:.3f} of the throughput (median of {args.rounds} alternating pairs)")
    if args.out:
        with args.out.open("a", encoding="utf-8") as file:
            file.write(
                json.dumps({"benchmark": "fit_overhead", "experiment": args.experiment, "ratio": ratio, **median})
                + "\n"
            )


if __name__ == "__main__":
    main()

"""Where the milliseconds of a training step go, and what its matrix products alone would take.

    python benchmarks/speed/step.py --folder FOLDER [--model deepfm] [--size large] [--threads 1] [--clock cpu]

``FOLDER`` is where ``table.py`` wrote its table. Every part of the step is run by itself, on the batch and the weights
of a step, forward and backward; parts take turns and the least and the median time of ``--turns`` are printed. ``step``
is the whole step as ``cascade-kd run`` takes it; bookkeeping is what is left of its median. ``products`` are the matrix
products of all linear layers, forward and both of backward, as bare calls; ``peak`` is the rate of one of 2048^3.
``--clock cpu`` counts the CPU time of all threads, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import processes
import torch
from table import NAME
from torch import Tensor, nn

from cascade_kd.config import load_experiment
from cascade_kd.data import load, prepare
from cascade_kd.experiment.nets import stage_features
from cascade_kd.interrupt import DeferredInterrupt
from cascade_kd.memory import kept_memory
from cascade_kd.models import Table
from cascade_kd.models.dcnv2 import DCNv2
from cascade_kd.models.ranker import Ranker
from cascade_kd.streams import scoped_seed
from cascade_kd.train import ProgressLog, Task, make_sampler
from cascade_kd.train.loop import State, flushed_denormals, train_epoch
from cascade_kd.train.objective import pointwise_loss
from cascade_kd.train.optimizers import make_optimizers
from cascade_kd.train.task import make_loss
from cascade_kd.types import Inputs

HIDDEN = {"large": "[400, 400, 400]", "small": "[64, 32]"}
Parts = dict[str, Callable[[], object]]


def task_of(folder: Path, model: str, size: str) -> Task:
    os.environ["CASCADE_KD_DATA"] = str(folder.resolve())
    experiment = Path(__file__).parent / "training" / f"{model}.toml"
    config = load_experiment(experiment, overrides=[f"stage.rank.model.hidden={HIDDEN[size]}"])
    dataset = load(prepare(config.definition, base=config.dataset_file.parent))
    stage = config.stages[-1]
    assert stage.train is not None
    features = stage_features(stage, stage.model_type, dataset)
    with scoped_seed(0):
        built = stage.model_type(stage.model, features)
    return Task(stage.name, built, features, dataset, stage.train, dataset.rows("train"), seed=1)


def by_part(task: Task) -> Parts:
    """The parts of a step by name; each leaves what it found."""
    model, optimizers, sampler = task.model, make_optimizers(task.model, task.train), make_sampler(task)
    assert isinstance(model, Ranker | DCNv2)
    assert model.fields is not None
    fields = model.fields
    batch = sampler.batch(0)

    def inputs() -> Inputs:
        return task.dataset.inputs(
            task.names, batch.requests, batch.item_R, batch.row_R, part="train", event_R=batch.event_R
        )

    given = inputs()
    start_RFD = fields(given).detach()
    logit_R = torch.randn(len(start_RFD))
    deep_RW = model.mlp(start_RFD.flatten(1))[0].detach()

    def of_fields(run: Callable[[Tensor], Tensor], start: Tensor = start_RFD) -> Callable[[], None]:
        return lambda: backward(run(start.detach().requires_grad_()))

    def backward(found: Tensor) -> None:
        model.zero_grad()
        found.backward(torch.ones_like(found))

    twin = copy.deepcopy(model)  # the optimisers' own, so that it keeps its gradients
    pointwise_loss(twin(given).logits_R, batch.label_R, batch.weight_R).backward()
    tables = {id(module.weight) for module in twin.modules() if isinstance(module, Table)}
    dense = torch.optim.Adam([p for p in twin.parameters() if id(p) not in tables], lr=1e-12, fused=True)
    of_tables = torch.optim.Adam([p for p in twin.parameters() if id(p) in tables], lr=1e-12, fused=True)
    parts: Parts = {
        "batch": lambda: sampler.batch(1),
        "inputs": inputs,
        "look-up": lambda: backward(fields(given)),
    }
    if isinstance(model, Ranker) and model.first_order is not None:
        first_order = model.first_order
        parts["first order"] = lambda: backward(first_order(given).sum((1, 2)))
    if isinstance(model, Ranker):
        if model.interaction is not None:
            parts["interaction"] = of_fields(lambda x: model.interaction(x)[1])  # type: ignore[misc]
        assert model.head is not None
        head, joined_RW = model.head, deep_RW
    else:
        parts["interaction"] = of_fields(lambda x: model.cross(x.flatten(1)))
        head, joined_RW = model.head, torch.cat([start_RFD.flatten(1), deep_RW], 1)
    parts |= {
        "deep network": of_fields(lambda x: model.mlp(x.flatten(1))[0]),
        "head": of_fields(lambda x: head(x).squeeze(1), joined_RW),
        "loss": of_fields(lambda x: pointwise_loss(x, batch.label_R, batch.weight_R), logit_R),
        "Adam, tables": of_tables.step,
        "Adam, the rest": dense.step,
    }
    loss_parts, state, log = make_loss(task, sampler), State(), ProgressLog(quiet=True)

    def step() -> None:
        with log.stage(task.stage, 1, sampler.steps_per_epoch, "auc", {"seed": 0, "round": 0}) as bar:
            train_epoch(
                task, model, optimizers, sampler, loss_parts, state, state.step + 1, 1, bar, DeferredInterrupt()
            )

    return parts | {"step": step}


def products(model: nn.Module, rows: int) -> tuple[Callable[[], None], float]:
    """All matrix products of a step's linear layers as bare calls, and how many operations they are."""
    shapes = [tuple(module.weight.shape) for module in model.modules() if isinstance(module, nn.Linear)]
    made = [(torch.randn(rows, i), torch.randn(o, i), torch.randn(rows, o)) for o, i in shapes]

    def run() -> None:
        for x, weight, grad in made:
            x @ weight.T
            grad @ weight
            grad.T @ x

    return run, sum(6.0 * rows * o * i for o, i in shapes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--model", choices=("deepfm", "dcnv2"), default="deepfm")
    parser.add_argument("--size", choices=HIDDEN, default="large")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options = parser.parse_args()
    if not (options.folder / NAME).is_dir():
        raise SystemExit(f"{options.folder} lacks {NAME}: python benchmarks/speed/table.py {options.folder}")
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    task = task_of(options.folder, options.model, options.size)
    assert isinstance(task.model, nn.Module)
    square = torch.randn(2048, 2048)
    bare, operations = products(task.model, task.train.batch_size)
    seconds: dict[str, list[float]] = {}
    with kept_memory(), flushed_denormals(), scoped_seed(0):
        parts = by_part(task) | {"products": bare, "peak": lambda: square @ square}
        for turn in range(options.turns + 3):
            for name, part in parts.items():
                start = clock()
                part()
                if turn >= 3:
                    seconds.setdefault(name, []).append(clock() - start)
    least = {name: 1000 * min(values) for name, values in seconds.items()}
    median = {name: 1000 * statistics.median(values) for name, values in seconds.items()}
    whole = [name for name in parts if name not in ("step", "products", "peak")]
    for found in (least, median):
        found["bookkeeping"] = found["step"] - sum(found[name] for name in whole)
    rows = [["part", "least, ms", "median, ms", "of the step"], ["---", "---:", "---:", "---:"]]
    for name in [*whole, "bookkeeping", "step", "products"]:
        share = median[name] / median["step"]
        rows.append([name, f"{least[name]:.2f}", f"{median[name]:.2f}", f"{share:.0%}"])
    print(processes.markdown(rows))
    for name, found in (("least", least), ("median", median)):
        rate = operations / found["products"] / 1e6
        print(f"{name}: products {rate:.0f} GFLOP/s, 2048^3 {2 * 2048**3 / found['peak'] / 1e6:.0f} GFLOP/s")


if __name__ == "__main__":
    main()

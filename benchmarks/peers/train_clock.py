"""What every trainer measures in the same way: its optimiser steps, the time to the first, memory; one JSON line.

A trainer imports what it needs, calls :func:`imported`, prepares, and trains inside ``with Steps(...)``. Steps are
counted by torch's global hook; after those that were asked for, the training is broken off. With ``--quality`` it is
not: it runs its epoch, and the trainer hands the AUC of the test rows to :func:`finish`.
"""

from __future__ import annotations

import argparse
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

from clock import converted, cpu_marks, imported, mark, marks, memory_mib, show

__all__ = ["COLUMNS", "HIDDEN", "STD", "Steps", "converted", "finish", "imported", "mark", "options", "same_start"]

COLUMNS = [*(f"c{number}" for number in range(8)), "item", "user"]
HIDDEN = {"large": [400, 400, 400], "small": [64, 32]}
DIM, STD, RATE, CROSS_LAYERS = 16, 0.01, 1e-3, 3


class Broken(Exception):
    """Enough steps."""


def options(doc: str | None) -> argparse.Namespace:
    """The command line of every trainer."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of train.csv, valid.csv and test.csv")
    parser.add_argument("--work", type=Path, required=True, help="an empty folder, or that of --cached")
    parser.add_argument("--zoo", type=Path, help="the model_zoo of FuxiCTR's repository")
    parser.add_argument("--model", choices=("deepfm", "dcnv2"), default="deepfm")
    parser.add_argument("--size", choices=HIDDEN, default="large")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--warm-up", type=int, default=20)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cached", action="store_true", help="--work may hold what an earlier run stored")
    parser.add_argument("--convert", action="store_true", help="only write the files that the trainer reads")
    parser.add_argument("--quality", action="store_true", help="train one epoch and measure the test rows")
    return parser.parse_args()


class Steps:
    """Counts steps inside the block and ends it after enough; the first ``skip`` belong to something else."""

    def __init__(self, asked: argparse.Namespace, skip: int = 0) -> None:
        self.asked, self.skip = asked, skip
        self.at: list[float] = []
        self.cpu: list[float] = []

    def __enter__(self) -> Steps:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self.hook = register_optimizer_step_post_hook(self._count)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        self.hook.remove()
        return kind is Broken

    def _count(self, optimizer: Any, *_: Any) -> None:
        self.skip -= 1
        if self.skip >= 0:
            return
        if not self.at:
            mark("first_step")
            self.parameters = sum(x.numel() for group in optimizer.param_groups for x in group["params"])
        self.at.append(time.perf_counter())
        self.cpu.append(time.process_time())
        if not self.asked.quality and len(self.at) > self.asked.warm_up + self.asked.steps:
            raise Broken

    def figures(self) -> dict[str, float]:
        """Rows per second and per second of this process's own CPU time, of the steps after the warm-up."""
        first, last = self.asked.warm_up, len(self.at) - 1
        if last < first + self.asked.steps:
            raise SystemExit(f"want {first} + {self.asked.steps} steps, the epoch ended after {last}; take more rows")
        rows = self.asked.batch_size * (last - first)
        return {
            "steps": last - first,
            "rows_per_s": rows / (self.at[last] - self.at[first]),
            "rows_per_cpu_s": rows / (self.cpu[last] - self.cpu[first]),
        }


def same_start(model: Any) -> None:
    """One rule for the first weights of all trainers: embeddings N(0, .01^2), matrices Glorot's uniform, biases 0."""
    from torch import nn

    for name, parameter in model.named_parameters():
        if "embedding" in name or "first_order" in name or "lr_layer" in name:
            nn.init.normal_(parameter, std=STD)
        elif parameter.dim() == 2 and parameter.shape[1] > 1:  # RecBole's biases of cross layers are [W, 1]
            nn.init.xavier_uniform_(parameter)
        else:
            nn.init.zeros_(parameter)


def finish(steps: Steps, packages: list[str], auc: float | None = None) -> None:
    """Print the figures."""
    show(
        {
            "import_s": marks["imported"],
            "first_step_s": marks["first_step"] - marks["imported"],
            "first_step_cpu_s": cpu_marks["first_step"] - cpu_marks["imported"],
            **({} if steps.asked.quality else steps.figures()),
            **memory_mib(),
            **({} if auc is None else {"test_auc": auc}),
            "parameters": steps.parameters,
            "versions": {"python": sys.version.split()[0]} | {name: version(name) for name in packages},
        }
    )

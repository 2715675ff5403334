"""Chooses weights: every method of ``methods.py`` at its weights, on the validation part, seed 0.

    python benchmarks/distill/sweep.py [--only WORLD/METHOD ...]

Prints and appends to ``benchmarks/results/distill-sweep.jsonl`` the validation AUC of the student's best epoch, which
is what early stopping keeps; the test part is not read. What is in the file is not run again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from methods import WORLDS, Method, World
from running import chosen

from cascade_kd.config import load_experiment
from cascade_kd.data import Dataset, load, prepare
from cascade_kd.experiment.rounds import train_rounds
from cascade_kd.experiment.store import Store
from cascade_kd.experiment.training import Workshop
from cascade_kd.memory import kept_memory
from cascade_kd.train import ProgressLog

RESULTS = Path(__file__).parents[1] / "results" / "distill-sweep.jsonl"
SEED = 0


def validation(world: World, method: Method, weight: float, datasets: dict[str, Dataset]) -> dict[str, Any]:
    """The student's learning curve on validation, by its best epoch."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="distill-sweep-") as folder:
        toml = world.write(Path(folder), method.toml(weight), SEED)
        config = load_experiment(toml, overrides=method.settings)
        if world.name not in datasets:
            datasets[world.name] = load(prepare(config.definition, base=config.dataset_file.parent))
        with kept_memory(), ProgressLog(quiet=True) as log:
            shop = Workshop(config, datasets[world.name], Path(folder) / "run", Store(), log)
            curve = train_rounds(shop, SEED)[-1][world.student].curve
    values = [point["value"] for point in curve]
    best = max(values)
    return {
        "world": world.name,
        "method": method.name,
        "weight": weight,
        "auc": round(best, 5),
        "epoch": values.index(best) + 1,
        "epochs": len(values),
        "seconds": round(time.perf_counter() - started),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[])
    options = parser.parse_args()
    lines = RESULTS.read_text("utf-8").splitlines() if RESULTS.exists() else []
    known = {(row["world"], row["method"], row["weight"]) for row in map(json.loads, lines)}
    datasets: dict[str, Dataset] = {}
    for world, method in chosen(WORLDS, options.only):
        for weight in method.weights:
            if (world.name, method.name, weight) not in known:
                row = validation(world, method, weight, datasets)
                print(row, flush=True)
                with RESULTS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()

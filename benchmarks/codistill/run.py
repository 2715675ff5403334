"""Codistillation beside single models, averages of two and two-phase ensemble distillation.

    nice -n 19 python benchmarks/codistill/run.py frappe --out runs/codistill        ($CASCADE_KD_DATA/frappe)
    nice -n 19 python benchmarks/codistill/run.py world --out runs/codistill

Runs what is not there yet and goes on with what was stopped, then prints a table over the seeds: test log loss, AUC,
churn between seeds, and the steps to the single model's best validation log loss (at the end of an epoch). ``--small``
tries it all in a few steps. Single models are trained once: the runs have the store in common.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

HERE = Path(__file__).parent
RUNS = {"ensemble": ("ensemble", []), "disjoint": ("codistill", []), "same": ("codistill", ["codistill.data=same"])}
ARMS = {  # name -> (run, where its figures are, round of its curve)
    "single": ("ensemble", ("baseline", "stages", "rank"), 0),
    "average of two": ("ensemble", ("teachers", "pair"), None),
    "codistilled, disjoint": ("disjoint", ("stages", "rank"), 1),
    "codistilled, same": ("same", ("stages", "rank"), 1),
    "two-phase distillation": ("ensemble", ("stages", "rank"), 1),
}


def run(name: str, experiment: str, out: Path, overrides: list[str]) -> None:
    """Do one run, or what is left of it."""
    if (out / "metrics.json").exists():
        return
    command = [sys.executable, "-m", "cascade_kd", "run", str(HERE / f"{experiment}.toml"), "--out", str(out)]
    command += ["--resume"] if (out / "config.toml").exists() else []
    for override in (*overrides, f"name={name}"):
        command += ["--set", override]
    subprocess.run(command, check=True)


def figures(out: Path, place: tuple[str, ...], key: str) -> list[float]:
    """One metric of every seed."""
    found = []
    for tree in json.loads((out / "metrics.json").read_text("utf-8"))["seeds"].values():
        node: Any = tree
        for part in (*place, key, "mean"):
            node = node.get(part, {}) if isinstance(node, dict) else {}
        if isinstance(node, float):
            found.append(node)
    return found


def steps_to(out: Path, number: int | None, best: dict[int, float]) -> list[float]:
    """Of every seed, the first logged step whose validation log loss is not above ``best``; inf where none is."""
    if number is None:
        return []
    steps = dict.fromkeys(best, math.inf)
    for point in points(out, number):
        if point["value"] <= best[point["seed"]]:
            steps[point["seed"]] = min(steps[point["seed"]], point["step"])
    return list(steps.values())


def points(out: Path, number: int) -> list[dict[str, Any]]:
    """The learning curve of the ranker that is served."""
    found = []
    for path in sorted((out / "checkpoints").glob(f"*/{number}/rank/last.json")):
        meta = json.loads(path.read_text("utf-8"))
        found += [{"seed": meta["seed"], **point} for point in meta["state"]["curve"]]
    return found


def cell(values: list[float], digits: int) -> str:
    """mean ± sd."""
    if not values:
        return ""
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 and math.isfinite(sum(values)) else ""
    return f"{fmean(values):.{digits}f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=["frappe", "world"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="a few steps, to see that it runs")
    options = parser.parse_args()
    folder = options.out / options.data
    overrides = [f"seeds={list(range(options.seeds))}"]
    for name, (experiment, more) in RUNS.items():
        few = ["stage.rank.train.max_steps=20"] if options.small else []
        if options.small:
            few += ["teacher.pair.train.max_steps=20"] if experiment == "ensemble" else ["codistill.burn_in_steps=2"]
        run(f"{options.data}-{name}", f"{options.data}-{experiment}", folder / name, [*overrides, *more, *few])
    best: dict[int, float] = {}
    for point in points(folder / "ensemble", 0):
        best[point["seed"]] = min(best.get(point["seed"], math.inf), point["value"])
    print("| arm | test log loss | AUC | churn | steps to the single model's best |\n|---|---:|---:|---:|---:|")
    for arm, (name, place, number) in ARMS.items():
        out = folder / name
        cells = [cell(figures(out, place, key), 5) for key in ("logloss", "auc", "churn")]
        print(f"| {arm} | {' | '.join(cells)} | {cell(steps_to(out, number, best), 0)} |")


if __name__ == "__main__":
    main()

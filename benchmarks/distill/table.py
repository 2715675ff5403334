"""Runs the experiments of this folder and writes their table.

    python benchmarks/distill/table.py --runs runs/distill [--only WORLD/METHOD ...] [--seeds 0 1 2]
    python benchmarks/distill/table.py --show

A method of ``methods.py`` is appended to the TOML of its world; RUNS/WORLD/METHOD/seeds-0-1-2 is an ordinary run
directory with the complete experiment in it. Teachers, lists and undistilled stages are trained once a seed and taken
from the store. What is complete is not run again and what was interrupted goes on, so the command can be given again at
any time. The figures go to ``benchmarks/results/distill.json``, from which ``--show`` prints the tables.

Recovery is (distilled - student) / (teacher - student) of the mean AUC, always against the offline teacher of the first
row. ± is the standard error of the paired difference over seeds.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from methods import WORLDS, Method, World

from cascade_kd.config import load_experiment
from cascade_kd.experiment import run
from cascade_kd.train import ProgressLog

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results" / "distill.json"
FIGURES = ("auc", "gauc", "logloss", "ece")

Tree = dict[str, Any]


def chosen(only: Sequence[str]) -> Iterator[tuple[World, Method]]:
    """The pairs of world and method whose ``WORLD/METHOD`` begins with one of ``only``; all without any."""
    for world in WORLDS:
        for method in world.methods:
            if not only or any(f"{world.name}/{method.name}".startswith(text) for text in only):
                yield world, method


def run_one(world: World, method: Method, runs: Path, seeds: Sequence[int], device: str) -> Tree:
    """The figures of one experiment, run unless it is complete."""
    folder = runs / world.name / re.sub(r"[^a-z0-9.]+", "-", method.name.lower())
    written = folder / "experiment.toml"
    folder.mkdir(parents=True, exist_ok=True)
    written.write_text(world.text() + method.toml(method.chosen), "utf-8")
    out = folder / ("seeds-" + "-".join(map(str, seeds)))
    if not (out / "metrics.json").exists():
        config = load_experiment(written, overrides=[*world.settings, *method.settings, f"seeds={list(seeds)}"])
        print(f"{world.name}: {method.name}", flush=True)
        run(config, out, device=device, resume=out.exists(), progress=ProgressLog())
    return figures(world, method, json.loads((out / "metrics.json").read_text("utf-8")))


def figures(world: World, method: Method, metrics: Tree) -> Tree:
    """What the table shows of a run's metrics.json, seed by seed."""
    seeds: Tree = {}
    for seed, tree in metrics["seeds"].items():
        base = tree["baseline"]["stages"] | {k: v for k, v in tree["teachers"].items() if not k.endswith(".joint")}
        seeds[seed] = {
            "student": _values(tree["baseline"]["stages"][world.student], tree["baseline"]["cascade"]),
            "distilled": _values(tree["stages"][world.student], tree["cascade"]),
            "teachers": {name: _values(of) for name, of in (base | tree["teachers"]).items() if name != world.student},
        }
    about = {key: metrics["run"][key] for key in ("commit", "wall_s", "threads")}
    return {"world": world.name, "method": method.name, "weight": method.chosen, **about, "seeds": seeds}


def _values(stage: Mapping[str, Any], cascade: Mapping[str, Any] | None = None) -> dict[str, float]:
    values = {name: stage[name]["mean"] for name in FIGURES if name in stage}
    if cascade is not None:
        values["recall@10"] = cascade["recall@10"]["mean"]
    return values


def table(world: World, rows: Sequence[Tree]) -> list[str]:
    """The markdown table of one world."""
    columns = ("AUC", "GAUC", "log loss", "ECE", "Recall@10")
    lines = [
        f"| method | {' | '.join(columns)} | Δ AUC | Δ GAUC | Δ log loss | Δ Recall@10 | recovery | seeds |",
        "|---|" + "---:|" * (len(columns) + 6),
    ]
    if not rows:
        return lines
    first = rows[0]["seeds"]
    keys = (*FIGURES, "recall@10")
    for title, who in ((f"teacher `{world.teacher}`", "teacher"), ("student", "student")):
        of_seeds = [s["teachers"][world.teacher] if who == "teacher" else s["student"] for s in first.values()]
        cells = [_mean([s[key] for s in of_seeds]) if key in of_seeds[0] else "" for key in keys]
        lines.append(f"| {title} | {' | '.join(cells)} | | | | | | {len(of_seeds)} |")
    for row in rows:
        seeds = row["seeds"].values()
        cells = [_mean([s["distilled"][key] for s in seeds]) for key in keys]
        changes = [
            _difference([s["distilled"][key] - s["student"][key] for s in seeds])
            for key in ("auc", "gauc", "logloss", "recall@10")
        ]
        cells += [*changes, f"{recovery(world, row):.2f}", str(len(seeds))]
        lines.append(f"| {row['method']}, {row['weight']:g} | {' | '.join(cells)} |")
    return lines


def recovery(world: World, row: Tree) -> float:
    """(distilled - student) / (teacher - student) of the means over seeds of AUC."""
    seeds = row["seeds"].values()
    before, after, goal = (
        np.mean([of["auc"] for of in values])
        for values in (
            [s["student"] for s in seeds],
            [s["distilled"] for s in seeds],
            [s["teachers"][world.teacher] for s in seeds],
        )
    )
    return float((after - before) / (goal - before))


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):.4f}"


def _difference(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:+.4f}"
    return f"{np.mean(values):+.4f} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/distill"))
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    known: list[Tree] = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else []
    results = {(row["world"], row["method"]): row for row in known}
    for world, method in () if options.show else chosen(options.only):
        results[world.name, method.name] = run_one(world, method, options.runs, options.seeds, options.device)
        RESULTS.write_text(json.dumps(list(results.values()), indent=1) + "\n", "utf-8")
    for world in WORLDS:
        rows = [results[world.name, m.name] for m in world.methods if (world.name, m.name) in results]
        print(f"\n{world.name}\n")
        print("\n".join(table(world, rows)))


if __name__ == "__main__":
    main()

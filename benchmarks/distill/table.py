"""Runs the experiments of this folder and writes their table.

    python benchmarks/distill/table.py --runs runs/distill [--only WORLD/METHOD ...] [--seeds 0 1 2]
    python benchmarks/distill/table.py --show

A method of ``methods.py`` is appended to the TOML of its world; RUNS/WORLD/METHOD/seeds-0-1-2 is an ordinary run
directory with the complete experiment in it. Teachers, lists and undistilled stages are trained once a seed and taken
from the store. What is complete is not run again and what was interrupted goes on, so the command can be given again at
any time. The figures go to ``benchmarks/results/distill.jsonl``, the tables into ``benchmarks/README.md``; ``--show``
writes those alone.

Recovery is (distilled - student) / (teacher - student) of the mean AUC, always against the world's own teacher. ± is
the standard error of the paired difference over seeds.
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
RESULTS = HERE.parent / "results" / "distill.jsonl"
README = HERE.parent / "README.md"
BLOCK = re.compile(r"(?<=<!-- distill/table.py -->\n).*?(?=<!-- end -->)", re.DOTALL)
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
        config = load_experiment(written, overrides=[*method.settings, f"seeds={list(seeds)}"])
        print(f"{world.name}: {method.name}", flush=True)
        run(config, out, device=device, resume=out.exists(), progress=ProgressLog())
    return figures(world, method, json.loads((out / "metrics.json").read_text("utf-8")))


def figures(world: World, method: Method, metrics: Tree) -> Tree:
    """What the table shows of a run's metrics.json, seed by seed; ``taught`` names the teacher of the student."""
    seeds: Tree = {}
    for seed, tree in metrics["seeds"].items():
        own = {name: _values(of) for name, of in tree["teachers"].items()}
        served = {name: _values(of) for name, of in tree["baseline"]["stages"].items() if name != world.student}
        taught = {pair.partition("->")[0] for pair in tree["distill"]}
        joint = {f"{name}.joint" for name in taught}
        seeds[seed] = {
            "student": _values(tree["baseline"]["stages"][world.student], tree["baseline"]["cascade"]),
            "distilled": _values(tree["stages"][world.student], tree["cascade"]),
            "teachers": served | own,
            "taught": sorted(joint & own.keys() or taught)[0],
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
    lines = [
        "| method, weight | its teacher | student | AUC | GAUC | log loss | ECE | Recall@10 "
        "| Δ AUC | Δ GAUC | Δ log loss | Δ Recall@10 | recovery | seeds |",
        "|---|" + "---:|" * 13,
    ]
    goal = goals(world, rows)
    first = max(rows, key=lambda row: len(row["seeds"]))["seeds"]
    keys = (*FIGURES, "recall@10")
    for title, of_seeds in (
        (f"teacher `{world.teacher}`", list(goal.values())),
        ("undistilled", [seed["student"] for seed in first.values()]),
    ):
        cells = [_mean([values[key] for values in of_seeds if key in values]) for key in keys]
        lines.append(f"| {title} | | | {' | '.join(cells)} | | | | | | {len(of_seeds)} |")
    for row in rows:
        seeds = list(row["seeds"].values())
        cells = [_mean([s["teachers"][s["taught"]]["auc"] for s in seeds]), _mean([s["student"]["auc"] for s in seeds])]
        cells += [_mean([s["distilled"][key] for s in seeds]) for key in keys]
        cells += [
            _difference([s["distilled"][key] - s["student"][key] for s in seeds])
            for key in ("auc", "gauc", "logloss", "recall@10")
        ]
        found = recovery(row, goal)
        cells += ["" if found is None else f"{found:.2f}", str(len(seeds))]
        lines.append(f"| {row['method']}, {row['weight']:g} | {' | '.join(cells)} |")
    return lines


def goals(world: World, rows: Sequence[Tree]) -> dict[str, dict[str, float]]:
    """The figures of the world's teacher by seed; a run that trains it jointly alone has none of them."""
    teachers = {
        seed: of["teachers"] for row in rows for seed, of in row["seeds"].items() if world.teacher in of["teachers"]
    }
    return {seed: teachers[seed][world.teacher] for seed in sorted(teachers)}


def recovery(row: Tree, goal: Mapping[str, Mapping[str, float]]) -> float | None:
    """(distilled - student) / (teacher - student) of the means of AUC over the seeds that have a teacher."""
    of_seeds = [(goal[seed]["auc"], values) for seed, values in row["seeds"].items() if seed in goal]
    if not of_seeds:
        return None
    before = np.mean([values["student"]["auc"] for _, values in of_seeds])
    after = np.mean([values["distilled"]["auc"] for _, values in of_seeds])
    best = np.mean([auc for auc, _ in of_seeds])
    return float((after - before) / (best - before)) if best > before else None


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):.4f}" if values else ""


def _difference(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:+.4f}"
    return f"{np.mean(values):+.4f} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.4f}"


def read_results() -> dict[tuple[str, str], Tree]:
    """The rows of the results file by world and method."""
    lines = RESULTS.read_text("utf-8").splitlines() if RESULTS.exists() else []
    return {(row["world"], row["method"]): row for row in map(json.loads, lines)}


def with_tables(readme: str, results: Mapping[tuple[str, str], Tree]) -> str:
    """The README with the tables of all worlds between its marks."""
    lines: list[str] = []
    for world in WORLDS:
        rows = [results[world.name, m.name] for m in world.methods if (world.name, m.name) in results]
        if rows:
            lines += [f"**`{world.name}`**: `{world.teacher}` teaches `{world.student}`", "", *table(world, rows), ""]
    return BLOCK.sub(lambda _: "\n".join(lines), readme)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/distill"))
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    results = read_results()
    for world, method in () if options.show else chosen(options.only):
        row = results.get((world.name, method.name))
        if row and row["weight"] == method.chosen and {str(seed) for seed in options.seeds} <= row["seeds"].keys():
            continue
        results[world.name, method.name] = run_one(world, method, options.runs, options.seeds, options.device)
        RESULTS.write_text("".join(json.dumps(row) + "\n" for row in results.values()), "utf-8")
    README.write_text(with_tables(README.read_text("utf-8"), results), "utf-8")


if __name__ == "__main__":
    main()

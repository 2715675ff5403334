"""Runs the experiments of this folder and writes their table.

    python benchmarks/distill/table.py --runs runs/distill [--only WORLD/METHOD ...] [--seeds 0 1 2]
    python benchmarks/distill/table.py --show

A method of ``methods.py`` is appended to the TOML of its world; RUNS/WORLD/METHOD/seeds-0-1-2 holds the complete
experiment and its run directory. Teachers, lists and undistilled stages are trained once a seed and taken
from the store. What is complete is not run again and what was interrupted goes on, so the command can be given again at
any time. The figures go to ``benchmarks/results/distill.jsonl``, the tables into ``benchmarks/README.md``; ``--show``
writes those alone.

Recovery is (distilled - student) / (teacher - student) of the mean AUC, always against the world's own teacher. ± is
the standard error of the paired difference over seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from methods import WORLDS, Method, World
from running import Results, Tree, difference_of, in_readme, mean_of, rows_of, run_once, tabulate

RESULTS = Path(__file__).parents[1] / "results" / "distill.jsonl"
FIGURES = ("auc", "gauc", "logloss", "ece")


def measure(world: World, method: Method, options: argparse.Namespace) -> Tree:
    """What the results keep of a method, whose runs are made unless they are complete."""
    runs = [run_once(world, method, options, seeds) for seeds in world.runs(options.seeds)]
    about = runs[0][1] | {"wall_s": round(sum(of["wall_s"] for _, of, _ in runs), 1)}
    return about | {"seeds": {seed: of for metrics, _, _ in runs for seed, of in figures(world, metrics).items()}}


def figures(world: World, metrics: Tree) -> Tree:
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
    return seeds


def _values(stage: Tree, cascade: Tree | None = None) -> dict[str, float]:
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
        cells = [mean_of([values[key] for values in of_seeds if key in values]) for key in keys]
        lines.append(f"| {title} | | | {' | '.join(cells)} | | | | | | {len(of_seeds)} |")
    for row in rows:
        seeds = list(row["seeds"].values())
        taught = [s["teachers"][s["taught"]]["auc"] for s in seeds]
        cells = [mean_of(taught), mean_of([s["student"]["auc"] for s in seeds])]
        cells += [mean_of([s["distilled"][key] for s in seeds]) for key in keys]
        cells += [
            difference_of([s["distilled"][key] - s["student"][key] for s in seeds])
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


def with_tables(readme: str, results: Results) -> str:
    """The README with the tables of all worlds between its marks."""
    lines: list[str] = []
    for world in WORLDS:
        rows = rows_of(world, results)
        if rows:
            lines += [f"**`{world.name}`**: `{world.teacher}` teaches `{world.student}`", "", *table(world, rows), ""]
    return in_readme(readme, "distill/table.py", lines)


def main() -> None:
    tabulate(__doc__, WORLDS, RESULTS, measure, with_tables)


if __name__ == "__main__":
    main()

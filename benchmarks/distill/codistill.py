"""Codistilled pairs beside single models, averages of two and two-phase ensemble distillation.

    python benchmarks/distill/codistill.py --runs runs/distill --seeds 0 1 2 3 4 [--only codistill-frappe ...]
    python benchmarks/distill/codistill.py --show

As ``table.py``: what is complete is not run again, what was stopped goes on. One ranker on its own, the average of two
more, one distilled from that average (two phases), and one of a pair that learn from each other's weights of up to 50
steps ago, each on its own half of the rows or both on all of them. Churn is mean |p - p'| of the test rows between the
trainings of different seeds. Steps are those until a model's validation log loss, at the end of an epoch, is first not
above the best one of the single model of that seed; ``speed/ranks.py`` has what a step of a pair costs. ± is the
standard error of the paired difference over seeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from methods import BCE, Method, World, pair
from running import Results, Tree, difference_of, in_readme, run_once, tabulate

RESULTS = Path(__file__).parents[1] / "results" / "codistill.jsonl"
PAIR = """
[codistill]
stage = "rank"
peers = 2
data = "{data}"
burn_in_steps = 500
exchange_steps = 50
"""
FIGURES = ("logloss", "auc", "churn")
PHASES, DISJOINT, SAME = "two-phase distillation", "codistilled, disjoint rows", "codistilled, same rows"


def methods(name: str) -> tuple[Method, ...]:
    """The runs of one data set; the two teachers are trained as its ranker is, by the same keys."""
    ranker = World(name, "rank", "", ()).text().partition('[[stage]]\nname = "rank"\n')[2]
    copies = '\n[[teacher]]\nname = "pair"\ncopies = 2\n' + ranker.replace("[stage.", "[teacher.").replace(
        "keep = 10\n", ""
    )
    return (
        Method(PHASES, copies + pair(BCE, "pair", "rank"), 1),
        Method(DISJOINT, PAIR.format(data="disjoint")),
        Method(SAME, PAIR.format(data="same")),
    )


WORLDS = tuple(World(name, "rank", "pair", methods(name)) for name in ("codistill-frappe", "codistill-world"))
ARMS = {  # title -> (method, which of its models)
    "single": (PHASES, "single"),
    "average of two": (PHASES, "average"),
    PHASES: (PHASES, "served"),
    DISJOINT: (DISJOINT, "served"),
    SAME: (SAME, "served"),
}


def measure(world: World, method: Method, options: argparse.Namespace) -> Tree:
    """What the results keep of a run, which is made unless it is complete: figures of its models by seed."""
    metrics, about, out = run_once(world, method, options, options.seeds)
    events = [json.loads(line) for line in (out / "events.ndjson").read_text("utf-8").splitlines()]
    return about | {"seeds": {seed: figures(tree, seed, events) for seed, tree in metrics["seeds"].items()}}


def figures(metrics: Tree, seed: str, events: Sequence[Tree]) -> Tree:
    """Of one seed: test figures of single model, served model and average, and the learning curves of the first two.

    A point of a curve is (step, validation log loss).
    """
    of_models = {
        "single": metrics["baseline"]["stages"]["rank"],
        "served": metrics["stages"]["rank"],
        "average": metrics["teachers"].get("pair", {}),
    }
    found: Tree = {name: {key: of[key]["mean"] for key in FIGURES if key in of} for name, of in of_models.items()}
    for name, number in (("single", 0), ("served", 1)):
        points = [e for e in events if (str(e["seed"]), e["round"], e["stage"]) == (seed, number, "rank")]
        found[name]["curve"] = [(e["step"], e["value"]) for e in points if "value" in e]
    return found


def table(world: World, results: Results) -> list[str]:
    """The markdown table of one data set."""
    lines = [
        "| model | log loss | AUC | churn | Δ log loss | Δ AUC | churn, to single "
        "| steps to the single's best | seeds |",
        "|---|" + "---:|" * 8,
    ]
    single = {seed: of["single"] for seed, of in results[world.name, PHASES]["seeds"].items()}
    for title, (method, which) in ARMS.items():
        if (world.name, method) not in results:
            continue
        model = {seed: of[which] for seed, of in results[world.name, method]["seeds"].items()}
        cells = [f"{np.mean([of[key] for of in model.values()]):.5f}" for key in FIGURES]
        cells += [difference(model, single, key) for key in ("logloss", "auc")] if title != "single" else ["", ""]
        churn = np.mean([of["churn"] for of in model.values()]) / np.mean([of["churn"] for of in single.values()])
        cells += [f"{churn - 1:+.0%}" if title != "single" else ""]
        cells += [reached(model, single) if which != "average" else ""]
        lines.append(f"| {title} | {' | '.join(cells)} | {len(model)} |")
    return lines


def difference(model: Tree, single: Tree, key: str) -> str:
    """The mean of the paired differences to the single model and its standard error."""
    return difference_of([model[seed][key] - single[seed][key] for seed in model], digits=5)


def reached(model: Tree, single: Tree) -> str:
    """Mean steps to the single model's best validation log loss, over the seeds whose model comes there.

    Where some do not, their number is said. What the store had has no curve.
    """
    steps = []
    for seed, of in model.items():
        if of["curve"] and single[seed]["curve"]:
            best = min(value for _, value in single[seed]["curve"])
            steps += [step for step, value in of["curve"] if value <= best][:1]
    if not steps:
        return "never"
    return f"{np.mean(steps):,.0f}" + (f" ({len(steps)} of {len(model)} seeds)" if len(steps) < len(model) else "")


def with_tables(readme: str, results: Results) -> str:
    """The README with the tables of both data sets between its marks."""
    lines: list[str] = []
    for world in WORLDS:
        if (world.name, PHASES) in results:
            lines += [f"**`{world.name}`**", "", *table(world, results), ""]
    return in_readme(readme, "distill/codistill.py", lines)


def main() -> None:
    tabulate(__doc__, WORLDS, RESULTS, measure, with_tables)


if __name__ == "__main__":
    main()

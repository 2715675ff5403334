"""Runs the distillers without logits end to end and writes their table.

    python benchmarks/distill/lists.py --runs runs/distill [--only WORLD/METHOD ...] [--seeds 0 1 2]
    python benchmarks/distill/lists.py --runs runs/distill --only alpha-and-k --seeds 0
    python benchmarks/distill/lists.py --show

As ``table.py``, with the methods of ``list_methods.py``: the ranker's order teaches the recall stage
(``recall-lists``, ``recall-citeulike``) or the pre-ranker (``prerank-lists``, ``prerank-citeulike``). What counts is
how many of the users' test likes are in the ten of the whole cascade, its weights chosen by ``reweigh.py``, in which
stage the others were lost, and what changes where the first two stages keep 100 and 20 (tight) in the place of 200 and
50. ± is the standard error of the paired difference over seeds. What the position weight alpha and the length K of the
teacher's list change is drawn, from one seed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import altair as alt
import torch
from list_methods import LIST_WORLDS, SWEEP
from methods import Method, World
from reweigh import reweighed
from running import Results, Tree, difference_of, experiment, in_readme, mean_of, rows_of, tabulate

from cascade_kd.cascade import Cascade
from cascade_kd.config import ExperimentConfig
from cascade_kd.data import Dataset, load, prepare
from cascade_kd.evaluate import Evaluation, evaluate
from cascade_kd.experiment.rounds import train_rounds
from cascade_kd.experiment.run import stage_labels
from cascade_kd.experiment.store import Store
from cascade_kd.experiment.workshop import Round, Workshop
from cascade_kd.experiment.worth import order_of_kept
from cascade_kd.memory import kept_memory
from cascade_kd.train import ProgressLog

RESULTS = Path(__file__).parents[1] / "results" / "lists.jsonl"
PICTURE = RESULTS.with_name("lists-alpha-k.svg")
STAGES = ("recall", "prerank", "rank")
SHOWN = ("recall@10", "ndcg@10", *(f"lost in {stage}" for stage in STAGES))
TIGHT = {"recall": 100, "prerank": 20}  # budgets at which a better cut counts for more
CHANGES = ("recall@10", "ndcg@10", "recall@10, tight", "ndcg@10, tight", "student's ndcg@10", "kept by student")


def measure(world: World, method: Method, options: argparse.Namespace) -> Tree:
    """What the results keep of an experiment: figures before and after by seed, and the orders of ``order_of_kept``."""
    started = time.perf_counter()
    config, out = experiment(world, method, options.runs, options.seeds)
    dataset = load(prepare(config.definition, base=config.dataset_file.parent))
    seeds: Tree = {}
    with kept_memory(), ProgressLog() as progress:
        for seed in options.seeds:
            before, *_, after = train_rounds(Workshop(config, dataset, out, Store(), progress), seed)
            if (world.file, seed) not in _BEFORE:
                _BEFORE[world.file, seed] = _evaluated(config, dataset, before)
            undistilled = _BEFORE[world.file, seed]
            worth = order_of_kept(config, before, config.distill[0], undistilled[0])
            seeds[str(seed)] = {
                "before": _figures(world, undistilled),
                "after": _figures(world, _evaluated(config, dataset, after)),
                "order of kept": {who: of["ndcg@10"]["mean"] for who, of in worth.items()},
            }
    return {"wall_s": round(time.perf_counter() - started, 1), "threads": torch.get_num_threads(), "seeds": seeds}


# Of the undistilled cascade, which all methods of a file have in common, by file and seed.
_BEFORE: dict[tuple[str, int], list[Evaluation]] = {}


def _evaluated(config: ExperimentConfig, dataset: Dataset, stages: Round) -> list[Evaluation]:
    """At the budgets of the file, and at ``TIGHT`` ones."""
    labels = stage_labels(config, dataset)
    label = labels[config.stages[-1].name].label
    found = []
    for keeps in ({}, TIGHT):
        chain: list[Any] = [stages[stage.name].stage for stage in config.stages]
        chain = [replace(stage, keep=keeps.get(stage.name, stage.keep)) for stage in chain]
        found.append(evaluate(reweighed(Cascade(tuple(chain)), dataset, label), dataset, labels, config.evaluate))
    return found


def _figures(world: World, found: Sequence[Evaluation]) -> dict[str, float]:
    wide, tight = (evaluation.cascade for evaluation in found)
    figures = {name: wide[name]["mean"] for name in ("recall@10", "ndcg@10")}
    figures |= {f"lost in {stage}": wide["lost"][stage]["mean"] for stage in STAGES}
    figures["student's ndcg@10"] = found[0].stages[world.student]["ndcg@10"]["mean"]
    figures["kept by student"] = wide["survival"][world.student]["mean"]
    return figures | {f"{name}, tight": tight[name]["mean"] for name in ("recall@10", "ndcg@10")}


def table(world: World, rows: Sequence[Tree]) -> list[str]:
    """The markdown table of one student."""
    lines = [
        "| method, weight | Recall@10 | NDCG@10 | lost in recall | in prerank | in rank "
        f"| Δ Recall@10 | Δ NDCG@10 | Δ Recall@10, tight | Δ NDCG@10, tight "
        f"| Δ {world.student}'s own NDCG@10 | Δ kept by {world.student} | seeds |",
        "|---|" + "---:|" * 12,
    ]
    before = [seed["before"] for seed in max(rows, key=lambda row: len(row["seeds"]))["seeds"].values()]
    shown = " | ".join(mean_of([of[key] for of in before]) for key in SHOWN)
    lines.append(f"| undistilled | {shown} | | | | | | | {len(before)} |")
    for row in rows:
        seeds = list(row["seeds"].values())
        cells = [mean_of([s["after"][key] for s in seeds]) for key in SHOWN]
        cells += [difference_of([s["after"][key] - s["before"][key] for s in seeds]) for key in CHANGES]
        lines.append(f"| {row['method']}, {row['weight']:g} | {' | '.join(cells)} | {len(seeds)} |")
    return lines


def with_tables(readme: str, results: Results) -> str:
    """The README with the tables of both students between its marks."""
    lines: list[str] = []
    for world in LIST_WORLDS:
        rows = rows_of(world, results)
        if not rows:
            continue
        orders = [seed["order of kept"] for seed in rows[0]["seeds"].values()]
        taught, own = (mean_of([of[who] for of in orders]) for who in ("teacher", "student"))
        title = f"**`{world.name}`**: `rank` teaches `{world.student}`, whose output it orders with NDCG@10 {taught}, "
        lines += [f"{title}where `{world.student}` itself has {own}", "", *table(world, rows), ""]
    return in_readme(readme, "distill/lists.py", lines)


def picture(results: Results) -> alt.HConcatChart:
    """Differences to the undistilled student, over alpha at K = 50 and over K at alpha = 1."""
    points = []
    for row in rows_of(SWEEP, results):
        what, _, value = row["method"].partition(" = ")
        (seed,) = row["seeds"].values()
        points += [
            {"what": what, "value": value, "figure": name, "change": seed["after"][name] - seed["before"][name]}
            for name in CHANGES
        ]
    drawn = alt.Chart(alt.Data(values=points)).mark_line(point=True)
    sides = [
        drawn.transform_filter(alt.datum.what == what)
        .encode(
            x=alt.X("value:O", sort=None, title=f"{what} ({rest})"),
            y=alt.Y("change:Q", title="difference to the undistilled student"),
            color=alt.Color("figure:N", title=None),
        )
        .properties(width=260, height=200)
        for what, rest in (("alpha", "K = 50"), ("K", "alpha = 1"))
    ]
    return alt.hconcat(*sides).resolve_scale(y="shared")


def main() -> None:
    results = tabulate(__doc__, (*LIST_WORLDS, SWEEP), RESULTS, measure, with_tables)
    if rows_of(SWEEP, results):
        picture(results).save(PICTURE)


if __name__ == "__main__":
    main()

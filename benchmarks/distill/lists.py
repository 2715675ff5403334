"""Runs the distillers without logits end to end and writes their table.

    python benchmarks/distill/lists.py --runs runs/distill [--only WORLD/METHOD ...] [--seeds 0 1 2]
    python benchmarks/distill/lists.py --runs runs/distill --only alpha-and-k --seeds 0
    python benchmarks/distill/lists.py --show

As ``table.py``, with the methods of ``list_methods.py``: the ranker's order teaches the recall stage
(``recall-lists``) or the pre-ranker (``prerank-lists``). What counts is how many of the users' test likes are in the
ten of the whole cascade, and in which stage the others were lost. ± is the standard error of the paired difference over
seeds. What the position weight alpha and the length K of the teacher's list change is drawn, from one seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import altair as alt
from list_methods import LIST_WORLDS, SWEEP
from methods import World
from running import README, Results, Tree, difference_of, in_readme, mean_of, parsed, rows_of, run_all

RESULTS = Path(__file__).parents[1] / "results" / "lists.jsonl"
PICTURE = RESULTS.with_name("lists-alpha-k.svg")
STAGES = ("recall", "prerank", "rank")
SHOWN = ("recall@10", "ndcg@10", *(f"lost in {stage}" for stage in STAGES))
CHANGES = ("recall@10", "ndcg@10", "kept by student")


def figures(world: World, metrics: Tree) -> Tree:
    """What the table shows of a run's metrics.json, seed by seed: before and after, and the orders of both."""
    seeds: Tree = {}
    for seed, tree in metrics["seeds"].items():
        worth = next(of["order_of_kept"] for of in tree["distill"].values())
        seeds[seed] = {
            "before": _of_cascade(world, tree["baseline"]["cascade"]),
            "after": _of_cascade(world, tree["cascade"]),
            "order of kept": {who: of["ndcg@10"]["mean"] for who, of in worth.items()},
        }
    return seeds


def _of_cascade(world: World, cascade: Tree) -> dict[str, float]:
    found = {name: cascade[name]["mean"] for name in ("recall@10", "ndcg@10")}
    found |= {f"lost in {stage}": cascade["lost"][stage]["mean"] for stage in STAGES}
    return found | {"kept by student": cascade["survival"][world.student]["mean"]}


def table(world: World, rows: Sequence[Tree]) -> list[str]:
    """The markdown table of one student."""
    lines = [
        "| method, weight | Recall@10 | NDCG@10 | lost in recall | in prerank | in rank "
        f"| Δ Recall@10 | Δ NDCG@10 | Δ kept by {world.student} | seeds |",
        "|---|" + "---:|" * 9,
    ]
    before = [seed["before"] for seed in max(rows, key=lambda row: len(row["seeds"]))["seeds"].values()]
    lines.append(
        f"| undistilled | {' | '.join(mean_of([of[key] for of in before]) for key in SHOWN)} | | | | {len(before)} |"
    )
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
    results = run_all(parsed(__doc__), (*LIST_WORLDS, SWEEP), RESULTS, figures)
    README.write_text(with_tables(README.read_text("utf-8"), results), "utf-8")
    if rows_of(SWEEP, results):
        picture(results).save(PICTURE)


if __name__ == "__main__":
    main()

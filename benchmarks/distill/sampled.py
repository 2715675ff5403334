"""The left-out article among 499 sampled ones, as the published tables of distillation on CiteULike count it.

    python benchmarks/distill/sampled.py --runs runs/distill [--seeds 0 1 2]
    python benchmarks/distill/sampled.py --show

Hits, reciprocal ranks and nDCG at 5 of the teacher, the student and the student distilled by RRD, which are trained
unless the store has them: the left-out article of a user and 499 that the user never saved, the same ones for all
models and seeds. As in ``lists.py``'s ``recall-citeulike``, but for the lists of a step, of half as many users as it
has rows, and the monitor: the fifth of 500 is about the 250th of all, the stage keeps 200. Source: Kang et al.,
"DE-RRD", CIKM 2020.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from list_methods import CITEULIKE, rrd_of_many
from methods import Method, World
from running import Results, Tree, difference_of, experiment, in_readme, mean_of, rows_of, tabulate
from torch import Tensor

from cascade_kd.data import Dataset, load, prepare
from cascade_kd.experiment.rounds import train_rounds
from cascade_kd.experiment.store import Store
from cascade_kd.experiment.workshop import Workshop
from cascade_kd.stages import LogitStage
from cascade_kd.train import ProgressLog

RESULTS = Path(__file__).parents[1] / "results" / "sampled.jsonl"
SAMPLED = 499
PUBLISHED = {  # H@5, M@5, N@5
    "teacher": (0.5135, 0.3583, 0.3970),
    "student": (0.4441, 0.2949, 0.3319),
    "distilled": (0.4622, 0.3076, 0.3461),
}
RRD = Method("rrd", rrd_of_many("recall"), 0.001, settings=('stage.recall.train.monitor="recall@200"',))
WORLD = World("sampled-citeulike", "recall", "rank", (RRD,), CITEULIKE)


def measure(world: World, method: Method, options: argparse.Namespace) -> Tree:
    """The figures of all three models by seed."""
    config, out = experiment(world, method, options.runs, options.seeds)
    dataset = load(prepare(config.definition, base=config.dataset_file.parent))
    item_TS = sampled_articles(dataset)
    seeds: Tree = {}
    with ProgressLog() as progress:
        for seed in options.seeds:
            before, *_, after = train_rounds(Workshop(config, dataset, out, Store(), progress), seed)
            stages = (before["rank"], before["recall"], after["recall"])
            seeds[str(seed)] = {
                who: figures(trained.stage, dataset, item_TS) for who, trained in zip(PUBLISHED, stages, strict=True)
            }
    return {"seeds": seeds}


def sampled_articles(dataset: Dataset) -> Tensor:
    """[T, 500] the left-out article of every user, then those that the user never saved."""
    rows_T = dataset.rows("test")
    user_T, item_T = dataset.events.user_N[rows_T], dataset.events.item_N[rows_T]
    saved = torch.zeros(dataset.num_users + 1, dataset.num_items + 1, dtype=torch.bool)
    saved[dataset.events.user_N, dataset.events.item_N] = True
    generator = torch.Generator().manual_seed(0)
    drawn_TS = torch.randint(1, dataset.num_items + 1, (len(user_T), 2 * SAMPLED), generator=generator)
    free_TS = ~saved[user_T].gather(1, drawn_TS)
    first_TS = free_TS.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :SAMPLED]
    assert bool(free_TS.gather(1, first_TS).all())
    return torch.cat([item_T.unsqueeze(1), drawn_TS.gather(1, first_TS)], dim=1)


def figures(stage: object, dataset: Dataset, item_TS: Tensor) -> dict[str, float]:
    """Hits, reciprocal ranks and nDCG at 5 of the first article of every row; ties count against it."""
    assert isinstance(stage, LogitStage)
    requests = dataset.requests_of(dataset.rows("test"), part="test")
    row_R = torch.arange(len(item_TS)).repeat_interleave(item_TS.shape[1])
    score_TS = stage.logits(requests, item_TS.flatten(), row_R).view_as(item_TS)
    rank_T = 1 + (score_TS[:, 1:] >= score_TS[:, :1]).sum(1)
    hit_T = (rank_T <= 5).double()
    return {
        "H@5": float(hit_T.mean()),
        "M@5": float((hit_T / rank_T).mean()),
        "N@5": float((hit_T / torch.log2(1.0 + rank_T)).mean()),
    }


def table(rows: Sequence[Tree]) -> list[str]:
    """The markdown table."""
    (row,) = rows
    seeds = list(row["seeds"].values())
    lines = ["| | H@5 | M@5 | N@5 | Δ H@5 to the student | published H@5 | M@5 | N@5 | seeds |", "|---|" + "---:|" * 8]
    for who, published in PUBLISHED.items():
        cells = [mean_of([seed[who][key] for seed in seeds]) for key in ("H@5", "M@5", "N@5")]
        change = [seed[who]["H@5"] - seed["student"]["H@5"] for seed in seeds]
        cells += ["" if who == "student" else difference_of(change), *(f"{value:.4f}" for value in published)]
        lines.append(f"| {who} | {' | '.join(cells)} | {len(seeds)} |")
    return lines


def with_tables(readme: str, results: Results) -> str:
    """The README with the table between its marks."""
    rows = rows_of(WORLD, results)
    return in_readme(readme, "distill/sampled.py", [*table(rows), ""] if rows else [])


def main() -> None:
    tabulate(__doc__, (WORLD,), RESULTS, measure, with_tables)


if __name__ == "__main__":
    main()

"""The left-out article among 499 sampled ones, as the tables of distillation on CiteULike count it, and among all.

    python benchmarks/lists/citeulike.py --runs runs/citeulike [--set distill.0.weight=0.01 ...]

Trains what citeulike.toml says (taken from the store or resumed where that is there) and prints hits, reciprocal ranks
and nDCG at 5 of teacher, student and distilled student: the article and 499 that the user never saved, the same ones
for all models and seeds. Beside them Recall@20 among all articles. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from cascade_kd.config import load_experiment
from cascade_kd.data import Dataset, load, prepare
from cascade_kd.experiment.rounds import train_rounds
from cascade_kd.experiment.store import Store
from cascade_kd.experiment.workshop import Workshop
from cascade_kd.stages import RetrievalStage
from cascade_kd.train import ProgressLog

HERE = Path(__file__).parent
SAMPLED = 499
PUBLISHED = {
    "teacher": (0.5135, 0.3583, 0.3970),
    "student": (0.4441, 0.2949, 0.3319),
    "distilled": (0.4622, 0.3076, 0.3461),
}


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


def figures(stage: RetrievalStage, dataset: Dataset, item_TS: Tensor) -> dict[str, float]:
    """Hits, reciprocal ranks and nDCG at 5 among the sampled, and the hits at 20 among all that the user has not."""
    requests = dataset.requests_of(dataset.rows("test"), part="test")
    user_TD, item_ID = stage.user_vectors(requests), stage.item_vectors("test")
    score_TI = user_TD @ item_ID.T
    score_TS = score_TI.gather(1, item_TS - 1)
    rank_T = 1 + (score_TS[:, 1:] >= score_TS[:, :1]).sum(1)
    hit_T = (rank_T <= 5).double()
    known_TI = dataset.is_seen(requests.user_B, dataset.item_codes().expand(len(requests), -1), part="test")
    above_T = ((score_TI > score_TS[:, :1]) & ~known_TI).sum(1)
    return {
        "H@5": float(hit_T.mean()),
        "M@5": float((hit_T / rank_T).mean()),
        "N@5": float((hit_T / torch.log2(1.0 + rank_T)).mean()),
        "R@20 of all": float((above_T < 20).double().mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/citeulike"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    config = load_experiment(HERE / "citeulike.toml", overrides=options.set)
    dataset = load(prepare(config.definition, base=config.dataset_file.parent))
    item_TS = sampled_articles(dataset)
    found: dict[str, list[dict[str, float]]] = {who: [] for who in PUBLISHED}
    with ProgressLog() as progress:
        for seed in config.seeds:
            shop = Workshop(config, dataset, options.runs, Store(), progress)
            before, after = train_rounds(shop, seed)
            for who, stage in zip(found, (before["large"], before["recall"], after["recall"]), strict=True):
                assert isinstance(stage.stage, RetrievalStage)
                found[who].append(figures(stage.stage, dataset, item_TS))
    print("| | H@5 | M@5 | N@5 | published H@5 | M@5 | N@5 | Recall@20 of all |")
    print("|---|" + "---:|" * 7)
    for who, of_seeds in found.items():
        mean = {key: sum(one[key] for one in of_seeds) / len(of_seeds) for key in of_seeds[0]}
        ours = [f"{mean[key]:.4f}" for key in ("H@5", "M@5", "N@5")]
        theirs = [f"{value:.4f}" for value in PUBLISHED[who]]
        print(f"| {who} | {' | '.join([*ours, *theirs])} | {mean['R@20 of all']:.4f} |")
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""A generated click log of ten categorical columns: ids by Zipf's law, clicks by a factorization machine.

    python benchmarks/speed/table.py FOLDER [--rows 2000000] [--seed 7]

writes ``FOLDER/training-table/{train,valid,test}.csv``, 80/10/10 in row order, and ``truth.json`` with the AUC of the
true probabilities on the test rows, which no model beats but by chance.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import polars as pl

NAME = "training-table"
SIZES = (10, 20, 50, 100, 500, 1_000, 5_000, 10_000, 50_000, 100_000)  # values of the columns
COLUMNS = (*(f"c{number}" for number in range(8)), "item", "user")
EXPONENT = 1.05  # of Zipf's law
FACTORS = 6
INTERCEPT = -1.0
PARTS = {"train": (0.0, 0.8), "valid": (0.8, 0.9), "test": (0.9, 1.0)}


def generate(rows: int, seed: int) -> tuple[pl.DataFrame, np.ndarray]:
    """The table, and the true probability [N] of a click in every row."""
    generator = np.random.default_rng(seed)
    logit_N = np.full(rows, INTERCEPT)
    sum_NK, squares_N = np.zeros((rows, FACTORS)), np.zeros(rows)
    columns: dict[str, np.ndarray] = {}
    for name, size in zip(COLUMNS, SIZES, strict=True):
        share_V = np.arange(1, size + 1) ** -EXPONENT
        value_N = generator.choice(size, size=rows, p=share_V / share_V.sum())
        logit_N += generator.normal(0.0, 0.25, size)[value_N]
        factors_NK = generator.normal(0.0, 0.32, (size, FACTORS))[value_N]
        sum_NK += factors_NK
        squares_N += (factors_NK**2).sum(1)
        names_V = generator.permutation(7 * size)[:size] + 1000  # with gaps, so that everyone needs a vocabulary
        columns[name] = names_V[value_N]
    logit_N += ((sum_NK**2).sum(1) - squares_N) / 2
    probability_N = 1 / (1 + np.exp(-logit_N))
    columns["click"] = (generator.random(rows) < probability_N).astype(np.int8)
    return pl.DataFrame(columns), probability_N


def auc(score_N: np.ndarray, label_N: np.ndarray) -> float:
    """Share of the pairs of a click and a non-click that are in the right order; no ties, as in continuous scores."""
    rank_N = np.empty(len(score_N))
    rank_N[score_N.argsort()] = np.arange(1, len(score_N) + 1)
    positives = int(label_N.sum())
    above = rank_N[label_N == 1].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (len(label_N) - positives)))


def write(folder: Path, rows: int = 2_000_000, seed: int = 7) -> Path:
    """Write the files, unless a table of that size and seed is there already; returns their folder."""
    home = folder / NAME
    about = {"rows": rows, "seed": seed}
    truth = home / "truth.json"
    if truth.exists() and about.items() <= json.loads(truth.read_text("utf-8")).items():
        return home
    home.mkdir(parents=True, exist_ok=True)
    table, probability_N = generate(rows, seed)
    for name, (first, last) in PARTS.items():
        table[round(first * rows) : round(last * rows)].write_csv(home / f"{name}.csv")
    test = slice(round(PARTS["test"][0] * rows), rows)
    best = auc(probability_N[test], table["click"].to_numpy()[test])
    truth.write_text(json.dumps(about | {"auc": best, "clicks": float(table["click"].mean())}) + "\n", "utf-8")  # type: ignore[arg-type]
    return home


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    print(write(options.folder, options.rows, options.seed))


if __name__ == "__main__":
    main()

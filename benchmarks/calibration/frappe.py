"""Rankers on Frappe beside FuxiCTR, seed by seed of the same recipe on the same files.

    for m in dnn deepfm dcnv2 final-mlp; do
      cascade-kd run benchmarks/calibration/frappe-$m.toml --out runs/frappe-$m
    done
    python benchmarks/peers/fuxictr_frappe.py ... --out benchmarks/results/frappe-fuxictr.jsonl     (see there)
    python benchmarks/calibration/frappe.py --runs runs --peer benchmarks/results/frappe-fuxictr.jsonl

Prints a table of test AUC and log loss. The difference of the means is tested one-sided against 0 by Welch's t, 5 %,
Holm over the models; exit code 1 where a mean difference is not above -0.0010 or is significantly negative. The seeds
of two libraries draw different numbers, so they are not paired.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from scipy.stats import ttest_ind

MODELS = {"dnn": "DNN", "deepfm": "DeepFM", "dcnv2": "DCN-V2", "final-mlp": "FinalMLP"}
LEAST = -0.0010
LEVEL = 0.05


def ours(runs: Path, model: str) -> dict[str, list[float]]:
    """Test AUC and log loss of every seed of the rank stage."""
    metrics = json.loads((runs / f"frappe-{model}" / "metrics.json").read_text("utf-8"))
    of_seeds = [seed["stages"]["rank"] for seed in metrics["seeds"].values()]
    return {key: [stage[key]["mean"] for stage in of_seeds] for key in ("auc", "logloss")}


def theirs(peer: Path, model: str) -> dict[str, list[float]]:
    """The same of FuxiCTR."""
    lines = [json.loads(line) for line in peer.read_text("utf-8").splitlines()]
    return {key: [line[key] for line in lines if line["model"] == model] for key in ("auc", "logloss")}


def holm(p_values: dict[str, float]) -> set[str]:
    """The names whose p-value is significant at LEVEL by Holm's step-down rule."""
    significant: set[str] = set()
    for place, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        if p_values[name] > LEVEL / (len(p_values) - place):
            break
        significant.add(name)
    return significant


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--peer", type=Path, required=True)
    options = parser.parse_args()
    print("| model | AUC | FuxiCTR | difference (se) | p, below 0 | log loss | FuxiCTR | seeds |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    p_values: dict[str, float] = {}
    low: list[str] = []
    for model, title in MODELS.items():
        us, them = ours(options.runs, model), theirs(options.peer, model)
        difference = np.mean(us["auc"]) - np.mean(them["auc"])
        error = np.sqrt(sum(np.var(x["auc"], ddof=1) / len(x["auc"]) for x in (us, them)))
        p_values[model] = ttest_ind(us["auc"], them["auc"], equal_var=False, alternative="less").pvalue
        if difference <= LEAST:
            low.append(model)
        cells = [
            f"{np.mean(x[key]):.5f} ± {np.std(x[key], ddof=1):.5f}" for key in ("auc", "logloss") for x in (us, them)
        ]
        test = f"{difference:+.5f} ({error:.5f}) | {p_values[model]:.3f}"
        seeds = f"{len(us['auc'])} / {len(them['auc'])}"
        print(f"| {title} | {cells[0]} | {cells[1]} | {test} | {cells[2]} | {cells[3]} | {seeds} |")
    worse = holm(p_values)
    for model in MODELS:
        if model in low or model in worse:
            print(f"{MODELS[model]}: below FuxiCTR")
    sys.exit(1 if low or worse else 0)


if __name__ == "__main__":
    main()

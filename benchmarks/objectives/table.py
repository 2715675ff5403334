"""LCRON's protocol on the lists of world.py, beside the figures of its paper.

    python benchmarks/objectives/world.py
    for m in lcron arf-v2 arf fs rankflow icc; do
      cascade-kd run benchmarks/objectives/$m.toml --out runs/objectives-$m
    done
    python benchmarks/objectives/table.py --runs runs [--out benchmarks/results/objectives.jsonl]

Prints a Markdown table, best Joint Recall@10@20 first: mean and standard deviation over seeds, the paired difference to
independent training (round 0 of every run), the paper's figures. Retrieval keeps 30 of 40, the ranker 20, 10 are true;
stages that draw reach .5. --out gets a line a method and seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

COLUMNS = {
    "Joint R@10@20": ("cascade", "joint_recall@10@20"),
    "Rank R@10@20": ("stages", "ranker", "recall@10@20"),
    "Rank N@10": ("stages", "ranker", "list_ndcg@10"),
    "Retr R@10@30": ("stages", "retrieval", "recall@10@30"),
    "Retr N@10": ("stages", "retrieval", "list_ndcg@10"),
}
PAPER = {  # Wang et al., "Learning cascade ranking as one network", 2025, table 2: RecFlow itself
    "BCE": (0.8539, 0.8410, 0.7043, 0.9706, 0.7150),
    "icc": (0.8132, 0.8100, 0.6980, 0.9288, 0.6155),
    "rankflow": (0.8647, 0.8629, 0.7274, 0.9656, 0.7087),
    "fs": (0.7881, 0.7908, 0.6864, 0.9321, 0.6710),
    "arf": (0.8608, 0.8616, 0.6655, 0.9631, 0.5437),
    "arf-v2": (0.8678, 0.8679, 0.7269, 0.9684, 0.7152),
    "lcron": (0.8732, 0.8729, 0.7291, 0.9700, 0.7151),
}
TITLES = {
    "BCE": "BCE, independent",
    "icc": "ICC",
    "rankflow": "RankFlow",
    "fs": "FS-RankNet",
    "arf": "ARF",
    "arf-v2": "ARF-v2",
    "lcron": "LCRON",
}

Figures = dict[str, list[float]]  # seed -> one figure a column


def figures(tree: dict[str, Any]) -> list[float]:
    """One a column."""
    found = []
    for path in COLUMNS.values():
        node: Any = tree
        for key in path:
            node = node[key]
        found.append(float(node["mean"]))
    return found


def read(runs: Path) -> dict[str, Figures]:
    """By method; independent training is round 0 of any run."""
    methods: dict[str, Figures] = {}
    for method in PAPER:
        path = runs / f"objectives-{method}" / "metrics.json"
        if path.exists():
            seeds = json.loads(path.read_text("utf-8"))["seeds"]
            methods[method] = {seed: figures(tree) for seed, tree in seeds.items()}
            methods["BCE"] = {seed: figures(tree["baseline"]) for seed, tree in seeds.items()}
    return methods


def shown(values: list[float], signed: bool = False) -> str:
    """Mean and standard deviation."""
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{'+' if signed else ''}.4f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    methods = read(options.runs)
    first = next(iter(COLUMNS))
    print(f"| method | {' | '.join(COLUMNS)} | {first}, to BCE | paper: {' | '.join(COLUMNS)} |")
    print(f"|---|{'---:|' * (2 * len(COLUMNS) + 1)}")
    by_joint = sorted(methods, key=lambda method: -statistics.mean(of[0] for of in methods[method].values()))
    for method in by_joint:
        columns = [shown(list(column)) for column in zip(*methods[method].values(), strict=True)]
        change = [of[0] - methods["BCE"][seed][0] for seed, of in methods[method].items()]
        difference = "" if method == "BCE" else shown(change, signed=True)
        paper = [f"{figure:.4f}" for figure in PAPER[method]]
        print(f"| {TITLES[method]} | {' | '.join(columns)} | {difference} | {' | '.join(paper)} |")
    if options.out is not None:
        lines = [
            json.dumps({"method": method, "seed": int(seed)} | dict(zip(COLUMNS, of, strict=True)))
            for method in by_joint
            for seed, of in methods[method].items()
        ]
        options.out.write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()

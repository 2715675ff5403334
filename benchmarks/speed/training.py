"""Training DeepFM and DCN-V2 by ``cascade-kd run``, beside a loop written by hand, RecBole and FuxiCTR.

    python benchmarks/speed/training.py [--rounds 3] [--threads 2] [--out benchmarks/results/training.jsonl] \\
        [--recbole-python PATH] [--fuxictr-python PATH --fuxictr-zoo FuxiCTR/model_zoo] [--quality]
    python benchmarks/speed/training.py --show benchmarks/results/training.jsonl

The table is generated (table.py), two million rows. Every measurement is a process of its own in the
contender's own environment; the contenders alternate, A B C A B C. After the warm-up ``--steps`` optimiser steps are
timed, and the training is broken off. ``--quality`` trains one whole epoch instead and prints the AUC of the test rows.
A peer whose interpreter is not given is left out. benchmarks/peers/README.md makes the environments.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import processes
import table

OURS, HAND, PEERS = ("ours", "ours, cached"), "by hand", ("recbole", "fuxictr")
MODELS, SIZES = ("deepfm", "dcnv2"), ("large", "small")


def measure(name: str, words: Sequence[str], options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Run one contender once. What ``ours, cached`` stores stays; the others begin with an empty folder."""
    cached = name == "ours, cached"
    library = name.removesuffix(", cached").replace(" ", "_")
    work = scratch / "stored" if cached else Path(tempfile.mkdtemp(dir=scratch))
    pythons = {"recbole": options.recbole_python, "fuxictr": options.fuxictr_python}
    command = [pythons.get(library, sys.executable), str(processes.PEERS / f"train_{library}.py"), *words]
    command += ["--data", str(options.folder.resolve() / table.NAME), "--work", str(work)]
    if library == "fuxictr":
        command += ["--zoo", str(options.fuxictr_zoo.resolve())]
    try:
        return processes.run(name, command, scratch, threads=options.threads)
    finally:
        if not cached:
            shutil.rmtree(work, ignore_errors=True)


def median_of(lines: list[dict[str, Any]], key: str) -> float:
    return statistics.median(line[key] for line in lines)


def ratio(lines: dict[str, list[dict[str, Any]]], ours: str, others: Sequence[str], key: str) -> str:
    """Our rate over that of the fastest of the others, the median over the rounds and its range."""
    rounds = {line["round"]: line[key] for line in lines[ours]}
    best: dict[int, float] = {}
    for other in others:
        for line in lines.get(other, []):
            best[line["round"]] = max(best.get(line["round"], 0.0), line[key])
    found = [rate / best[turn] for turn, rate in rounds.items() if turn in best]
    return processes.spread(found, 2) if found else ""


def speed_table(lines: list[dict[str, Any]]) -> str:
    """Markdown: medians over the rounds; ratios are medians of the rounds' own ratios."""
    heads = ["model", "contender", "rows/s", "rows/CPU s", "ours / it", "in CPU s", "first step, s", "peak MiB"]
    out = [heads, ["---", "---"] + ["---:"] * (len(heads) - 2)]
    kinds = dict.fromkeys((line["model"], line["size"], line["precision"]) for line in lines)
    for kind in kinds:
        by_name: dict[str, list[dict[str, Any]]] = {}
        for line in lines:
            if (line["model"], line["size"], line["precision"]) == kind:
                by_name.setdefault(line["contender"], []).append(line)
        for name, runs in by_name.items():
            ratios = ["", ""]
            if name not in OURS and "ours, cached" in by_name:
                ratios = [ratio(by_name, "ours, cached", [name], key) for key in ("rows_per_s", "rows_per_cpu_s")]
            helpers = max(run["helpers_peak_rss_mib"] for run in runs)
            out.append(
                [
                    f"{kind[0]} {kind[1]}" + (f", {kind[2]}" if kind[2] != "float32" else ""),
                    name,
                    f"{median_of(runs, 'rows_per_s'):,.0f}",
                    f"{median_of(runs, 'rows_per_cpu_s'):,.0f}",
                    *ratios,
                    f"{median_of(runs, 'first_step_s'):.1f}",
                    f"{max(run['peak_rss_mib'] for run in runs):,.0f}" + (f" + {helpers:,.0f}" if helpers else ""),
                ]
            )
    return processes.markdown(out)


def quality_table(lines: list[dict[str, Any]]) -> str:
    """Markdown: the mean AUC over the rounds, which differ in their seed, with its standard error."""
    out = [["model", "contender", "test AUC", "standard error", "seeds"], ["---", "---", "---:", "---:", "---:"]]
    for kind in dict.fromkeys((line["model"], line["size"], line["contender"]) for line in lines):
        values = [line["test_auc"] for line in lines if (line["model"], line["size"], line["contender"]) == kind]
        error = f"{statistics.stdev(values) / len(values) ** 0.5:.5f}" if len(values) > 1 else ""
        out.append([f"{kind[0]} {kind[1]}", kind[2], f"{statistics.mean(values):.5f}", error, str(len(values))])
    return processes.markdown(out)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, help="where the table is, or is generated; a temporary folder if left out"
    )
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of ours and by hand")
    parser.add_argument("--recbole-python", metavar="PATH", help="the interpreter that has RecBole")
    parser.add_argument("--fuxictr-python", metavar="PATH", help="the interpreter that has FuxiCTR")
    parser.add_argument("--fuxictr-zoo", metavar="PATH", type=Path, help="the model_zoo of FuxiCTR's repository")
    parser.add_argument("--quality", action="store_true", help="one epoch and the test AUC, a seed a round")
    parser.add_argument("--out", type=Path, help="append one JSON line a measurement")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the tables of an earlier run and stop")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    lines: list[dict[str, Any]] = []
    if options.show:
        lines = [json.loads(line) for line in options.show.read_text("utf-8").splitlines()]
        print_tables(lines)
        return
    names = ["ours, cached", *(["ours"] * (not options.quality)), HAND]
    names += [peer for peer in PEERS if getattr(options, f"{peer}_python")]
    about = {"benchmark": "training", "commit": processes.commit(), "threads": options.threads, "rows": options.rows}
    with tempfile.TemporaryDirectory(prefix="training-benchmark-") as folder:
        scratch = Path(folder)
        options.folder = options.folder or scratch
        table.write(options.folder, options.rows)
        words = ["--warm-up", "5", "--steps", "5"]
        measure("ours, cached", words, options, scratch)  # stores the prepared table, and fills caches of files
        if "recbole" in names:
            measure("recbole", ["--convert"], options, scratch)
        for turn in range(options.rounds):
            for model in options.models:
                for size in options.sizes:
                    for name in names:
                        words = ["--model", model, "--size", size, "--steps", str(options.steps), "--seed", str(turn)]
                        if name in (*OURS, HAND):
                            words += ["--precision", options.precision]
                        figures = measure(name, [*words, *["--quality"] * options.quality], options, scratch)
                        precision = options.precision if name in (*OURS, HAND) else "float32"
                        what = {"model": model, "size": size, "precision": precision, "contender": name, "round": turn}
                        lines.append(about | what | figures)
                        processes.keep(lines[-1], options.out)
                        rate = figures.get("rows_per_s", figures.get("test_auc", 0.0))
                        print(f"{turn} {model:6s} {size:5s} {name:12s} {rate:,.5g}", flush=True)
    print_tables(lines)


def print_tables(lines: list[dict[str, Any]]) -> None:
    speed = [line for line in lines if "rows_per_s" in line]
    quality = [line for line in lines if "test_auc" in line]
    print("\n\n".join([speed_table(speed)] * bool(speed) + [quality_table(quality)] * bool(quality)))


if __name__ == "__main__":
    main()

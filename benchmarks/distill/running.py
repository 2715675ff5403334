"""What the tables of this folder have in common: runs that are made once, results by row, blocks of the README."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from methods import Method, World

from cascade_kd.config import ExperimentConfig, load_experiment
from cascade_kd.experiment import run
from cascade_kd.train import ProgressLog

README = Path(__file__).parents[1] / "README.md"

Tree = dict[str, Any]
Results = dict[tuple[str, str], Tree]
Measure = Callable[[World, Method, argparse.Namespace], Tree]


def chosen(worlds: Sequence[World], only: Sequence[str]) -> Iterator[tuple[World, Method]]:
    """The pairs of world and method whose ``WORLD/METHOD`` begins with one of ``only``; all without any."""
    for world in worlds:
        for method in world.methods:
            if not only or any(f"{world.name}/{method.name}".startswith(text) for text in only):
                yield world, method


def experiment(world: World, method: Method, runs: Path, seeds: Sequence[int]) -> tuple[ExperimentConfig, Path]:
    """One experiment, written where it will run, and its run directory: another for every weight and its seeds."""
    name = re.sub(r"[^a-z0-9.]+", "-", f"{method.name.lower()} {method.chosen:g}")
    folder = runs / world.name / name / ("seeds-" + "-".join(map(str, seeds)))
    folder.mkdir(parents=True, exist_ok=True)
    written = world.write(folder, method.toml(method.chosen), seeds[0])
    config = load_experiment(written, overrides=[*method.settings, f"seeds={list(seeds)}"])
    return config, folder / "run"


def run_once(
    world: World, method: Method, options: argparse.Namespace, seeds: Sequence[int]
) -> tuple[Tree, Tree, Path]:
    """The metrics.json of an experiment, which is run unless it is complete, how it ran, and its run directory."""
    config, out = experiment(world, method, options.runs, seeds)
    if not (out / "metrics.json").exists():
        run(config, out, device=options.device, resume=out.exists(), progress=ProgressLog())
    metrics = json.loads((out / "metrics.json").read_text("utf-8"))
    return metrics, {key: metrics["run"][key] for key in ("commit", "wall_s", "threads")}, out


def read_results(path: Path) -> Results:
    """The rows of a results file by world and method."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return {(row["world"], row["method"]): row for row in map(json.loads, lines)}


def tabulate(
    doc: str | None,
    worlds: Sequence[World],
    path: Path,
    measure: Measure,
    with_tables: Callable[[str, Results], str],
) -> Results:
    """What the command line of a table asks for: its results, completed, and its part of the README."""
    results = run_all(parsed(doc), worlds, path, measure)
    README.write_text(with_tables(README.read_text("utf-8"), results), "utf-8")
    return results


def parsed(doc: str | None) -> argparse.Namespace:
    """The command line of a table."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/distill"))
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def run_all(options: argparse.Namespace, worlds: Sequence[World], path: Path, measure: Measure) -> Results:
    """The results of ``path``, after those that the command line asks for and that are not there were run."""
    results = read_results(path)
    for world, method in () if options.show else chosen(worlds, options.only):
        row = results.get((world.name, method.name))
        if row and row["weight"] == method.chosen and {str(seed) for seed in options.seeds} <= row["seeds"].keys():
            continue
        print(f"{world.name}: {method.name}", flush=True)
        row = {"world": world.name, "method": method.name, "weight": method.chosen}
        results[world.name, method.name] = row | measure(world, method, options)
        path.write_text("".join(json.dumps(row) + "\n" for row in results.values()), "utf-8")
    return results


def rows_of(world: World, results: Mapping[tuple[str, str], Tree]) -> list[Tree]:
    """Its rows in the order of its methods."""
    return [results[world.name, m.name] for m in world.methods if (world.name, m.name) in results]


def mean_of(values: Sequence[float]) -> str:
    """Four decimals, or nothing."""
    return f"{np.mean(values):.4f}" if values else ""


def difference_of(values: Sequence[float], digits: int = 4) -> str:
    """The mean of paired differences and its standard error, which one seed has not."""
    if len(values) == 1:
        return f"{values[0]:+.{digits}f}"
    return f"{np.mean(values):+.{digits}f} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.{digits}f}"


def in_readme(readme: str, script: str, lines: Sequence[str]) -> str:
    """The README with ``lines`` between the marks of a script."""
    block = re.compile(rf"(?<=<!-- {re.escape(script)} -->\n).*?(?=<!-- end -->)", re.DOTALL)
    return block.sub(lambda _: "\n".join(lines), readme, count=1)

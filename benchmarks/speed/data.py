"""From the raw MovieLens-1M files to the first training batch: this library beside pandas, RecBole and FuxiCTR.

    python benchmarks/speed/data.py --data FOLDER [--rounds 3] [--threads N] \\
        [--pandas-python PATH] [--recbole-python PATH] [--fuxictr-python PATH] [--out benchmarks/results/data.jsonl]

``FOLDER`` holds ratings.dat, users.dat and movies.dat. Every measurement is a process of its own in the contender's own
environment; the contenders alternate, A B C A B C. A peer whose interpreter is not given is left out. One round more is
run first and not counted: it fills caches of files and byte code, and stores what the ``cached`` contenders read.
benchmarks/peers/README.md makes the environments and says what is compared.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import processes

FILES = ("ratings.dat", "users.dat", "movies.dat")
TASKS = {  # what is in a batch beside user, item and label, and who makes it from the files
    "attributes": ("ours", "pandas", "recbole", "fuxictr"),
    "history": ("ours", "pandas", "recbole"),
    "all-features": ("ours",),
}
CONVERTS = ("recbole", "fuxictr")  # read no raw files
CACHES = ("ours", "recbole", "fuxictr")  # keep what they prepared
REFERENCE = "recbole"


@dataclass(frozen=True)
class Contender:
    """One line of the table."""

    library: str
    python: str
    task: str
    cached: bool = False

    @property
    def name(self) -> str:
        return f"{self.library}, cached" if self.cached else self.library


def contenders(pythons: dict[str, str], tasks: list[str]) -> Iterator[Contender]:
    """All that can be run with these interpreters, in the order of a round."""
    for task in tasks:
        for library, python in pythons.items():
            if library in TASKS[task]:
                yield Contender(library, python, task)
                if library in CACHES:
                    yield Contender(library, python, task, cached=True)


def measure(
    contender: Contender, options: argparse.Namespace, scratch: Path, *, convert: bool = False
) -> dict[str, Any]:
    """Run one process and return what it printed. Raises ``SystemExit`` with its messages if it fails."""
    stored = scratch / f"{contender.library}-{contender.task}-stored"
    work = stored if contender.cached else Path(tempfile.mkdtemp(dir=scratch))
    converted = scratch / f"{contender.library}-converted"
    flags = [f"--{contender.task}"] * (contender.task in ("history", "all-features")) + ["--cached"] * contender.cached
    command = [
        contender.python,
        str(processes.PEERS / f"run_{contender.library}.py"),
        *flags,
        *(["--convert"] * convert),
    ]
    command += ["--data", str(options.data.resolve()), "--converted", str(converted), "--work", str(work)]
    command += ["--batch-size", str(options.batch_size)]
    figures = processes.run(contender.name, command, scratch, threads=options.threads)
    if not contender.cached:
        shutil.rmtree(work, ignore_errors=True)
    return figures


def table(lines: list[dict[str, Any]], task: str) -> str:
    """Markdown: medians with ranges; ratios are medians of the rounds' own ratios."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        if line["task"] == task:
            by_name.setdefault(line["contender"], []).append(line)
    heads = [
        "",
        "after imports, s",
        f"x {REFERENCE}",
        "from start, s",
        "ratings/s",
        "CPU s",
        "peak MiB",
        "epoch rows/s",
    ]
    rows = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    reference = by_name.get(REFERENCE, [])
    for name, runs in by_name.items():
        seconds = [run["first_batch_after_imports_s"] for run in runs]
        ratios = [a["first_batch_after_imports_s"] / b for a, b in zip(reference, seconds, strict=False)]
        helpers = max(run["helpers_peak_rss_mib"] for run in runs)
        memory = processes.spread([run["peak_rss_mib"] for run in runs], 0) + (f" + {helpers:,.0f}" if helpers else "")
        rows.append(
            [
                name,
                processes.spread(seconds, 2),
                processes.spread(ratios, 1) if ratios else "",
                processes.spread([run["first_batch_s"] for run in runs], 1),
                f"{statistics.median(run['rows_per_s'] for run in runs):,.0f}",
                processes.spread([run["cpu_s"] for run in runs], 2),
                memory,
                f"{statistics.median(run['epoch_rows_per_s'] for run in runs):,.0f}",
            ]
        )
    return processes.markdown(rows)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the raw files")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    for library in ("pandas", "recbole", "fuxictr"):
        parser.add_argument(f"--{library}-python", metavar="PATH", help=f"the interpreter that has {library}")
    parser.add_argument("--no-warm-up", action="store_true", help="leave out the first, uncounted round")
    parser.add_argument("--out", type=Path, help="append one JSON line a measurement")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    missing = [name for name in FILES if not (options.data / name).is_file()]
    if missing:
        raise SystemExit(f"{options.data} lacks {', '.join(missing)}: --data wants the folder of MovieLens-1M")
    given = {library: getattr(options, f"{library}_python") for library in ("pandas", "recbole", "fuxictr")}
    pythons = {"ours": sys.executable} | {library: python for library, python in given.items() if python}
    ratings = (options.data / FILES[0]).read_bytes().count(b"\n")
    about = {"benchmark": "data", "data": "movielens-1m", "ratings": ratings, "batch_size": options.batch_size}
    about |= {"commit": processes.commit(), "threads": options.threads, "cpus": os.cpu_count()}
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="data-benchmark-") as folder:
        scratch = Path(folder)
        for library in CONVERTS:
            if library in pythons:
                figures = measure(Contender(library, pythons[library], "attributes"), options, scratch, convert=True)
                keep(about | {"contender": library, "task": "convert", **figures}, lines, options.out)
        for turn in range(int(options.no_warm_up), options.rounds + 1):
            for contender in contenders(pythons, options.tasks):
                if turn == 1 and contender.cached and options.no_warm_up:
                    measure(contender, options, scratch)
                figures = measure(contender, options, scratch)
                figures["rows_per_s"] = ratings / figures["first_batch_after_imports_s"]
                line = about | {"contender": contender.name, "task": contender.task, "round": turn, **figures}
                if turn:
                    keep(line, lines, options.out)
    for task in options.tasks:
        print(f"\n{task}\n\n{table(lines, task)}")
    check_same_rows(lines)


def check_same_rows(lines: list[dict[str, Any]]) -> None:
    """Refuse figures of contenders that did not read the same training part: roundings of a share differ, no more."""
    for key in ("train_rows", "label_rate"):
        values = [line[key] for line in lines if key in line]
        if max(values) > 1.01 * min(values):
            raise SystemExit(f"the contenders differ in {key}: {sorted(set(values))}")


def keep(line: dict[str, Any], lines: list[dict[str, Any]], out: Path | None) -> None:
    """Show a measurement, and append it to the file of results."""
    lines.append(line)
    seconds = line.get("first_batch_after_imports_s", line.get("convert_s", 0.0))
    print(f"{line['task']:10s} {line.get('round', '')!s:2s} {line['contender']:16s} {seconds:8.2f} s", flush=True)
    processes.keep(line, out)


if __name__ == "__main__":
    main()

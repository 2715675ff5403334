"""Full-ranking evaluation of Gowalla: this library beside RecBole with a large evaluation batch.

    python benchmarks/speed/evaluation.py --data FOLDER --recbole-python PATH [--rounds 3] [--threads N] \\
        [--users 512] [--out benchmarks/results/evaluation.jsonl]

29,858 users, all 40,981 items, top 20, training items masked, all metrics of both, the same vectors of width 64 in
both (a truncated SVD of the training pairs). ``FOLDER`` holds train.txt and test.txt. Every measurement is a process of
its own in the contender's own environment (benchmarks/peers/README.md makes them), and the contenders alternate. A
process evaluates once uncounted, then ``--passes`` times; its figure is users over the seconds of the best pass.
Reading the data is not counted; of ours, building the index is. The ratio is the median over rounds. Recall and NDCG
must agree.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PEERS = Path(__file__).resolve().parent.parent / "peers"
ROOT = PEERS.parent.parent
sys.path.insert(0, str(PEERS))

from ranking import PREFIX, K, write_vectors  # noqa: E402

AGREE = 1e-3  # relative: equal scores at the cut may fall either way


def measure(library: str, python: str, options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run one process and return what it printed. Raises ``SystemExit`` with its messages if it fails."""
    command = [
        python,
        str(PEERS / f"evaluate_{library}.py"),
        "--data",
        str(options.data.resolve()),
        "--work",
        str(work),
    ]
    for name in ("users", "passes", "threads"):
        command += [f"--{name}", str(getattr(options, name))]
    threads = dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"), str(options.threads)
    )
    load = round(os.getloadavg()[0], 2)
    done = subprocess.run(command, env={**os.environ, **threads}, cwd=work, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith(PREFIX)]
    if done.returncode or not lines:
        raise SystemExit(f"{library} failed ({done.returncode}):\n{done.stderr[-3000:]}")
    figures: dict[str, Any] = json.loads(lines[-1].removeprefix(PREFIX))
    return {"load": load, **figures}


def check_same(lines: list[dict[str, Any]]) -> None:
    """Refuse figures of contenders that did not measure the same."""
    for key in ("users", f"recall@{K}", f"ndcg@{K}"):
        values = [line[key] for line in lines]
        if max(values) - min(values) > AGREE * max(values):
            raise SystemExit(f"the contenders differ in {key}: {sorted(set(values))}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of train.txt and test.txt")
    parser.add_argument("--recbole-python", metavar="PATH", help="the interpreter that has recbole")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--users", type=int, default=512, help="of a batch of RecBole's; its default comes to 1")
    parser.add_argument("--out", type=Path, help="append one JSON line a measurement")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    pythons = {"ours": sys.executable} | ({"recbole": options.recbole_python} if options.recbole_python else {})
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    about = {"benchmark": "evaluation", "data": "gowalla", "k": K, "commit": commit.strip(), "cpus": os.cpu_count()}
    about |= {"threads": options.threads, "recbole_users_per_batch": options.users}
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="evaluation-benchmark-") as folder:
        work = Path(folder)
        write_vectors(options.data, work)
        for turn in range(1, options.rounds + 1):
            for library, python in pythons.items():
                line = about | {"contender": library, "round": turn, **measure(library, python, options, work)}
                lines.append(line)
                print(
                    f"{turn} {library:8s} {line['users_per_s']:8,} users/s  recall@{K} {line[f'recall@{K}']:.5f}",
                    flush=True,
                )
                if options.out:
                    with options.out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")
    check_same(lines)
    speed = {name: [line["users_per_s"] for line in lines if line["contender"] == name] for name in pythons}
    if "recbole" in speed:
        ratios = [ours / theirs for ours, theirs in zip(speed["ours"], speed["recbole"], strict=True)]
        print(f"x recbole: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()

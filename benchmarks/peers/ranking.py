"""What the runners of the evaluation benchmark share: the command line, the vectors, the clock."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

PREFIX = "RESULT "
K = 20
DIM = 64


@dataclass(frozen=True)
class Options:
    """The command line of a runner."""

    data: Path  # the folder of train.txt and test.txt
    work: Path  # what is made once lies here: the vectors, RecBole's atomic files, our prepared set
    users: int  # of a batch of RecBole's
    passes: int
    threads: int


def options(doc: str | None) -> Options:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--users", type=int, default=512)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    chosen = Options(**vars(parser.parse_args()))
    torch.set_num_threads(chosen.threads)
    return chosen


def read_pairs(file: Path) -> np.ndarray:
    """[P, 2] user and item numbers of a file with a line a user: ``user item item ...``."""
    lines = [np.array(line.split(), dtype=np.int64) for line in file.read_text().splitlines()]
    return np.concatenate([np.stack([np.repeat(x[:1], len(x) - 1), x[1:]], axis=1) for x in lines])


def write_vectors(data: Path, work: Path) -> None:
    """Vectors of users and items by their numbers in the files: a truncated SVD of the normalised training matrix."""
    pair_P2 = read_pairs(data / "train.txt")
    weight_P = 1.0 / np.sqrt(np.bincount(pair_P2[:, 0])[pair_P2[:, 0]] * np.bincount(pair_P2[:, 1])[pair_P2[:, 1]])
    place_2P, weight_P = torch.from_numpy(pair_P2.T.copy()), torch.from_numpy(weight_P).float()
    matrix = torch.sparse_coo_tensor(place_2P, weight_P, check_invariants=True)
    torch.manual_seed(0)
    user_UD, size_D, item_ID = torch.svd_lowrank(matrix.coalesce(), q=DIM, niter=2)
    for name, x_ND in (("user", user_UD), ("item", item_ID)):
        np.save(work / f"{name}.npy", (x_ND * size_D.sqrt()).numpy())


def read_vectors(chosen: Options) -> tuple[Tensor, Tensor]:
    user_UD, item_ID = (torch.from_numpy(np.load(chosen.work / f"{name}.npy")) for name in ("user", "item"))
    return user_UD, item_ID


def finish(one_pass: Callable[[], tuple[int, float, float]], chosen: Options, packages: Iterable[str]) -> None:
    """Time passes (users, recall, NDCG) after one that is not counted, and print the figures."""
    one_pass()
    seconds: list[float] = []
    for _ in range(chosen.passes):
        start = time.perf_counter()
        users, recall, ndcg = one_pass()
        seconds.append(time.perf_counter() - start)
    figures = {
        "users": users,
        "seconds": [round(x, 3) for x in seconds],
        "users_per_s": round(users / min(seconds)),
        f"recall@{K}": recall,
        f"ndcg@{K}": ndcg,
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "versions": {"python": sys.version.split()[0]} | {name: version(name) for name in packages},
    }
    print(PREFIX + json.dumps(figures), flush=True)

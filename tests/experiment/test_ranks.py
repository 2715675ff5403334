"""``torchrun -m cascade_kd run``: several ranks train what one process trains."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cascade_kd.data import Dataset
from cascade_kd.train import load_checkpoint

pytestmark = pytest.mark.slow

Tiny = Callable[..., Path]
LIMIT = 180  # seconds for any one run

# Dropout draws other masks for other shares; all else is the same.
PLAIN = ["stage.prerank.model.dropout=0.0", "stage.rank.model.dropout=0.0", "stage.recall.model.dropout=0.0"]
BPR = ["stage.rank.train.loss=bpr", "stage.rank.train.samples=[{from='uniform',per_positive=2}]"]
SPARSE = {"recall": "sparse-adagrad", "prerank": "sparse-adam", "rank": "rowwise-adagrad"}
SHARDED = [f"stage.{stage}.train.embedding_optimizer={kind}" for stage, kind in SPARSE.items()]
SHARDED += [f"stage.{stage}.train.shard_rows=40" for stage in SPARSE]
DISTILL = """
[[distill]]
teacher = "rank"
student = "prerank"
method = "logit"
loss = "kl"
weight = 0.5

[[distill]]
teacher = "rank"
student = "prerank"
method = "hidden"
layers = [["mlp.0", "user.mlp.0"]]
projector = "linear"
weight = 0.01
"""


class Runs:
    """Runs of one experiment, over any number of ranks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: list[subprocess.Popen[str]] = []

    def start(self, file: Path, name: str, ranks: int, *options: str) -> subprocess.Popen[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
        command = [sys.executable, *launcher, "-m", "cascade_kd", "run", str(file), "--device", "cpu"]
        command += ["--out", str(self.folder / name), *options]
        env = os.environ | {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
        env["CASCADE_KD_CACHE"] = str(self.folder / f"{name}-cache")  # nothing is taken from another run
        process = subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        self.running.append(process)
        return process

    def run(self, file: Path, name: str, ranks: int, *overrides: str, code: int = 0) -> str:
        process = self.start(file, name, ranks, *(word for override in overrides for word in ("--set", override)))
        said, _ = process.communicate(timeout=LIMIT)
        assert process.returncode == code, said
        return said

    def weights(self, name: str, number: int, stage: str, file: str = "last") -> Mapping[str, Tensor]:
        path = self.folder / name / "checkpoints" / "0" / str(number) / stage / f"{file}.safetensors"
        return load_checkpoint(path).model

    def curve(self, name: str, number: int, stage: str) -> list[tuple[float, float]]:
        path = self.folder / name / "checkpoints" / "0" / str(number) / stage / "last.json"
        points: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))["state"]["curve"]
        return [(point["loss"], point["value"]) for point in points]

    def metrics(self, name: str) -> dict[str, Any]:
        tree: dict[str, Any] = json.loads((self.folder / name / "metrics.json").read_text("utf-8"))
        return tree


@pytest.fixture
def runs(tmp_path: Path, cache: Path) -> Iterator[Runs]:
    made = Runs(tmp_path / "runs")
    yield made
    for process in made.running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def assert_equal(runs: Runs, a: str, b: str, number: int, stage: str) -> None:
    """The same trajectory, to the rounding of sums in another order."""
    ours, theirs = runs.weights(a, number, stage), runs.weights(b, number, stage)
    assert ours.keys() == theirs.keys()
    # A last bias has rounding alone for a gradient where a loss takes differences of logits, which Adam blows up.
    for name in [name for name in ours if not name.startswith("beside.") and ours[name].numel() > 1]:
        torch.testing.assert_close(ours[name], theirs[name], rtol=2e-3, atol=1e-3)  # a tenth of one step of Adam
    for ours_at, theirs_at in zip(runs.curve(a, number, stage), runs.curve(b, number, stage), strict=True):
        assert ours_at[0] == pytest.approx(theirs_at[0], rel=1e-5)  # loss
        assert ours_at[1] == pytest.approx(theirs_at[1], abs=1e-4)  # monitor


@pytest.mark.parametrize(
    "overrides",
    [
        ["stage.rank.train.embedding_optimizer=rowwise-adagrad", "stage.prerank.train.embedding_optimizer=sparse-adam"],
        SHARDED,
        ["stage.recall.train.loss=full-softmax", *BPR],
        ["stage.recall.train.loss=bpr", "stage.rank.train.samples=[{from='impressions'},{from='hard',per_positive=2}]"],
    ],
    ids=["row-sparse", "tables by rows", "full softmax and bpr", "bpr and hard negatives"],
)
def test_two_ranks_take_the_steps_of_one_process(tiny: Tiny, runs: Runs, overrides: list[str]) -> None:
    distill = "" if set(BPR) <= set(overrides) else DISTILL
    file = tiny(distill=distill)
    runs.run(file, "one", 1, *PLAIN, *overrides)
    runs.run(file, "two", 2, *PLAIN, *overrides)
    for stage in ("recall", "prerank", "rank"):
        assert_equal(runs, "one", "two", 0, stage)
    if distill:
        assert_equal(runs, "one", "two", 1, "prerank")
    one, two = runs.metrics("one"), runs.metrics("two")
    assert (one["run"]["ranks"], two["run"]["ranks"]) == (1, 2)
    for stage, tree in one["summary"]["stages"].items():
        assert two["summary"]["stages"][stage]["auc"]["mean"] == pytest.approx(tree["auc"]["mean"], abs=1e-4)


def test_a_rank_without_rows_and_three_ranks(tiny: Tiny, runs: Runs, dataset: Dataset) -> None:
    rows = len(dataset.rows("train"))
    few = [f"stage.{stage}.train.batch_size={rows - 1}" for stage in ("prerank", "rank")]  # one row is left over
    few += ["stage.prerank.train.embedding_optimizer=sparse-adam", "stage.recall.train.max_steps=2"]
    file = tiny(distill="")
    runs.run(file, "one", 1, *PLAIN, *few)
    runs.run(file, "three", 3, *PLAIN, *few)
    for stage in ("recall", "prerank", "rank"):
        assert_equal(runs, "one", "three", 0, stage)


def test_joint_training_and_codistillation_over_two_ranks(tiny: Tiny, runs: Runs) -> None:
    joint = DISTILL.split("[[distill]]")[1].replace('loss = "kl"', 'mode = "joint"\nshare = ["embedding"]')
    peers = '[codistill]\nstage = "rank"\nexchange_steps = 3\nburn_in_steps = 4\n'
    file = tiny(distill=f"[[distill]]{joint}", more=peers)
    for name, ranks in (("one", 1), ("two", 2)):
        runs.run(file, name, ranks, *PLAIN, "stage.recall.train.max_steps=2")
    for stage in ("prerank", "rank", "rank.peer1"):
        assert_equal(runs, "one", "two", 1, stage)


@pytest.mark.parametrize(("before", "after", "more"), [(2, 2, []), (2, 2, SHARDED), (2, 1, SHARDED), (1, 2, SHARDED)])
def test_an_interrupt_stops_all_ranks_and_any_number_goes_on(
    tiny: Tiny, runs: Runs, before: int, after: int, more: list[str]
) -> None:
    file = tiny(distill="", epochs=30)
    few = ["stage.recall.train.max_steps=2", "stage.prerank.train.max_steps=2", "stage.rank.train.patience=0"]
    few += [*PLAIN, *more]
    runs.run(file, "whole", after, *few)
    words = [word for one in few for word in ("--set", one)]
    process = runs.start(file, "stopped", before, *words)
    last = runs.folder / "stopped" / "checkpoints" / "0" / "0" / "rank" / "last.json"
    deadline = time.monotonic() + LIMIT
    while not last.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=LIMIT)
    assert process.returncode != 0
    state = json.loads(last.read_text("utf-8"))["state"]
    assert not state["finished"], said
    assert "--resume" in said
    process = runs.start(file, "stopped", after, "--resume", *words)
    said, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, said
    if before == after:
        whole, resumed = runs.weights("whole", 0, "rank"), runs.weights("stopped", 0, "rank")
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    else:  # to rounding, which thirty epochs blow up
        for ours, theirs in zip(runs.curve("whole", 0, "rank"), runs.curve("stopped", 0, "rank"), strict=True):
            assert ours[0] == pytest.approx(theirs[0], rel=1e-2)


def test_what_a_share_of_a_batch_cannot_do_is_refused(tiny: Tiny, runs: Runs) -> None:
    file = tiny(distill="")
    said = runs.run(file, "norm", 2, "stage.rank.model.batch_norm=true", code=1)  # torchrun's own code
    assert "stage 'rank': batch norm takes its means over a batch" in said
    again = runs.run(file, "norm", 2, code=1)  # what rank 0 finds wrong, all find
    assert again.count("already holds a run") == 2
    assert "a bug of ours" not in said + again

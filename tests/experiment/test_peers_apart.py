"""Codistillation between real processes that share a folder and nothing else."""

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

from cascade_kd.train import load_checkpoint

pytestmark = pytest.mark.slow

Tiny = Callable[..., Path]
EVERY = 4
LIMIT = 120  # seconds for any one process
KEYS = f'\n[codistill]\nstage = "prerank"\nexchange_steps = {EVERY}\nburn_in_steps = 10\n'
FEW = ["stage.prerank.train.batch_size=800", "stage.rank.train.max_steps=2", "stage.recall.train.max_steps=2"]


class Group:
    """The processes of one training."""

    def __init__(self, file: Path, folder: Path, *overrides: str) -> None:
        self.file, self.folder, self.overrides = file, folder, [*FEW, *overrides]
        self.running: list[subprocess.Popen[str]] = []

    def start(self, peer: int | None, *options: str) -> subprocess.Popen[str]:
        alone = [] if peer is None else [f"codistill.peer={peer}", f"codistill.shared={self.folder / 'shared'}"]
        command = [sys.executable, "-m", "cascade_kd", "run", str(self.file), "--out", str(self.out(peer)), *options]
        for override in (*self.overrides, *alone):
            command += ["--set", override]
        env = os.environ | {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.running.append(process)
        return process

    def out(self, peer: int | None) -> Path:
        return self.folder / f"peer-{peer}"

    def last(self, peer: int | None, stage: str = "prerank", file: str = "last") -> Mapping[str, Tensor]:
        return load_checkpoint(self.out(peer) / "checkpoints" / "0" / "1" / stage / f"{file}.safetensors").model

    def state(self, peer: int) -> dict[str, Any]:
        path = self.out(peer) / "checkpoints" / "0" / "1" / "prerank" / "last.json"
        state: dict[str, Any] = json.loads(path.read_text("utf-8"))["state"]
        return state

    def exchanges(self, peer: int) -> list[tuple[int, dict[str, int]]]:
        lines = map(json.loads, (self.out(peer) / "events.ndjson").read_text("utf-8").splitlines())
        return [(line["step"], line["peers"]) for line in lines if "peers" in line]


def finish(process: subprocess.Popen[str]) -> str:
    _, said = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, said
    return said


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def group(tiny: Tiny, tmp_path: Path, cache: Path) -> Iterator[Callable[..., Group]]:
    made: list[Group] = []

    def make(name: str, *overrides: str, more: str = "", epochs: int = 4) -> Group:
        file = tiny(distill="", more=KEYS + more, epochs=epochs, name=name)
        made.append(Group(file, tmp_path / name, *overrides))
        return made[-1]

    yield make
    for process in (process for one in made for process in one.running):
        if process.poll() is None:
            process.kill()
        process.communicate()


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


def test_processes_that_wait_for_each_other_do_what_one_process_does(group: Callable[..., Group]) -> None:
    """So their staleness is exact, too: of one process it is tested step by step."""
    one, apart = group("one"), group("apart", f"codistill.wait_seconds={LIMIT}")
    finish(one.start(None))
    for process in [apart.start(0), apart.start(1)]:
        assert "peer" not in finish(process)
    for peer, stage in ((0, "prerank"), (1, "prerank.peer1")):
        for file in ("last", "best"):
            assert same(one.last(None, stage, file), apart.last(peer, file=file))
        steps = [step for step, _ in apart.exchanges(peer)]
        assert apart.exchanges(peer) == [(step, {str(1 - peer): step}) for step in steps]
        assert steps == list(range(8, apart.state(peer)["step"], EVERY))


@pytest.mark.parametrize("alone", ["codistill.weight=0.0", "codistill.burn_in_steps=1000"])
def test_weight_0_and_the_burn_in_are_independent_runs(group: Callable[..., Group], alone: str) -> None:
    want, apart = group("want", "codistill.weight=0.0", "codistill.exchange_steps=1000"), group("apart", alone)
    finish(want.start(None))
    for process in [apart.start(0), apart.start(1)]:
        finish(process)
    for peer, stage in ((0, "prerank"), (1, "prerank.peer1")):
        assert same(want.last(None, stage), apart.last(peer))


def test_a_killed_peer_stops_nobody_and_catches_up(group: Callable[..., Group]) -> None:
    apart = group("apart", "stage.prerank.train.patience=0", epochs=60, more="peers = 3\n")
    processes = {peer: apart.start(peer) for peer in range(3)}
    wait_for(lambda: len(apart.exchanges(1) if (apart.out(1) / "events.ndjson").exists() else []) >= 3)
    processes[1].send_signal(signal.SIGKILL)
    processes[1].communicate(timeout=LIMIT)
    assert processes[1].returncode == -signal.SIGKILL
    killed = apart.state(1)
    assert not killed["finished"]
    copies = {path.name for path in (apart.out(1) / "checkpoints" / "0" / "1" / "prerank" / "peers").glob("peer-*")}
    used = {f"peer-{peer}.step-{step:09d}.safetensors" for peer, step in killed["peers"].items()}
    assert used <= copies  # a resume has the very weights
    for peer in (0, 2):
        said = finish(processes[peer])
        assert "peer 1: has published nothing newer; goes on with those of step" in said
        assert apart.state(peer)["finished"]
        assert apart.exchanges(peer)[-1][1]["1"] <= killed["step"] + EVERY
    # The folder has lost a file, too, in the meantime: that of peer 2 is cut.
    (newest,) = sorted((apart.folder / "shared").glob("*/peer-2/step-*.safetensors"))[-1:]
    newest.write_bytes(newest.read_bytes()[:-10])
    said = finish(apart.start(1, "--resume"))
    assert "peer 2: its weights of step" in said
    ended = apart.state(1)
    assert ended["finished"]
    assert ended["step"] == apart.state(0)["step"]
    steps = [step for step, _ in apart.exchanges(1)]
    assert steps == list(range(8, ended["step"], EVERY))  # none twice, none left out
    assert ended["peers"]["0"] == apart.state(0)["step"]  # what it missed, it has read

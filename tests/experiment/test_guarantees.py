"""What training guarantees (design, section 6), on whole runs of the tiny world."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cascade_kd.cascade import Cascade
from cascade_kd.config import load_experiment
from cascade_kd.experiment import RunResult, run
from cascade_kd.interrupt import Interrupted
from cascade_kd.train import ProgressLog, load_checkpoint, samples, upstream_lists

Tiny = Callable[..., Path]


def weights(out: Path, seed: int, round_number: int, stage: str) -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(out / "checkpoints" / str(seed) / str(round_number) / stage / "best.safetensors").model)


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def differ(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return any(not torch.equal(a[name], b[name]) for name in a)


def go(file: Path, out: Path, *overrides: str, resume: bool = False) -> RunResult:
    config = load_experiment(file, overrides=overrides)
    return run(config, out, device="cpu", resume=resume, progress=ProgressLog(quiet=True))


def forget(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """A cache of its own, so that nothing is taken from an earlier run."""
    monkeypatch.setenv("CASCADE_KD_CACHE", str(folder))


def test_same_seed_same_weights_and_other_seeds_differ(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tiny(seeds=[0, 1], epochs=1)
    go(file, tmp_path / "a")
    forget(monkeypatch, tmp_path / "fresh")
    go(file, tmp_path / "b")
    for stage in ("recall", "prerank", "rank"):
        assert_same(weights(tmp_path / "a", 0, 0, stage), weights(tmp_path / "b", 0, 0, stage))
        assert differ(weights(tmp_path / "a", 0, 0, stage), weights(tmp_path / "a", 1, 0, stage))
    assert_same(weights(tmp_path / "a", 0, 1, "prerank"), weights(tmp_path / "b", 0, 1, "prerank"))


def test_weight_zero_is_the_undistilled_run_bit_for_bit(tiny: Tiny, tmp_path: Path) -> None:
    result = go(tiny(), tmp_path / "zero", "distill.0.weight=0.0")
    assert_same(weights(tmp_path / "zero", 0, 0, "prerank"), weights(tmp_path / "zero", 0, 1, "prerank"))
    tree = result.report.seeds["0"]
    assert tree["stages"]["prerank"]["auc"] == tree["baseline"]["stages"]["prerank"]["auc"]
    # and the distiller does something where its weight is not 0
    go(tiny(), tmp_path / "half")
    assert_same(weights(tmp_path / "zero", 0, 0, "prerank"), weights(tmp_path / "half", 0, 0, "prerank"))
    assert differ(weights(tmp_path / "half", 0, 0, "prerank"), weights(tmp_path / "half", 0, 1, "prerank"))


@pytest.mark.parametrize(("warmup", "same"), [(6, True), (5, False)])
def test_warm_up_is_the_undistilled_run_up_to_the_first_weighted_step(
    tiny: Tiny, tmp_path: Path, warmup: int, same: bool
) -> None:
    # Six steps in all: with six of warm-up none is weighted; with five the last one is, and only it can differ.
    go(tiny(), tmp_path / "run", f"distill.0.warmup_steps={warmup}", "stage.prerank.train.max_steps=6")
    before, after = (weights(tmp_path / "run", 0, number, "prerank") for number in (0, 1))
    assert differ(before, after) is not same


def test_another_distiller_or_stage_changes_no_other_draws(tiny: Tiny, tmp_path: Path) -> None:
    second = '\n[[distill]]\nteacher = "recall"\nstudent = "rank"\nmethod = "logit"\nloss = "prob-mse"\nweight = 0.1\n'
    go(tiny(), tmp_path / "one")
    go(tiny(more=second, name="two"), tmp_path / "two")
    assert differ(weights(tmp_path / "two", 0, 0, "rank"), weights(tmp_path / "two", 0, 1, "rank"))
    for stage in ("recall", "prerank", "rank"):
        assert_same(weights(tmp_path / "one", 0, 0, stage), weights(tmp_path / "two", 0, 0, stage))
    assert_same(weights(tmp_path / "one", 0, 1, "prerank"), weights(tmp_path / "two", 0, 1, "prerank"))


def test_the_teacher_is_not_touched(tiny: Tiny, tmp_path: Path) -> None:
    result = go(tiny(), tmp_path / "run")
    stage = result.cascades[0].stages[-1]
    served = {name: tensor.clone() for name, tensor in stage.model.state_dict().items()}
    assert_same(served, weights(tmp_path / "run", 0, 0, "rank"))
    assert not (tmp_path / "run" / "checkpoints" / "0" / "1" / "rank").exists()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in stage.model.parameters())


def test_stages_are_shared_between_experiments(tiny: Tiny, tmp_path: Path) -> None:
    go(tiny(), tmp_path / "first")
    log = ProgressLog(quiet=True)
    said: list[str] = []
    log.say = said.append  # type: ignore[method-assign]
    others = ["distill.0.loss=mse", "distill.0.temperature=1.0", "stage.prerank.label_weight=rest"]
    config = load_experiment(tiny(name="second"), overrides=others)
    run(config, tmp_path / "second", device="cpu", progress=log)
    cached = [line for line in said if "from the cache" in line]
    assert [line.split()[4] for line in cached] == ["recall", "prerank", "rank"]  # the student alone is trained
    assert sum("epoch" in line for line in said) == 2


PLUG_IN = """
from torch import nn
from cascade_kd.models import DCNv2
class Mine(nn.Module):
    Config, levels, sides = DCNv2.Config, DCNv2.levels, DCNv2.sides
    def __init__(self, config, features):
        super().__init__()
        self.inner = DCNv2(config, features)
    hidden_names = ()
    def forward(self, inputs, hidden=()):
        return self.inner(inputs, hidden)
"""


def test_an_edited_plug_in_is_trained_again(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    keys = []
    for number, text in enumerate((PLUG_IN, PLUG_IN, PLUG_IN + "# edited")):
        (tmp_path / "plugged.py").write_text(text)
        out = tmp_path / str(number)
        go(tiny(epochs=1, distill="", name=f"run{number}"), out, "stage.rank.type=plugged:Mine")
        keys.append(json.loads((out / "checkpoints/0/0/rank/best.json").read_text())["key"])
    assert keys[0] == keys[1] != keys[2]


KILLER = """
import os, signal
import cascade_kd.train.state as state
from cascade_kd.cli import main

save, count = state.save_checkpoint, 0
def counted(path, checkpoint):
    global count
    save(path, checkpoint)
    count += 1
    if count == int(os.environ["KILL_AFTER"]):
        os.kill(os.getpid(), signal.SIGKILL)
state.save_checkpoint = counted
main()
"""


def command(*arguments: str | Path, code: str = "from cascade_kd.cli import main; main()", **env: str) -> list[str]:
    return [sys.executable, "-c", code, *map(str, arguments)]


@pytest.mark.slow  # Ctrl-C below goes on from the same files
@pytest.mark.parametrize("after", [3, 10])
def test_resume_after_kill_9_ends_in_the_same_weights(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    file = tiny(epochs=3)
    go(file, tmp_path / "whole")
    env = {
        **os.environ,
        "CASCADE_KD_CACHE": str(tmp_path / "other-cache"),
        "KILL_AFTER": str(after),
        "OMP_NUM_THREADS": "1",
    }
    killed = subprocess.run(
        command("run", file, "--out", tmp_path / "killed", "--device", "cpu", code=KILLER),
        env=env,
        check=False,
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL
    forget(monkeypatch, tmp_path / "other-cache")
    go(file, tmp_path / "killed", resume=True)
    for number, stage in ((0, "recall"), (0, "prerank"), (0, "rank"), (1, "prerank")):
        assert_same(weights(tmp_path / "whole", 0, number, stage), weights(tmp_path / "killed", 0, number, stage))
    logged = [(tmp_path / name / "events.ndjson").read_text().splitlines() for name in ("whole", "killed")]
    points = [[{**json.loads(line), "samples_per_s": 0} for line in lines] for lines in logged]
    assert points[0] == points[1]  # no point twice, none missing


def test_ctrl_c_leaves_a_checkpoint_that_a_resume_finishes(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tiny(epochs=3)
    go(file, tmp_path / "whole")
    forget(monkeypatch, tmp_path / "other-cache")

    drawn = samples.Sampler.batch

    def interrupting(self: samples.Sampler, step: int) -> samples.Batch:
        if step == 7 and self.batch_size == 512:  # in the middle of the pre-ranker's first or second epoch
            os.kill(os.getpid(), signal.SIGINT)
        return drawn(self, step)

    monkeypatch.setattr(samples.Sampler, "batch", interrupting)
    with pytest.raises(Interrupted, match=r"stage 'prerank' at step 8; `--resume` goes on") as stopped:
        go(file, tmp_path / "stopped")
    assert stopped.value.exit_code == 130
    monkeypatch.setattr(samples.Sampler, "batch", drawn)
    go(file, tmp_path / "stopped", resume=True)
    for number, stage in ((0, "recall"), (0, "prerank"), (0, "rank"), (1, "prerank")):
        assert_same(weights(tmp_path / "whole", 0, number, stage), weights(tmp_path / "stopped", 0, number, stage))


@pytest.mark.slow  # Ctrl-C above goes the same way
def test_sigterm_exits_143_and_leaves_a_checkpoint(tiny: Tiny, tmp_path: Path) -> None:
    file = tiny(epochs=500)
    overrides = [x for stage in ("recall", "prerank", "rank") for x in ("--set", f"stage.{stage}.train.patience=0")]
    process = subprocess.Popen(
        command("run", file, "--out", tmp_path / "run", "--device", "cpu", *overrides),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    events = tmp_path / "run" / "events.ndjson"
    deadline = time.monotonic() + 100
    while not (events.exists() and events.read_text().count("\n") >= 2):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "`--resume` goes on from there" in stderr
    assert (tmp_path / "run" / "checkpoints" / "0" / "0" / "recall" / "last.safetensors").exists()


def test_lists_do_not_read_validation_or_test_events(tiny: Tiny, tmp_path: Path) -> None:
    """Permuting items and labels of later events leaves the upstream lists of training as they are."""
    result = go(tiny(), tmp_path / "run")
    dataset = result.dataset
    later = (dataset.events.part_N > 0).nonzero().squeeze(1)
    order = torch.randperm(len(later), generator=torch.Generator().manual_seed(0))
    item_N = dataset.events.item_N.clone()
    item_N[later] = item_N[later[order]]
    labels = {name: column.clone() for name, column in dataset.events.labels.items()}
    for column in labels.values():
        column[later] = 1 - column[later]
    events = replace(dataset.events, item_N=item_N, labels=labels)
    changed = replace(dataset, events=events)
    stages = result.cascades[0].stages[:2]
    before = upstream_lists(Cascade(stages), dataset)
    after = upstream_lists(Cascade(tuple(replace(s, dataset=changed, **_fresh(s)) for s in stages)), changed)
    assert torch.equal(before.item_BK, after.item_BK)
    assert torch.equal(before.valid_BK, after.valid_BK)
    seen = dataset.is_seen(torch.arange(len(before)), before.item_BK, part="valid") & before.valid_BK
    assert not bool(seen.any())


def _fresh(stage: object) -> dict[str, object]:
    return {"_indices": {}} if hasattr(stage, "_indices") else {}

"""Whole trainings of the tiny world that share their round 0."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from cascade_kd.config import load_experiment
from cascade_kd.data import Dataset
from cascade_kd.experiment.rounds import train_rounds
from cascade_kd.experiment.store import Store
from cascade_kd.experiment.workshop import Round, Workshop
from cascade_kd.train import ProgressLog, load_checkpoint


class Outcome:
    """The rounds of a training and its folder."""

    def __init__(self, rounds: list[Round], out: Path) -> None:
        self.rounds, self.out = rounds, out

    def weights(self, number: int, stage: str = "prerank", file: str = "best") -> Mapping[str, Tensor]:
        """Of a stage in a round, as its checkpoint has them."""
        return load_checkpoint(self.out / "checkpoints" / "0" / str(number) / stage / f"{file}.safetensors").model

    def model(self, name: str) -> nn.Module:
        """Of a stage of the last round, as it serves."""
        return self.rounds[-1][name].stage.model  # type: ignore[attr-defined, no-any-return]

    @property
    def same(self) -> bool:
        """Whether the distilled pre-ranker is the undistilled one, bit for bit."""
        before, after = self.weights(0), self.weights(1)
        assert before.keys() == after.keys()
        return all(torch.equal(before[name], after[name]) for name in before)


@pytest.fixture(scope="module")
def round_0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store after a training without anything that is taught; made by the first test that asks for it."""
    return tmp_path_factory.mktemp("round-0")


@pytest.fixture
def trainings(
    dataset: Dataset, tmp_path: Path, round_0: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> Callable[..., Callable[..., Outcome]]:
    """``trainings(WRITE, *overrides, unproven=MODULES)``: a ``train`` for the tests of a module.

    ``train(TABLES, *overrides)`` runs all rounds of what ``WRITE(TABLES)`` writes, round 0 from the store; ``fresh``
    false goes on in the same folder. ``unproven`` modules train without the proof of availability, which is half of the
    time and has tests of its own; ``also`` are overrides under which round 0 is stored, too.
    """

    def make(
        write: Callable[[str], Path],
        *always: str,
        unproven: Sequence[ModuleType],
        also: Sequence[str] = (),
    ) -> Callable[..., Outcome]:
        for module in unproven:
            monkeypatch.setattr(module, "prove_availability", lambda stage: None)
        count = 0

        def train(tables: str, *overrides: str, fresh: bool = True) -> Outcome:
            nonlocal count
            count += fresh
            store, out = tmp_path / f"cache-{count}", tmp_path / f"run-{count}"
            if fresh and tables:
                shutil.copytree(round_0, store)
            monkeypatch.setenv("CASCADE_KD_CACHE", str(store if tables else round_0))
            config = load_experiment(write(tables), overrides=[*always, *overrides])
            with ProgressLog(quiet=True) as progress:
                rounds = train_rounds(Workshop(config, dataset, out, Store(), progress), 0)
            return Outcome(rounds, out)

        if not any(round_0.iterdir()):
            train("")
            if also:
                train("", *also)
        return train

    return make

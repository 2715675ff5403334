"""What the stages of one experiment are made with, and what has been made (floor 8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cascade_kd.config import ExperimentConfig, StageConfig
from cascade_kd.data import Dataset
from cascade_kd.experiment.rundir import CHECKPOINTS
from cascade_kd.experiment.store import Store
from cascade_kd.stages import LogitStage, Stage
from cascade_kd.train import ProgressLog


@dataclass(frozen=True)
class Trained:
    """A stage or teacher that is complete, the hash of all that made it, and its learning curve."""

    stage: Stage
    key: str
    curve: Sequence[dict[str, Any]] = ()


@dataclass(frozen=True)
class Workshop:
    """What all stages of one experiment are made with."""

    config: ExperimentConfig
    dataset: Dataset
    out: Path
    store: Store
    progress: ProgressLog

    @property
    def device(self) -> torch.device:
        """Where the data is, and so where training happens."""
        return self.dataset.events.user_N.device

    def folder(self, seed: int, round_number: int, name: str) -> Path:
        """Where a stage's checkpoints are."""
        return self.out / CHECKPOINTS / str(seed) / str(round_number) / name


Round = dict[str, Trained]


def stages_before(config: ExperimentConfig, stage: StageConfig, before: Round) -> list[Trained]:
    """The stages of a round that feed one."""
    return [before[s.name] for s in config.stages[: config.stages.index(stage)]]


def logit_stage(trained: Trained) -> LogitStage:
    """What gives logits to learn from."""
    assert isinstance(trained.stage, LogitStage), "config refuses a teacher without the signals a distiller needs"
    return trained.stage

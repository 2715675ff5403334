"""The rows without a label that a student learns from (floor 8). M training rows, k pseudo rows of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cascade_kd.config.tables import DistillConfig
from cascade_kd.experiment.nets import net_of
from cascade_kd.experiment.workshop import Round, Workshop, logit_stage
from cascade_kd.stages import EnsembleStage, Stage
from cascade_kd.streams import stream
from cascade_kd.train import Task
from cascade_kd.train.transfer import MungedRows, munged_rows, score
from cascade_kd.types import Feature, Inputs


def transfer_content(shop: Workshop, pairs: Sequence[DistillConfig]) -> dict[str, Any] | None:
    """What of ``[transfer]`` decides the training of a student of these pairs."""
    return shop.config.transfer.model_dump() if shop.config.transfer is not None and pairs else None


@dataclass(frozen=True)
class Transfer:
    """The rows without a label of one training: so many ``pairs`` a row, or pseudo ``rows``."""

    pairs: int = 0
    rows: MungedRows | None = None

    @property
    def inputs(self) -> Callable[[Tensor], Inputs] | None:
        """The pseudo rows of training rows."""
        return None if self.rows is None else self.rows.inputs

    def logits(self, pairs: Sequence[DistillConfig], teachers: Round) -> dict[str, Tensor]:
        """By name of the pair, its teacher's logits [M, k] of the pseudo rows."""
        if self.rows is None:
            return {}
        return {pair.name: score(logit_stage(teachers[pair.teacher]), self.rows) for pair in pairs if pair.is_cached}


def make_transfer(shop: Workshop, task: Task, pairs: Sequence[DistillConfig], teachers: Round) -> Transfer:
    """What ``[transfer]`` adds to the training of a student of ``pairs``, where one of them labels it."""
    config = shop.config.transfer
    labelling = [pair for pair in pairs if pair.is_cached]
    if config is None or not labelling:
        return Transfer()
    if config.method == "pairs":
        return Transfer(pairs=config.copies)
    assert config.swap is not None, "settings fill it in"
    assert config.variance is not None
    read = [*task.features, *(f for pair in labelling for f in _features(teachers[pair.teacher].stage))]
    seed = stream(task.seed, "transfer")
    rows = munged_rows(
        shop.dataset,
        task.rows_M,
        tuple({feature.name: feature for feature in read}.values()),
        copies=config.copies,
        swap=config.swap,
        variance=config.variance,
        seed=seed,
    )
    return Transfer(rows=rows)


def _features(stage: Stage) -> tuple[Feature, ...]:
    """What a teacher, or any member of an ensemble, reads."""
    if isinstance(stage, EnsembleStage):
        return tuple(feature for member in stage.members for feature in _features(member))
    return net_of(stage).features

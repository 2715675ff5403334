"""Statistics of a stage's training rows, looked up once (floor 6). M training rows, S slots, R rows of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from cascade_kd.train.samples import Batch, Sampler
from cascade_kd.types import Feature

ROWS_PER_CALL = 1 << 15


@final
class StatisticColumns:
    """The item and pair statistics of all training rows and their negatives, which never change: [M, S] a feature.

    A look-up searches the log for every row and costs a tenth of a ranker's step; a column is 4 bytes a row and slot.
    """

    def __init__(self, sampler: Sampler, features: Sequence[Feature]) -> None:
        names = [f.name for f in features if f.kind == "statistic" and f.side in ("item", "pair")]
        shape = (len(sampler.rows_M), sampler.num_slots)
        device = sampler.rows_M.device
        self.columns = {name: torch.zeros(shape, device=device) for name in names}
        for sample_B in torch.arange(shape[0] if names else 0, device=device).split(ROWS_PER_CALL):
            batch = sampler.rows(sample_B)
            inputs = sampler.dataset.inputs(names, batch.requests, batch.item_R, batch.row_R, part=batch.requests.part)
            for name in names:
                self.columns[name][batch.sample_R, batch.slot_R] = inputs.item[name]

    def of(self, batch: Batch) -> dict[str, Tensor]:
        """The columns of a batch's rows, [R] each."""
        return {name: column_MS[batch.sample_R, batch.slot_R] for name, column_MS in self.columns.items()}

"""Statistics of a stage's training rows, looked up once (floor 6). M training rows, S slots, R rows of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from cascade_kd.data import Dataset
from cascade_kd.train.samples import Batch, Sampler
from cascade_kd.train.stream import is_logged
from cascade_kd.types import Feature

ROWS_PER_CALL = 1 << 15


def statistics_of(dataset: Dataset, names: Sequence[str], batch: Batch, rows: slice) -> dict[str, Tensor]:
    """The item and pair statistics ``names`` of some rows of a batch, looked up, [R] each."""
    if not names or not len(batch.row_R[rows]):
        return {}
    inputs = dataset.inputs(names, batch.requests, batch.item_R[rows], batch.row_R[rows], part=batch.requests.part)
    return {name: inputs.item[name] for name in names}


def request_statistics(features: Sequence[Feature]) -> list[str]:
    """The statistics of the user and context side."""
    return [f.name for f in features if f.kind == "statistic" and f.side in ("user", "context")]


@final
class StatisticColumns:
    """The item and pair statistics of all training rows and the sampler's negatives, which never change: [M, S] each.

    A look-up searches the log for every row and costs a tenth of a ranker's step; a column is 4 bytes a row and slot.
    Logged events have theirs in the data set where it was prepared with them. Negatives that are drawn anew, and hard
    ones, whose slots follow the sampler's, are looked up step by step.
    """

    def __init__(self, sampler: Sampler, features: Sequence[Feature]) -> None:
        self.dataset, self.num_slots = sampler.dataset, 1 if sampler.anew else sampler.num_slots
        names = [f.name for f in features if f.kind == "statistic" and f.side in ("item", "pair")]
        shape = (len(sampler.rows_M), self.num_slots)
        device = sampler.rows_M.device
        self.columns = {name: torch.zeros(shape, device=device) for name in names}
        prepared = self.dataset.events.statistics
        self.of_user = [name for name in request_statistics(features) if name in prepared]
        missing = [name for name in names if name not in prepared]
        for name in set(names) - set(missing):
            self.columns[name][:, 0] = prepared[name][sampler.rows_M]
        if not missing and (not names or self.num_slots == 1):
            return
        for sample_B in torch.arange(shape[0], device=device).split(ROWS_PER_CALL):
            batch = sampler.rows(sample_B)
            logged, drawn = slice(0, len(sample_B)), slice(len(sample_B), None)
            for wanted, rows in ((missing, logged), (names if self.num_slots > 1 else [], drawn)):
                for name, column_R in statistics_of(self.dataset, wanted, batch, rows).items():
                    self.columns[name][batch.sample_R[rows], batch.slot_R[rows]] = column_R

    def of_requests(self, batch: Batch) -> dict[str, Tensor]:
        """The user and context statistics of a batch's logged events, [B] each."""
        event_B = batch.event_R[: len(batch.requests)]
        return {name: self.dataset.events.statistics[name].index_select(0, event_B) for name in self.of_user}

    def of(self, batch: Batch) -> dict[str, Tensor]:
        """The columns of a batch's rows, [R] each."""
        if len(batch.slot_R) == 0 or int(batch.slot_R[-1]) < self.num_slots:
            return {name: column_MS[batch.sample_R, batch.slot_R] for name, column_MS in self.columns.items()}
        kept = int((batch.slot_R < self.num_slots).sum())  # what was drawn for the step comes last
        sample_R, slot_R = batch.sample_R[:kept], batch.slot_R[:kept]
        looked_up = statistics_of(self.dataset, list(self.columns), batch, slice(kept, None))
        return {
            name: torch.cat([column_MS[sample_R, slot_R], looked_up[name]]) for name, column_MS in self.columns.items()
        }


@final
class StreamColumns:
    """The same of a stream: a logged event brings its own columns along, a drawn row's are looked up step by step."""

    def __init__(self, dataset: Dataset, features: Sequence[Feature]) -> None:
        self.dataset = dataset
        logged = [f for f in features if is_logged(f) and f.side in ("item", "pair")]
        self.of_user = request_statistics(features)
        self.statistics = [f.name for f in logged if f.kind == "statistic"]
        self.stored = [f.name for f in logged if f.kind != "statistic"]

    def of_requests(self, batch: Batch) -> dict[str, Tensor]:
        """The user and context statistics of a batch's logged events, [B] each."""
        return {name: batch.logged[name] for name in self.of_user}

    def of(self, batch: Batch) -> dict[str, Tensor]:
        """The item and pair columns of a batch's rows, [R] each; what is stored of a pair is 0 for a drawn row."""
        size, rows = len(batch.requests), len(batch.row_R)
        columns = {name: batch.logged[name] for name in (*self.statistics, *self.stored)}
        if rows == size:
            return columns
        drawn = statistics_of(self.dataset, self.statistics, batch, slice(size, None))
        drawn |= {name: columns[name].new_zeros(rows - size) for name in self.stored}
        return {name: torch.cat([column_B, drawn[name]]) for name, column_B in columns.items()}

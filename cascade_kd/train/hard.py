"""Hard negatives: what the model as it is scores best of a random pool (floor 6).

P positives, C candidates of a pool, K negatives of a positive, R rows (request, item), B impressions, I items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from cascade_kd.data import Dataset
from cascade_kd.models import Model
from cascade_kd.stages.scoring import ROWS_PER_CALL, score_rows
from cascade_kd.streams import hashed, seed_at
from cascade_kd.train.samples import Batch
from cascade_kd.train.settings import SampleSource
from cascade_kd.types import Feature


@final
@dataclass(frozen=True)
class HardNegatives:
    """The ``per_positive`` best scored of ``pool`` uniform candidates of every positive, drawn anew every step.

    Candidates are hashed from (stream, step, event), and the model scores them as it stands before the step, without
    gradient and in evaluation mode: a batch is a function of the weights and the step, so a resume repeats it. Costs
    ``pool`` forward passes a positive and step. Items that the user has in training and repeated ones are left out.

    ``log_q_R`` is an approximation, as the exact probability takes every item's score: a hard negative counts as a
    uniform draw from the best ``per_positive / pool`` of the catalogue, q = pool / (per_positive I), at most 1.
    Source: Zhang et al., "Optimizing top-n collaborative filtering via dynamic negative item sampling", SIGIR 2013.
    Differs: the best K of one pool instead of the best one of each.
    """

    source: SampleSource
    model: Model
    features: Sequence[Feature]
    dataset: Dataset
    stream_seed: int
    first_slot: int  # behind those of the sampler's own negatives

    def added_to(self, batch: Batch, step: int) -> Batch:
        """The batch with its hard negatives behind the other rows."""
        positive_P = (batch.label_R[: len(batch.requests)] > 0).nonzero().squeeze(1)
        if len(positive_P) == 0:
            return batch
        item_PC = self.pool(batch.requests.user_B[positive_P], batch.event_R[positive_P], step)
        score_PC = self._scores(batch, positive_P, item_PC)
        best_PK = score_PC.argsort(dim=1, descending=True, stable=True)[:, : self.source.per_positive]
        item_KP = item_PC.gather(1, best_PK).T
        slot_N, place_N = item_KP.nonzero(as_tuple=True)
        row_N = positive_P[place_N]
        size, device = len(row_N), row_N.device
        return replace(
            batch,
            item_R=torch.cat([batch.item_R, item_KP[slot_N, place_N]]),
            row_R=torch.cat([batch.row_R, row_N]),
            label_R=torch.cat([batch.label_R, torch.zeros(size, device=device)]),
            event_R=torch.cat([batch.event_R, torch.full_like(row_N, -1)]),
            sample_R=torch.cat([batch.sample_R, batch.sample_R[row_N]]),
            slot_R=torch.cat([batch.slot_R, slot_N + self.first_slot]),
            weight_R=torch.cat([batch.weight_R, torch.full((size,), self.source.weight, device=device)]),
            log_q_R=torch.cat([batch.log_q_R, torch.full((size,), self.log_q, device=device)]),
        )

    @property
    def log_q(self) -> float:
        """log min(1, pool / (per_positive I))."""
        assert self.source.pool is not None, "settings fill it in"
        return min(0.0, math.log(self.source.pool / (self.source.per_positive * self.dataset.num_items)))

    def pool(self, user_P: Tensor, event_P: Tensor, step: int) -> Tensor:
        """[P, C] distinct items that the user has not in training, 0 in the other places."""
        assert self.source.pool is not None, "settings fill it in"
        place_C = torch.arange(self.source.pool, device=event_P.device)
        draw_PC = hashed(seed_at(self.stream_seed, step), event_P.unsqueeze(1) * self.source.pool + place_C)
        item_PC, _ = (draw_PC % self.dataset.num_items + 1).sort(dim=1)
        left_out_PC = self.dataset.is_seen(user_P, item_PC, part="train")
        left_out_PC[:, 1:] |= item_PC[:, 1:] == item_PC[:, :-1]
        return item_PC.masked_fill(left_out_PC, 0)

    def _scores(self, batch: Batch, positive_P: Tensor, item_PC: Tensor) -> Tensor:
        """[P, C] logits, -inf where there is no candidate; a bounded number of rows at a time."""
        score_PC = torch.full(item_PC.shape, -torch.inf, device=item_PC.device)
        step = max(1, ROWS_PER_CALL // item_PC.shape[1])
        for start in range(0, len(positive_P), step):
            part_PC = item_PC[start : start + step]
            row_R, place_R = part_PC.nonzero(as_tuple=True)
            score_PC[start + row_R, place_R] = score_rows(
                self.model,
                self.dataset,
                self.features,
                batch.requests[positive_P[start : start + step]],
                part_PC[row_R, place_R],
                row_R,
            )
        return score_PC

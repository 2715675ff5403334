"""What a stage trains on: batches as a function of the step alone (floor 6).

B impressions of a batch, R rows (request, item) with the sampled negatives behind the impressions, M training rows,
S slots of a training row (0 the impression, then its negatives), P positives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from cascade_kd.data import Dataset
from cascade_kd.streams import generator_at, hashed, stream
from cascade_kd.train.settings import SampleSource
from cascade_kd.types import Candidates, Requests

POSITIVES_PER_CALL = 1 << 16


@dataclass(frozen=True)
class Batch:
    """Rows 0..B-1 are impressions (row b belongs to request b); the rest are sampled negatives of the same requests.

    ``sample_R`` and ``slot_R`` name a row within the stage's training rows for good: where a teacher's cached score
    is found. ``event_R`` is the event of an impression and -1 for a sampled row, ``weight_R`` the weight of its source.
    """

    requests: Requests
    item_R: Tensor
    row_R: Tensor
    label_R: Tensor
    event_R: Tensor
    sample_R: Tensor
    slot_R: Tensor
    weight_R: Tensor


@final
class Sampler:
    """Shuffles the training rows anew each epoch and adds sampled negatives to the positives.

    ``rows_M`` are event row numbers. A positive's negatives are drawn once, by hashing its event and the slot: they
    are the same in every epoch, so that a teacher's scores of them can be kept. A draw that the user has in training
    is left out. The same step gives the same batch whatever ran before.
    """

    def __init__(
        self,
        dataset: Dataset,
        rows_M: Tensor,
        label: str,
        *,
        batch_size: int,
        seed: int,
        sources: Sequence[SampleSource] = (),
        lists: Candidates | None = None,
    ) -> None:
        self.dataset = dataset
        self.rows_M = rows_M
        self.label_N = dataset.events.labels[label]
        self.batch_size = batch_size
        self.sources = [source for source in sources if source.source != "impressions"]
        shown = [source.weight for source in sources if source.source == "impressions"] or [1.0]
        weights = shown + [source.weight for source in self.sources for _ in range(source.per_positive)]
        self.num_slots = len(weights)
        self.weight_S = torch.tensor(weights, device=rows_M.device)
        self.lists = lists
        self._order_seed = stream(seed, "order")
        self._negative_seed = stream(seed, "negatives")
        self._order: tuple[int, Tensor] = (-1, rows_M)
        self.item_MS = self._draw()

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch; the last may be short."""
        return -(-len(self.rows_M) // self.batch_size)

    def batch(self, step: int) -> Batch:
        """The batch of a 0-based step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            order_M = torch.randperm(len(self.rows_M), generator=generator_at(self._order_seed, epoch))
            self._order = (epoch, order_M.to(self.rows_M.device))
        sample_B = self._order[1][place * self.batch_size : (place + 1) * self.batch_size]
        # The order inside a batch does not matter to the loss; ascending events make the look-ups local.
        return self.rows(sample_B.sort().values)

    def rows(self, sample_B: Tensor) -> Batch:
        """The training rows numbered ``sample_B`` with their negatives."""
        event_B = self.rows_M[sample_B]
        item_SB = self.item_MS[sample_B].T
        slot_R, row_R = item_SB.nonzero(as_tuple=True)  # slot 0, the impressions, comes first
        sampled_R = slot_R > 0
        return Batch(
            self.dataset.requests_of(event_B, part="train"),
            item_SB[slot_R, row_R],
            row_R,
            self.label_N[event_B][row_R].masked_fill(sampled_R, 0.0),
            event_B[row_R].masked_fill(sampled_R, -1),
            sample_B[row_R],
            slot_R,
            self.weight_S[slot_R],
        )

    def _draw(self) -> Tensor:
        """[M, S] the item of every row and slot, 0 where there is none."""
        events = self.dataset.events
        item_MS = torch.zeros(len(self.rows_M), self.num_slots, dtype=torch.int64, device=self.rows_M.device)
        item_MS[:, 0] = events.item_N[self.rows_M]
        positive_P = self.label_N[self.rows_M].nonzero().squeeze(1)
        for part_P in positive_P.split(POSITIVES_PER_CALL) if self.sources else ():
            event_P = self.rows_M[part_P]
            item_MS[part_P, 1:] = self._negatives(events.user_N[event_P], event_P)
        return item_MS

    def _negatives(self, user_P: Tensor, event_P: Tensor) -> Tensor:
        """[P, S - 1] the sampled negatives of positives, 0 where the draw is left out."""
        slot_S = torch.arange(1, self.num_slots, device=event_P.device)
        draw_PS = hashed(self._negative_seed, event_P.unsqueeze(1) * self.num_slots + slot_S)
        user_P1 = user_P.unsqueeze(1)
        items: list[Tensor] = []
        start = 0
        for source in self.sources:
            draw = draw_PS[:, start : start + source.per_positive]
            start += source.per_positive
            if source.source == "uniform":
                items.append(draw % self.dataset.num_items + 1)
            else:
                assert self.lists is not None, "config gives such a stage its lists"
                length_P1 = self.lists.valid_BK.sum(1)[user_P1].clamp(min=1)
                items.append(self.lists.item_BK[user_P1, draw % length_P1])
        item_PS = torch.cat(items, dim=1)
        return item_PS.masked_fill(self.dataset.is_seen(user_P, item_PS, part="valid"), 0)

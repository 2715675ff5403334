"""What a stage trains on: batches as a function of the step alone (floor 6).

B impressions of a batch, R rows (request, item) with the sampled negatives behind the impressions, M training rows,
K places of an upstream list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from cascade_kd.data import Dataset
from cascade_kd.streams import generator_at, stream
from cascade_kd.train.settings import SampleSource
from cascade_kd.types import Candidates, Requests


@dataclass(frozen=True)
class Batch:
    """Rows 0..B-1 are impressions (row b belongs to request b); the rest are sampled negatives of the same requests.

    ``sample_B`` numbers the impressions within the stage's training rows: where a teacher's cached scores are found.
    ``event_R`` is the event of an impression and -1 for a sampled row.
    """

    requests: Requests
    sample_B: Tensor
    item_R: Tensor
    row_R: Tensor
    label_R: Tensor
    event_R: Tensor


@final
class Sampler:
    """Shuffles the training rows anew each epoch and adds sampled negatives to the positives.

    ``rows_M`` are event row numbers. A sampled negative that the user has in training is left out of the batch.
    All draws come from streams of ``seed``; the same step gives the same batch whatever ran before.
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
        self.lists = lists
        self._order_seed = stream(seed, "order")
        self._negative_seed = stream(seed, "negatives")
        self._order: tuple[int, Tensor] = (-1, rows_M)

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
        event_B = self.rows_M[sample_B]
        requests = self.dataset.requests_of(event_B, part="train")
        item_B = self.dataset.events.item_N[event_B]
        label_B = self.label_N[event_B]
        row_B = torch.arange(len(event_B), device=event_B.device)
        if not self.sources:
            return Batch(requests, sample_B, item_B, row_B, label_B, event_B)
        row_S, item_S = self._negatives(requests.user_B, label_B.nonzero().squeeze(1), step)
        return Batch(
            requests,
            sample_B,
            torch.cat([item_B, item_S]),
            torch.cat([row_B, row_S]),
            torch.cat([label_B, torch.zeros_like(row_S, dtype=label_B.dtype)]),
            torch.cat([event_B, torch.full_like(row_S, -1)]),
        )

    def _negatives(self, user_B: Tensor, positive_P: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Request and item of every sampled negative [S], from all sources."""
        generator = generator_at(self._negative_seed, step)
        rows: list[Tensor] = []
        items: list[Tensor] = []
        for source in self.sources:
            row_S = positive_P.repeat_interleave(source.per_positive)
            user_S = user_B[row_S]
            # Whole numbers of 31 bits, folded to the range: the fold's bias is below I / 2^31.
            draw_S = torch.randint(1 << 31, (len(row_S),), generator=generator).to(row_S.device)
            if source.source == "uniform":
                item_S = draw_S % self.dataset.num_items + 1
            else:
                assert self.lists is not None, "samples from upstream need the upstream stage's lists"
                length_S = self.lists.valid_BK.sum(1)[user_S]
                item_S = self.lists.item_BK[user_S, draw_S % length_S.clamp(min=1)]
            rows.append(row_S)
            items.append(item_S)
        row_S, item_S = torch.cat(rows), torch.cat(items)
        seen_S = self.dataset.is_seen(user_B[row_S], item_S.unsqueeze(1), part="valid").squeeze(1)
        fresh_S = ~seen_S & (item_S > 0)
        return row_S[fresh_S], item_S[fresh_S]

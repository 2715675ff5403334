"""Batches of users' histories: stretches that a causal model reads in one pass, with the events in them (floor 6).

M training rows, U users with a training row, W stretches of an epoch, B stretches of a batch, L places of a stretch,
P training rows of a batch.

A row's *place* is the number of entries of its user's history strictly before its moment: the history that the row
sees ends with entry number ``place``, the first being 1, and is empty for place 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from cascade_kd.models import Stretches
from cascade_kd.streams import generator_at, stream
from cascade_kd.train.distributed import share_of
from cascade_kd.train.samples import Batch, Sampler
from cascade_kd.types import Feature


@dataclass(frozen=True)
class Cut:
    """How one epoch cuts the rows, which are sorted by user and time: stretch w has ``num_W`` of them from ``first_W``.

    ``order_W`` is the order in which the stretches are trained on.
    """

    epoch: int
    first_W: Tensor
    num_W: Tensor
    order_W: Tensor


@final
class SequenceSampler:
    """The rows of a ``Sampler``, ``batch_size`` stretches of a history at a time instead of row by row.

    A stretch is L consecutive entries of a user's history, L being the history's length, and the rows that it answers
    for; every row is in one stretch an epoch. A user whose rows span n places has ceil(n / L) stretches: uncut where
    that is 1, else cut at an offset that each epoch draws anew, as far as L ceil(n / L) - n lets it. A stretch begins
    with earlier entries where there is room, so that its first rows see some history too.

    The same step gives the same batch whatever ran before. Source: the training sequences of Kang and McAuley, SASRec,
    ICDM 2018, section III.A. Differs: there the last L entries of a user alone are trained on.
    """

    def __init__(self, sampler: Sampler, history: Feature, *, batch_size: int, seed: int) -> None:
        self._sampler = sampler
        self._history = history
        self._order_seed = stream(seed, "stretches")
        requests = sampler.dataset.requests_of(sampler.rows_M, part="train")
        self._item_N, self._start_M, end_M = sampler.dataset.history_entries(history.name, requests)
        self._place_M = end_M - self._start_M
        _, self._user_M = torch.unique_consecutive(requests.user_B, return_inverse=True)
        num_users = int(self._user_M[-1]) + 1
        zero_U = torch.zeros(num_users, dtype=torch.int64, device=sampler.device)
        self._last_U = zero_U.scatter_reduce(0, self._user_M, self._place_M, "amax")
        first_U = zero_U.scatter_reduce(0, self._user_M, self._place_M.clamp(min=1), "amin", include_self=False)
        span_U = self._last_U - first_U + 1
        self._stretches_U = (-(-span_U // history.length)).clamp(min=1)
        self._slack_U = self._stretches_U * history.length - span_U
        self.steps_per_epoch = -(-int(self._stretches_U.sum()) // batch_size)
        self._cut = self._cut_at(0)

    @property
    def batch_size(self) -> int:
        """Rows of a step, on average."""
        return -(-len(self._place_M) // self.steps_per_epoch)

    def batch(self, step: int) -> Batch:
        """The batch of a 0-based step, or of several ranks this one's share of it."""
        epoch, number = divmod(step, self.steps_per_epoch)
        if self._cut.epoch != epoch:
            self._cut = self._cut_at(epoch)
        cut, steps = self._cut, self.steps_per_epoch
        # Stretches that happen to hold no row are left out of an epoch, so it is shared out evenly; never none.
        first = number * len(cut.order_W) // steps
        until = max(first + 1, (number + 1) * len(cut.order_W) // steps)
        stretch_B = share_of(cut.order_W[first:until].sort().values)
        row_P, sample_P = _expanded(cut.first_W[stretch_B], cut.num_W[stretch_B])
        batch = self._sampler.rows(sample_P, epoch)
        return replace(batch, stretches=self._stretches(row_P, sample_P, len(stretch_B)))

    def _stretches(self, row_P: Tensor, sample_P: Tensor, num: int) -> Stretches:
        """The histories of ``num`` stretches of a batch, the row ``sample_P`` being in stretch ``row_P``."""
        place_P = self._place_M[sample_P]
        last_P = torch.searchsorted(row_P, torch.arange(num, device=self._place_M.device), right=True) - 1
        end_B1, start_B1 = place_P[last_P].unsqueeze(1), self._start_M[sample_P[last_P]].unsqueeze(1)
        before_B1 = (end_B1 - self._history.length).clamp(min=0)
        place_BL = before_B1 + torch.arange(1, self._history.length + 1, device=self._place_M.device)
        item_BL = self._item_N[(start_B1 + place_BL).masked_fill(place_BL > end_B1, 0)]
        at_P = row_P * self._history.length + place_P - 1 - before_B1.squeeze(1)[row_P]
        return Stretches(self._history.name, item_BL, at_P.masked_fill(place_P == 0, -1))

    def _cut_at(self, epoch: int) -> Cut:
        generator = generator_at(self._order_seed, epoch)
        draw_U = torch.rand(len(self._slack_U), dtype=torch.float64, generator=generator).to(self._place_M.device)
        end_U = self._last_U + (draw_U * (self._slack_U + 1)).long()
        # Counted from a user's last stretch, which ends at end_U; rows without history join the user's first one.
        back_M = (end_U[self._user_M] - self._place_M) // self._history.length
        until_U = self._stretches_U.cumsum(0)
        first_U = until_U - self._stretches_U
        stretch_M = torch.maximum(until_U[self._user_M] - 1 - back_M, first_U[self._user_M])
        _, num_W = torch.unique_consecutive(stretch_M, return_counts=True)
        order_W = torch.randperm(len(num_W), generator=generator).to(self._place_M.device)
        return Cut(epoch, num_W.cumsum(0) - num_W, num_W, order_W)


def _expanded(first_B: Tensor, num_B: Tensor) -> tuple[Tensor, Tensor]:
    """The members of B ranges, one after the other: the range of each [P], and its number [P]."""
    row_P = torch.repeat_interleave(num_B)
    behind_B = num_B.cumsum(0) - num_B
    return row_P, torch.arange(len(row_P), device=row_P.device) + (first_B - behind_B)[row_P]

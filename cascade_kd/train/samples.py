"""What a stage trains on: batches as a function of the step alone (floor 6).

B impressions of a batch, R rows (request, item) with the sampled negatives behind the impressions, M training rows,
S slots of a training row (0 the impression, then its negatives), P positives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor

from cascade_kd.data import Dataset, PackedRequests
from cascade_kd.models import Stretches
from cascade_kd.streams import generator_at, stream
from cascade_kd.train.distributed import share_of
from cascade_kd.train.negatives import Negatives, SharedNegatives, make_distribution, make_negatives
from cascade_kd.train.settings import SampleSource
from cascade_kd.types import Candidates, Requests

POSITIVES_PER_CALL = 1 << 16
KEPT = ("uniform", "popularity", "upstream")  # sources whose draws are the same in every epoch


@dataclass(frozen=True)
class Batch:
    """Rows 0..B-1 are impressions (row b belongs to request b); the rest are sampled negatives of the same requests.

    ``sample_R`` and ``slot_R`` name a row within the stage's training rows for good: where a teacher's cached score
    is found. ``event_R`` is the event of an impression and -1 for a sampled row, ``weight_R`` the weight of its source,
    ``log_q_R`` the log of the probability with which its source draws its item, 0 for an impression. ``logged`` are
    columns [B] of the impressions that a stream brings along, so that they need no look-up; ``stretches`` hold the
    requests' histories where the batch was made along them. The rows of a transfer set come last, without a label:
    False in ``labelled_R`` (None: all have one).
    """

    requests: Requests
    item_R: Tensor
    row_R: Tensor
    label_R: Tensor
    event_R: Tensor
    sample_R: Tensor
    slot_R: Tensor
    weight_R: Tensor
    log_q_R: Tensor
    logged: Mapping[str, Tensor] = field(default_factory=dict)
    stretches: Stretches | None = None
    labelled_R: Tensor | None = None

    @property
    def label_weight_R(self) -> Tensor:
        """The weight of every row in the label's loss."""
        return self.weight_R if self.labelled_R is None else self.weight_R * self.labelled_R

    def labelled(self) -> Batch:
        """The rows that have a label."""
        if self.labelled_R is None:
            return self
        rows = slice(int(self.labelled_R.sum()))
        kept = {name: getattr(self, name)[rows] for name in _ROW_TENSORS}
        return replace(self, labelled_R=None, **kept)


_ROW_TENSORS = ("item_R", "row_R", "label_R", "event_R", "sample_R", "slot_R", "weight_R", "log_q_R")


@final
class Sampler:
    """Shuffles the training rows anew each epoch and adds sampled negatives to the positives.

    ``rows_M`` are event row numbers. The negatives of a positive are drawn once and are the same in every epoch, unless
    ``anew``, see :mod:`cascade_kd.train.negatives`; of the sources, ``hard`` and ``in-batch`` are the loss's own
    business. ``pairs`` adds so many rows without a label to every row: items that its user has not in training, drawn
    alike. The same step gives the same batch whatever ran before.
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
        pairs: int = 0,
        anew: bool = False,
    ) -> None:
        self.dataset = dataset
        self.anew = anew
        self.rows_M = rows_M
        self.label_N = dataset.events.labels[label]
        self.batch_size = batch_size
        self.negatives = kept_negatives(dataset, sources, lists, seed)
        self.pairs = _unseen_pairs(dataset, pairs, seed)
        weight_S = slot_weights(sources)
        self.num_labelled = len(weight_S)
        self.weight_S = torch.cat([weight_S, torch.ones(pairs)]).to(rows_M.device)
        self.num_slots = len(self.weight_S)
        self._order_seed = stream(seed, "order")
        self._order: tuple[int, Tensor] = (-1, rows_M)
        self._requests = PackedRequests(dataset.requests_of(rows_M, part="train"))
        self.item_MS = self._draw()

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch; the last may be short."""
        return -(-len(self.rows_M) // self.batch_size)

    def batch(self, step: int) -> Batch:
        """The batch of a 0-based step, or of several ranks this one's share of it."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            order_M = torch.randperm(len(self.rows_M), generator=generator_at(self._order_seed, epoch))
            self._order = (epoch, order_M.to(self.rows_M.device))
        sample_B = self._order[1][place * self.batch_size : (place + 1) * self.batch_size]
        # The order inside a batch does not matter to the loss; ascending events make the look-ups local.
        return self.rows(share_of(sample_B.sort().values), epoch)

    def rows(self, sample_B: Tensor, epoch: int = 0) -> Batch:
        """The training rows numbered ``sample_B`` with their negatives, those of the epoch if they are drawn anew."""
        event_B = self.rows_M.index_select(0, sample_B)
        item_BS = self.item_MS.index_select(0, sample_B)
        if self.anew and epoch:
            positive_P = self.label_N.index_select(0, event_B).nonzero().squeeze(1)
            user_P, event_P = self.dataset.events.user_N[event_B[positive_P]], event_B[positive_P]
            item_BS[positive_P, 1 : self.num_labelled] = self.negatives.draw(user_P, event_P, epoch)
        batch = make_batch(
            self._requests[sample_B],
            item_BS,
            label_B=self.label_N.index_select(0, event_B),
            event_B=event_B,
            sample_B=sample_B,
            weight_S=self.weight_S,
            negatives=self.negatives,
        )
        if not self.pairs.num:
            return batch
        return replace(batch, labelled_R=batch.slot_R < self.num_labelled)

    @property
    def num_rows(self) -> int:
        """M."""
        return len(self.rows_M)

    @property
    def device(self) -> torch.device:
        """Where the batches are."""
        return self.rows_M.device

    def item_counts(self) -> Tensor:
        """[I + 1] training rows of every item."""
        return torch.bincount(self.item_MS[:, 0], minlength=self.dataset.num_items + 1)

    def _draw(self) -> Tensor:
        """[M, S] the item of every row and slot, 0 where there is none."""
        events = self.dataset.events
        item_MS = torch.zeros(len(self.rows_M), self.num_slots, dtype=torch.int64, device=self.rows_M.device)
        item_MS[:, 0] = events.item_N[self.rows_M]
        positive_P = self.label_N[self.rows_M].nonzero().squeeze(1)
        for part_P in positive_P.split(POSITIVES_PER_CALL) if self.num_labelled > 1 else ():
            event_P = self.rows_M[part_P]
            item_MS[part_P, 1 : self.num_labelled] = self.negatives.draw(events.user_N[event_P], event_P)
        every_M = torch.arange(len(self.rows_M), device=self.rows_M.device)
        for part_P in every_M.split(POSITIVES_PER_CALL) if self.pairs.num else ():
            event_P = self.rows_M[part_P]
            item_MS[part_P, self.num_labelled :] = self.pairs.draw(events.user_N[event_P], event_P)
        return item_MS


def make_batch(
    requests: Requests,
    item_BS: Tensor,
    *,
    label_B: Tensor,
    event_B: Tensor,
    sample_B: Tensor,
    weight_S: Tensor,
    negatives: Negatives,
    logged: Mapping[str, Tensor] | None = None,
) -> Batch:
    """The rows of B logged events, each with the items of its slots (0: none); ``logged`` columns come with them."""
    item_SB = item_BS.T
    slot_R, row_R = item_SB.nonzero(as_tuple=True)  # slot 0, the impressions, comes first
    item_R = item_SB[slot_R, row_R]
    sampled_R = slot_R > 0
    return Batch(
        requests,
        item_R,
        row_R,
        label_B.index_select(0, row_R).masked_fill(sampled_R, 0.0),
        event_B.index_select(0, row_R).masked_fill(sampled_R, -1),
        sample_B.index_select(0, row_R),
        slot_R,
        weight_S.index_select(0, slot_R),
        negatives.log_q(requests.user_B.index_select(0, row_R), item_R, slot_R),
        logged or {},
    )


def slot_weights(sources: Sequence[SampleSource]) -> Tensor:
    """[S] the weight of every slot: of the logged event, then of each negative that a sampler keeps."""
    shown = [source.weight for source in sources if source.source == "impressions"] or [1.0]
    drawn = [source.weight for source in sources if source.source in KEPT for _ in range(source.per_positive)]
    return torch.tensor(shown + drawn)


def kept_negatives(dataset: Dataset, sources: Sequence[SampleSource], lists: Candidates | None, seed: int) -> Negatives:
    """What the sources draw that draw the same in every epoch."""
    return make_negatives(
        [source for source in sources if source.source in KEPT and source.per_positive],
        stream(seed, "negatives"),
        num_items=dataset.num_items,
        is_seen=lambda user_P, item_PK: dataset.is_seen(user_P, item_PK, part="train"),
        counts_I1=dataset.training_counts,
        lists=lists,
    )


def _unseen_pairs(dataset: Dataset, num: int, seed: int) -> Negatives:
    """What adds unlabelled pairs of a row's user and an item that the user has not in training."""
    return make_negatives(
        [SampleSource(source="uniform", per_positive=num)] if num else [],
        stream(seed, "transfer pairs"),
        num_items=dataset.num_items,
        is_seen=lambda user_P, item_PK: dataset.is_seen(user_P, item_PK, part="train"),
        counts_I1=dataset.training_counts,
    )


def shared_negatives(dataset: Dataset, sources: Sequence[SampleSource], seed: int) -> SharedNegatives:
    """What the sources draw once a batch."""
    made = [
        (
            make_distribution(source, num_items=dataset.num_items, counts_I1=dataset.training_counts),
            source.per_batch,
        )
        for source in sources
        if source.per_batch
    ]
    return SharedNegatives(tuple(made), stream(seed, "shared negatives"), dataset.events.user_N.device)

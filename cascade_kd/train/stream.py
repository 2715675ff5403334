"""What a stage trains on where the log is larger than memory: batches from the training reader (floor 6).

B impressions of a batch, M training rows, S slots of a row, P positives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from cascade_kd.data import Dataset
from cascade_kd.data.stream import StreamReader
from cascade_kd.streams import stream
from cascade_kd.train.distributed import share_of
from cascade_kd.train.samples import Batch, kept_negatives, make_batch, slot_weights
from cascade_kd.train.settings import SampleSource
from cascade_kd.types import Candidates, Feature, Requests

ROWS_PER_COUNT = 1 << 22


@final
class StreamSampler:
    """The rows, negatives and weights of :class:`~cascade_kd.train.samples.Sampler`, of a data set of layout "stream".

    A row's number (``sample_R``) is its place in stream order, which is by time. Epochs shuffle within windows of the
    stream. Negatives are drawn batch by batch: nothing of the length of the log is held.
    """

    def __init__(
        self,
        dataset: Dataset,
        label: str,
        *,
        batch_size: int,
        seed: int,
        positives: bool,
        sources: Sequence[SampleSource] = (),
        lists: Candidates | None = None,
        anew: bool = False,
    ) -> None:
        """``positives``: only the events whose label is true."""
        assert dataset.stream is not None, "a data set of layout 'stream'"
        self.dataset = dataset
        self.device = dataset.events.user_N.device
        self.batch_size = batch_size
        self.anew = anew
        self.negatives = kept_negatives(dataset, sources, lists, seed)
        self.weight_S = slot_weights(sources).to(self.device)
        self.num_slots = len(self.weight_S)
        self._label = f"label:{label}"
        self._positives = positives
        self._context = [f for f in dataset.features if f.side == "context" and f.kind != "statistic"]
        self._logged = {column_of(f): f for f in dataset.features if is_logged(f)}
        columns = ["row", "user", "item", "time", self._label, *(column_of(f) for f in self._context)]
        self._reader = StreamReader(
            dataset.stream / "part=train",
            [*columns, *self._logged],
            batch_size=batch_size,
            seed=stream(seed, "order"),
            where=self._label if positives else None,
        )

    @property
    def num_rows(self) -> int:
        """M."""
        return self._reader.num_rows

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch; the last may be short."""
        return self._reader.steps_per_epoch

    def batch(self, step: int) -> Batch:
        """The batch of a 0-based step, or of several ranks this one's share of it."""
        columns = self._reader.batch(step)
        # The order inside a batch does not matter to the loss; ascending events make the look-ups local.
        order_B = share_of(columns["row"].argsort())
        epoch = step // self.steps_per_epoch if self.anew else 0
        return self._batch({name: x.index_select(0, order_B) for name, x in columns.items()}, epoch)

    def rows(self, sample_B: Tensor) -> Batch:
        """The training rows numbered ``sample_B``, consecutive numbers, with their negatives."""
        first, last = int(sample_B[0]), int(sample_B[-1])
        assert last - first + 1 == len(sample_B), "a stream is read in stretches"
        return self._batch(self._reader.rows(first, last + 1), 0)

    def item_counts(self) -> Tensor:
        """[I + 1] training rows of every item."""
        events, size = self.dataset.events, self.dataset.num_items + 1
        count_I1 = torch.zeros(size, dtype=torch.int64, device=self.device)
        label_N = events.labels[self._label.removeprefix("label:")]
        for start in range(0, len(events.part_N), ROWS_PER_COUNT):
            part = slice(start, start + ROWS_PER_COUNT)
            taken = events.part_N[part] == 0
            if self._positives:
                taken &= label_N[part] > 0
            count_I1 += torch.bincount(events.item_N[part][taken].long(), minlength=size)
        return count_I1

    def _batch(self, columns: dict[str, Tensor], epoch: int) -> Batch:
        columns = {name: x.to(self.device) for name, x in columns.items()}
        event_B, user_B, item_B = (columns[name].long() for name in ("row", "user", "item"))
        label_B = columns[self._label].float()
        item_BS = torch.zeros(len(item_B), self.num_slots, dtype=torch.int64, device=self.device)
        item_BS[:, 0] = item_B
        if self.num_slots > 1:
            positive_P = label_B.nonzero().squeeze(1)
            item_BS[positive_P, 1:] = self.negatives.draw(user_B[positive_P], event_B[positive_P], epoch)
        context = {f.name: _as_input(columns[column_of(f)], f) for f in self._context}
        return make_batch(
            Requests(user_B, columns["time"].long(), context, part="train"),
            item_BS,
            label_B=label_B,
            event_B=event_B,
            sample_B=columns["sample"],
            weight_S=self.weight_S,
            negatives=self.negatives,
            logged={f.name: _as_input(columns[name], f) for name, f in self._logged.items()},
        )


def is_logged(feature: Feature) -> bool:
    """Whether a stream brings the feature of every logged event along: statistics and what is stored of pairs."""
    return feature.side == "pair" or feature.kind == "statistic"


def column_of(feature: Feature) -> str:
    """The stream's column of a feature of the context, or of one that :func:`is_logged`."""
    return f"{'statistic' if feature.kind == 'statistic' else 'feature'}:{feature.name}"


def _as_input(column: Tensor, feature: Feature) -> Tensor:
    """Codes int64, numbers float32, whatever the files hold."""
    return column.float() if feature.is_number else column.long()

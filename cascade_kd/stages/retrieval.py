"""Recall: a two-tower model behind an index over the whole catalogue (floor 4).

B requests, I items, D vector width, K candidates, M events, Q queries that measure an index.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from cascade_kd.data import Dataset
from cascade_kd.models import TowerModel
from cascade_kd.models.modes import evaluating
from cascade_kd.retrieval import BuiltIndex, IndexConfig, Retriever, build_index, search_excluding
from cascade_kd.stages.interface import require_online
from cascade_kd.stages.scoring import order_by_logits, score_rows
from cascade_kd.types import Candidates, Feature, Level, Part, Requests

ITEMS_PER_CALL = 1 << 16


@final
@dataclass(frozen=True)
class RetrievalStage:
    """Searches the index of item vectors for every user vector; leaves out what the user has already if asked.

    The index is built at the first search of each part and kept: item features that change with time are taken as
    of the end of that part's log. If ``measured``, every build is measured on users of validation events and refused
    below the recall that ``index`` asks for (UserError).
    """

    name: str
    level: Level
    keep: int
    features: tuple[Feature, ...]
    model: TowerModel
    dataset: Dataset
    index: IndexConfig = field(default_factory=IndexConfig)
    mask_seen: bool = True
    measured: bool = True
    signals: frozenset[str] = frozenset({"ranking", "logits", "hidden", "embedding"})
    _indices: dict[Part, BuiltIndex] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_online(self.name, self.level, self.features)

    def order(self, requests: Requests, candidates: Candidates | None = None) -> Candidates:
        """The best ``keep`` items of the catalogue by inner product; given candidates, those under its logits.

        The second is what a teacher is asked: to order what its student received.
        """
        if candidates is not None:
            return order_by_logits(self, requests, candidates)
        query_BD = self.user_vectors(requests)
        retriever = self.retriever(requests.part)
        if self.mask_seen:
            offsets_B1, items = self.dataset.seen(requests.user_B, part=requests.part)
        else:
            offsets_B1 = torch.zeros(len(requests) + 1, dtype=torch.int64, device=query_BD.device)
            items = offsets_B1[:0]
        # Row r of the index is item code r + 1.
        found = search_excluding(retriever, query_BD, self.keep, offsets_B1, items - 1)
        return Candidates.ranked(found.row_BK + 1, found.score_BK, found.valid_BK)

    def __call__(self, requests: Requests, candidates: Candidates | None = None) -> Candidates:
        """The first ``keep`` of :meth:`order`."""
        return self.order(requests, candidates).top(self.keep)

    def logits(self, requests: Requests, item_R: Tensor, row_R: Tensor, event_R: Tensor | None = None) -> Tensor:
        """Logits [R] of the rows (request, item), without the index."""
        return score_rows(self.model, self.dataset, self.features, requests, item_R, row_R, event_R)

    @property
    def names(self) -> list[str]:
        """The names of the features it reads."""
        return [feature.name for feature in self.features]

    def retriever(self, part: Part = "test") -> Retriever:
        """The index over item codes 1..I in order, built on first use."""
        return self.built(part).retriever

    def built(self, part: Part = "test") -> BuiltIndex:
        """The same with what was measured of it."""
        if part not in self._indices:
            queries_QD = self._held_queries() if self.measured else None
            self._indices[part] = build_index(self.index, self.item_vectors(part), queries_QD, self.keep)
        return self._indices[part]

    def _held_queries(self) -> Tensor:
        """[Q, D] the users of validation events, evenly spaced in the log; of training events where there are none."""
        part: Part = "valid" if len(self.dataset.rows("valid")) else "train"
        rows_M = self.dataset.rows(part)
        queries = min(self.index.num_queries, len(rows_M))
        places_Q = torch.arange(queries, device=rows_M.device) * len(rows_M) // max(1, queries)
        return self.user_vectors(self.dataset.requests_of(rows_M[places_Q], part=part))

    def user_vectors(self, requests: Requests) -> Tensor:
        """[B, D] float32."""
        with evaluating(self.model):
            inputs = self.dataset.user_inputs(self.names, requests, part=requests.part)
            return self.model.user_vectors(inputs).float()

    def item_vectors(self, part: Part = "test") -> Tensor:
        """[I, D] float32, item code i in row i - 1."""
        codes = self.dataset.item_codes()
        time = self.dataset.log_end(part)
        vectors: list[Tensor] = []
        with evaluating(self.model):
            for item_R in codes.split(ITEMS_PER_CALL):
                columns = self.dataset.item_inputs(
                    self.names, item_R, time_R=time.expand_as(item_R), user_R=torch.zeros_like(item_R), part=part
                )
                vectors.append(self.model.item_vectors(columns).float())
        return torch.cat(vectors)

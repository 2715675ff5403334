"""How near an index comes to exact search. Axes: Q queries, K places, I items, D embedding, c queries of a chunk."""

from __future__ import annotations

import torch
from torch import Tensor

from cascade_kd.retrieval.exact import ExactRetriever
from cascade_kd.retrieval.retriever import Retriever

PLACES_AT_ONCE = 1 << 17  # found items whose vectors are gathered at once: 64 MiB at width 64 in float64
TOLERANCE = 1e-6  # of |query| |item|: what float32 sums of products may differ by


class Truth:
    """What exact search finds for held queries: the number of rows and the k-th best score of each.

    Raises ValueError for no query or no vector.
    """

    def __init__(self, vectors_ID: Tensor, query_QD: Tensor, k: int) -> None:
        if min(len(vectors_ID), len(query_QD)) == 0:
            raise ValueError("the recall of an index needs at least one query and one vector")
        self.vectors_ID = vectors_ID.detach()
        self.query_QD = query_QD.detach().to(vectors_ID.device)
        self.k = k
        self.count = min(k, len(vectors_ID))
        exact = ExactRetriever()
        exact.build(self.vectors_ID)
        _, row_QK = exact.search(self.query_QD, self.count)
        score_Q1, _ = self._scores(row_QK[:, -1:])
        self.cut_Q = score_Q1[:, 0]

    def recall(self, retriever: Retriever, *, depth: int = 0) -> Tensor:
        """[Q] recall@k: of the k best that there are, the share that the index finds.

        An item counts if its exact score reaches the k-th best, so that of equal scores at the cut any may be found.
        The share is of the number of vectors where that is less than k.
        """
        _, row_QK = retriever.search(self.query_QD, self.k, depth=depth)
        score_QK, tolerance_QK = self._scores(row_QK)
        sorted_QK, order_QK = row_QK.sort(dim=1)
        again_QK = torch.zeros_like(row_QK, dtype=torch.bool)
        again_QK[:, 1:] = sorted_QK[:, 1:] == sorted_QK[:, :-1]
        repeated_QK = torch.zeros_like(again_QK).scatter_(1, order_QK, again_QK)
        good_QK = (row_QK >= 0) & ~repeated_QK & (score_QK >= self.cut_Q[:, None] - tolerance_QK)
        return good_QK.sum(dim=1).double() / self.count

    def _scores(self, row_QK: Tensor) -> tuple[Tensor, Tensor]:
        """Exact scores of rows in float64 and the differences that are none, both [Q, K]."""
        scores, tolerances = [], []
        step = max(1, PLACES_AT_ONCE // max(1, row_QK.shape[1]))
        for start in range(0, len(row_QK), step):
            query_cD = self.query_QD[start : start + step].double()
            vectors_cKD = self.vectors_ID[row_QK[start : start + step].clamp(min=0)].double()
            scores.append((vectors_cKD @ query_cD.unsqueeze(2)).squeeze(2))
            tolerances.append(TOLERANCE * query_cD.norm(dim=1, keepdim=True) * vectors_cKD.norm(dim=2))
        return torch.cat(scores), torch.cat(tolerances)

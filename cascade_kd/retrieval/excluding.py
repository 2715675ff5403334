"""Search that leaves out each user's own items.

Axes: B queries, K places, D embedding, E excluded rows of all queries; b queries of a batch, F places fetched.
"""

from __future__ import annotations

import bisect
from typing import NamedTuple

import torch
from torch import Tensor

from cascade_kd.masked import is_member
from cascade_kd.retrieval.retriever import Retriever

MAX_QUERIES = 512  # of a batch
MAX_PLACES = 4_000_000  # fetched for a batch: about 200 MB with its masks and keys


class Found(NamedTuple):
    """Lists of rows of the indexed vectors, best first; a padded place has valid false, row -1, score -inf."""

    row_BK: Tensor
    score_BK: Tensor
    valid_BK: Tensor


def search_excluding(retriever: Retriever, query_BD: Tensor, k: int, offsets_B1: Tensor, excluded_E: Tensor) -> Found:
    """The k best rows of every query without those it excludes, ``excluded_E[offsets_B1[b]:offsets_B1[b + 1]]``.

    Excluded rows are rows of the index and ascend within a query. Exact if the index is: then torch searches, which
    masks the excluded rows' scores. Of another index, a batch fetches k plus the largest number that one of its queries
    excludes. Queries are batched by that number, so that one heavy user does not widen the searches of others, and
    memory is bounded by ``MAX_PLACES``. Queries for which it finds too few are searched again, deeper each time: a list
    is shorter than k only if fewer rows remain.
    """
    if len(offsets_B1) != len(query_BD) + 1:
        raise ValueError(f"{len(query_BD)} queries need {len(query_BD) + 1} offsets, got {len(offsets_B1)}")
    if retriever.exact is not None:
        score_BK, row_BK = retriever.exact.search_without(query_BD, k, offsets_B1, excluded_E)
        return Found(row_BK, score_BK, row_BK >= 0)
    row_BK = torch.full((len(query_BD), k), -1, dtype=torch.int64, device=query_BD.device)
    score_BK = torch.full((len(query_BD), k), -torch.inf, device=query_BD.device)
    count_B = offsets_B1.diff()
    order_B = count_B.argsort(descending=True, stable=True)
    widths = (count_B[order_B] + k).tolist()
    start = 0
    while start < len(query_BD):
        # A query joins a batch that fetches at most twice what the query needs.
        near = bisect.bisect_right(widths, -widths[start] / 2, key=lambda width: -width) - start
        size = min(near, MAX_QUERIES, max(1, MAX_PLACES // widths[start]))
        batch_b = order_B[start : start + size]
        remaining_b = (retriever.num_vectors - count_B[batch_b]).clamp(max=k)
        for depth in range(retriever.deepest + 1):
            score_bF, found_bF = retriever.search(query_BD[batch_b], widths[start], depth=depth)
            excluded_bF = is_member(found_bF, *_rows_of(batch_b, offsets_B1, excluded_E))
            row_BK[batch_b], score_BK[batch_b] = _first(found_bF, score_bF, (found_bF >= 0) & ~excluded_bF, k)
            short_b = (row_BK[batch_b] >= 0).sum(dim=1) < remaining_b
            batch_b, remaining_b = batch_b[short_b], remaining_b[short_b]
            if len(batch_b) == 0:
                break
        start += size
    return Found(row_BK, score_BK, row_BK >= 0)


def _rows_of(batch_b: Tensor, offsets_B1: Tensor, member_E: Tensor) -> tuple[Tensor, Tensor]:
    """The ragged rows ``batch_b`` of a ragged set, as offsets and members of their own."""
    count_b = offsets_B1.diff()[batch_b]
    offsets_b1 = torch.cat([count_b.new_zeros(1), count_b.cumsum(0)])
    shift_e = (offsets_B1[batch_b] - offsets_b1[:-1]).repeat_interleave(count_b)
    return offsets_b1, member_E[torch.arange(len(shift_e), device=member_E.device) + shift_e]


def _first(row_BF: Tensor, score_BF: Tensor, keep_BF: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The first k kept places of every row, in order, padded with row -1 and score -inf."""
    place_BF = keep_BF.cumsum(dim=1) - 1
    place_BF = place_BF.masked_fill(~keep_BF, k).clamp(max=k)  # what is dropped goes to a place k that is cut off
    row_BK = torch.full((len(row_BF), k + 1), -1, dtype=torch.int64, device=row_BF.device)
    score_BK = torch.full((len(row_BF), k + 1), -torch.inf, device=row_BF.device)
    return row_BK.scatter_(1, place_BF, row_BF)[:, :k], score_BK.scatter_(1, place_BF, score_BF)[:, :k]

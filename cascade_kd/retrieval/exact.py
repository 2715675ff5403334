"""Exact search in torch: the reference, what leaves out each user's own items, and what serves without faiss.

Axes: I items, B queries, D embedding, K places, E excluded rows of all queries. A chunk has b queries; it meets the
items block by block, C at a time, in G groups of W neighbours. H groups are held.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cascade_kd.errors import UserError

QUERY_CHUNK = 512
BLOCK_SCORES = {"cpu": 1 << 20, "cuda": 1 << 26}  # of a chunk and a block: 4 MiB stay in a processor's cache
GROUP = 64  # neighbours that share one maximum
GROUP_MAXIMA = 1 << 22  # kept for a chunk: 16 MiB
RAISE_EVERY = 3  # from one raising of the bar to the next the blocks seen grow so many times
CROWD = 2  # times k groups of a block above the bar: it is raised at once


def serial(x: Tensor) -> Any:
    """A CPU tensor as a NumPy view, whose loops start no threads; a GPU tensor as it is.

    Threads of torch started between two calls of faiss wait for cores on which those of faiss still spin.
    """
    return x if x.is_cuda else x.numpy()


def check_vectors(vectors_ID: Tensor, what: str) -> None:
    """Raise UserError for vectors that are NaN or infinite, which no index can order."""
    vectors_ID = vectors_ID.detach().float()
    finite_I = torch.as_tensor((abs(serial(vectors_ID)) < math.inf).all(1))
    if not bool(finite_I.all()):
        bad = (~finite_I).nonzero().squeeze(1)
        raise UserError(
            f"{len(bad)} of {len(vectors_ID)} {what} vectors hold NaN or infinity, the first is row {int(bad[0])}; "
            "training has diverged: lower the learning rate"
        )


def order_ties(score_BK: Tensor, row_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Sort every row by score, highest first, equal scores by the smaller row number; padding (-1) comes last."""
    by_row_BK = row_BK.masked_fill(row_BK < 0, torch.iinfo(row_BK.dtype).max).argsort(dim=1, stable=True)
    by_score_BK = score_BK.gather(1, by_row_BK).argsort(dim=1, descending=True, stable=True)
    order_BK = by_row_BK.gather(1, by_score_BK)
    return score_BK.gather(1, order_BK), row_BK.gather(1, order_BK)


def group_width(num_items: int, k: int) -> int:
    """Neighbours of a group: fewer where there would be less than 4 k groups; 1 where groups do not pay."""
    width = GROUP
    while width > 1 and num_items < 4 * k * width:
        width //= 2
    return width if width >= 8 else 1


def kth_at_least(maximum_bG: Tensor, k: int) -> Tensor:
    """[b] what the maxima of k groups reach: nearly the k-th best, which takes long among many."""
    while maximum_bG.shape[1] >= 8 * k:  # of 4 k pairs or more, those with two of the k best are few
        half = maximum_bG.shape[1] // 2
        maximum_bG = torch.maximum(maximum_bG[:, :half], maximum_bG[:, half : 2 * half])
    return maximum_bG.topk(k, dim=1, sorted=False).values.amin(dim=1)


def raises(blocks: int) -> set[int]:
    """The numbers of the blocks after which the bar is raised: the last, and the others ever less often."""
    numbers, number = set[int](), blocks
    while number:
        numbers.add(number - 1)
        number //= RAISE_EVERY
    return numbers | {0}


def top_of_rows(row_N: Tensor, item_N: Tensor, score_N: Tensor, b: int, k: int) -> tuple[Tensor, Tensor]:
    """Scores and items [b, k], padded, ties in order, of candidates whose items ascend within a row."""
    row_N, order_N = row_N.sort(stable=True)
    count_b = torch.bincount(row_N, minlength=b)
    place_N = torch.arange(len(row_N), device=row_N.device) - (count_b.cumsum(0) - count_b)[row_N]
    shape = (b, max(k, int(count_b.max())))
    score_bM = torch.full(shape, -torch.inf, device=score_N.device)
    item_bM = torch.full(shape, -1, dtype=torch.int64, device=item_N.device)
    score_bM[row_N, place_N], item_bM[row_N, place_N] = score_N[order_N], item_N[order_N]
    score_bM, order_bM = score_bM.sort(dim=1, descending=True, stable=True)
    return score_bM[:, :k], item_bM.gather(1, order_bM[:, :k])


class ExactRetriever:
    """Scores by matrix products, block by block, of which only what can be among the k best is looked at again.

    The maximum of each group of neighbouring items is taken while a block is in the cache. The k-th best group maximum
    is a bar that k items reach, so a group below it holds none of the k best: the scores of the others are held, and
    sorted at the end. Equal scores, as computed, go to the smaller row number. Memory beyond the vectors: a block of
    scores, the maxima and what is held.
    """

    def __init__(self, *, item_block: int | None = None, query_chunk: int = QUERY_CHUNK) -> None:
        self.item_block = item_block
        self.query_chunk = query_chunk
        self.vectors_ID: Tensor | None = None

    def build(self, vectors_ID: Tensor) -> None:
        """Keep the vectors as float32, without a copy if they are. Raises UserError for NaN or infinity."""
        check_vectors(vectors_ID, "item")
        self.vectors_ID = vectors_ID.detach().float()

    @property
    def num_vectors(self) -> int:
        """I."""
        assert self.vectors_ID is not None, "build before search"
        return len(self.vectors_ID)

    @property
    def deepest(self) -> int:
        """0: no search leaves a vector out."""
        return 0

    @property
    def exact(self) -> ExactRetriever:
        """Itself."""
        return self

    def search(self, query_BD: Tensor, k: int, *, depth: int = 0) -> tuple[Tensor, Tensor]:
        """The k best rows of every query; see :class:`~cascade_kd.retrieval.retriever.Retriever`."""
        offsets_B1 = torch.zeros(len(query_BD) + 1, dtype=torch.int64, device=query_BD.device)
        return self.search_without(query_BD, k, offsets_B1, offsets_B1[:0])

    def search_without(self, query_BD: Tensor, k: int, offsets_B1: Tensor, excluded_E: Tensor) -> tuple[Tensor, Tensor]:
        """The k best rows of every query but those of ``excluded_E[offsets_B1[b]:offsets_B1[b + 1]]``."""
        assert self.vectors_ID is not None, "build before search"
        check_vectors(query_BD, "query")
        device = self.vectors_ID.device
        query_BD = query_BD.detach()
        score_BK = torch.full((len(query_BD), k), -torch.inf, device=query_BD.device)
        row_BK = torch.full((len(query_BD), k), -1, dtype=torch.int64, device=query_BD.device)
        found = min(k, self.num_vectors)
        if found == 0:
            return score_BK, row_BK
        width = group_width(self.num_vectors, found)
        step = max(1, min(self.query_chunk, GROUP_MAXIMA * width // self.num_vectors))
        ends = offsets_B1[::step].tolist() + offsets_B1[-1:].tolist()
        for chunk, start in enumerate(range(0, len(query_BD), step)):
            part = slice(start, start + step)
            query_bD = query_BD[part].to(device, torch.float32)
            own_b = offsets_B1[start : start + step + 1].diff().to(device)
            own_e = excluded_E[ends[chunk] : ends[chunk + 1]].to(device)
            best_bK, best_row_bK = self._search_chunk(query_bD, found, width, own_b, own_e)
            score_BK[part, :found] = best_bK.to(query_BD.device)
            row_BK[part, :found] = best_row_bK.to(query_BD.device)
        return score_BK, row_BK

    def _search_chunk(
        self, query_bD: Tensor, k: int, width: int, own_b: Tensor, own_e: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Scores and rows [b, k], padded with -inf and -1; ``own_e``: the ``own_b`` excluded rows of each query."""
        b = len(query_bD)
        block = self.item_block or max(2048, BLOCK_SCORES[query_bD.device.type] // b)
        block = -(-min(block, self.num_vectors) // width) * width
        blocks = -(-self.num_vectors // block)
        maximum_nbG = query_bD.new_empty(blocks, b, block // width)
        bar_b = query_bD.new_full((b,), -torch.inf)
        raised = raises(blocks)
        held, held_scores = [], []
        for number, score_bC in enumerate(self._blocks(query_bD, block, own_b, own_e)):
            score_gW = score_bC.view(-1, width)
            maximum_bG = maximum_nbG[number]
            torch.amax(score_gW.view(b, -1, width), dim=2, out=maximum_bG)
            # k items of earlier blocks reach the bar, and win over a later one that only equals it.
            good_h = (maximum_bG > bar_b[:, None]).flatten().nonzero().squeeze(1)
            if number in raised or len(good_h) > CROWD * b * k:
                seen_bG = maximum_nbG[: number + 1].transpose(0, 1).flatten(1)
                if seen_bG.shape[1] >= k:
                    bar_b = kth_at_least(seen_bG, k)
                    good_h = (maximum_bG >= bar_b[:, None]).flatten().nonzero().squeeze(1)
            held.append(good_h + number * maximum_bG.numel())
            held_scores.append(score_gW.index_select(0, good_h))
        held_H = torch.cat(held)  # a group's place in maximum_nbG
        groups = block // width
        row_H = held_H // groups % b
        bar_b = bar_b.clamp(min=torch.finfo(torch.float32).min)  # above -inf, which is excluded
        still_H = maximum_nbG.flatten()[held_H] >= bar_b[row_H]
        parts = zip(held_scores, still_H.split([len(part) for part in held]), strict=True)
        score_HW = torch.cat([score_hW[still_h] for score_hW, still_h in parts])
        held_H, row_H = held_H[still_H], row_H[still_H]
        place_N = (score_HW >= bar_b[row_H][:, None]).flatten().nonzero().squeeze(1)
        group_N = place_N // width
        item_H = held_H // (b * groups) * block + held_H % groups * width
        return top_of_rows(row_H[group_N], item_H[group_N] + place_N % width, score_HW.flatten()[place_N], b, k)

    def _blocks(self, query_bD: Tensor, block: int, own_b: Tensor, own_e: Tensor) -> Iterator[Tensor]:
        """Scores [b, C] of one block of items after the other in one buffer; -inf at excluded rows and past the end."""
        assert self.vectors_ID is not None
        b, num_items = len(query_bD), self.num_vectors
        own_e, order_e = own_e.sort()
        query_e = torch.arange(b, device=own_b.device).repeat_interleave(own_b)[order_e]
        place_e = query_e * block + own_e % block
        ends = torch.searchsorted(own_e, torch.arange(0, num_items + block, block, device=own_e.device)).tolist()
        score_bC = query_bD.new_empty(b, block)
        for number, start in enumerate(range(0, num_items, block)):
            vectors_CD = self.vectors_ID[start : start + block]
            torch.mm(query_bD, vectors_CD.T, out=score_bC[:, : len(vectors_CD)])
            if len(vectors_CD) < block:
                score_bC[:, len(vectors_CD) :] = -torch.inf
            score_bC.view(-1).index_fill_(0, place_e[ends[number] : ends[number + 1]], -torch.inf)
            yield score_bC

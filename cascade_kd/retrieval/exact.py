"""Exact search in torch: the reference, and what serves without faiss.

Axes: I items, B queries, D embedding, K places, C items of a chunk.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from cascade_kd.errors import UserError


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


def top_of_chunk(score_BC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of every row and their columns, ties by the smaller column, also at the cut."""
    k = min(k, score_BC.shape[1])
    # topk breaks ties as it likes. One place more shows whether the k-th place was tied; only such rows are sorted.
    top_BK, column_BK = score_BC.topk(min(k + 1, score_BC.shape[1]), dim=1)
    tied_B = (top_BK[:, k - 1] == top_BK[:, -1]) if top_BK.shape[1] > k else torch.zeros_like(top_BK[:, 0]).bool()
    top_BK, column_BK = order_ties(top_BK[:, :k], column_BK[:, :k])
    if bool(tied_B.any()):
        sorted_, order_ = score_BC[tied_B].sort(dim=1, descending=True, stable=True)
        top_BK[tied_B], column_BK[tied_B] = sorted_[:, :k], order_[:, :k]
    return top_BK, column_BK


class ExactRetriever:
    """Chunked matrix product and top k on the device of the vectors; equal scores go to the smaller row number.

    The rule holds for scores that are equal as computed. Memory beyond the vectors: query_chunk x item_chunk scores.
    """

    def __init__(self, *, item_chunk: int = 65536, query_chunk: int = 256) -> None:
        self.item_chunk = item_chunk
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

    def search(self, query_BD: Tensor, k: int, *, depth: int = 0) -> tuple[Tensor, Tensor]:
        """The k best rows of every query; see :class:`~cascade_kd.retrieval.retriever.Retriever`."""
        assert self.vectors_ID is not None, "build before search"
        check_vectors(query_BD, "query")
        score_BK = torch.full((len(query_BD), k), -torch.inf, device=query_BD.device)
        row_BK = torch.full((len(query_BD), k), -1, dtype=torch.int64, device=query_BD.device)
        for start in range(0, len(query_BD), self.query_chunk):
            part = slice(start, start + self.query_chunk)
            query_bD = query_BD[part].detach().to(self.vectors_ID.device, torch.float32)
            best_bK, best_row_bK = self._search_chunk(query_bD, self.vectors_ID, k)
            score_BK[part, : best_bK.shape[1]] = best_bK.to(query_BD.device)
            row_BK[part, : best_bK.shape[1]] = best_row_bK.to(query_BD.device)
        return score_BK, row_BK

    def _search_chunk(self, query_BD: Tensor, vectors_ID: Tensor, k: int) -> tuple[Tensor, Tensor]:
        best_BK = query_BD.new_empty(len(query_BD), 0)
        row_BK = torch.empty(len(query_BD), 0, dtype=torch.int64, device=query_BD.device)
        for start in range(0, len(vectors_ID), self.item_chunk):
            score_BC = query_BD @ vectors_ID[start : start + self.item_chunk].T
            top_BK, column_BK = top_of_chunk(score_BC, k)
            both_BK = torch.cat([best_BK, top_BK], dim=1)
            both_row_BK = torch.cat([row_BK, column_BK + start], dim=1)
            # Stable: at equal scores earlier chunks, that is smaller rows, stay in front.
            best_BK, order_BK = both_BK.sort(dim=1, descending=True, stable=True)
            best_BK, row_BK = best_BK[:, :k], both_row_BK.gather(1, order_BK[:, :k])
        return best_BK, row_BK

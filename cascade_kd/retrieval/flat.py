"""Exact search in faiss. Axes: I items, B queries, D embedding, K places."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cascade_kd.retrieval.exact import ExactRetriever, check_vectors, order_ties
from cascade_kd.retrieval.faiss_module import QUERY_BLOCK, load_faiss

GPU_MAX_K = 2048  # faiss's own limit on the GPU


class FlatRetriever:
    """faiss ``IndexFlatIP``; on the GPU if the vectors are there and this faiss can use it.

    Equal scores are ordered by the smaller row number within the k found; which of several equal scores makes the
    last place is faiss's choice. More than 2048 places on the GPU are served by exact search in torch.
    """

    def __init__(self) -> None:
        self._index: Any = None
        self._resources: Any = None  # must outlive a GPU index
        self._wide: ExactRetriever | None = None

    def build(self, vectors_ID: Tensor) -> None:
        """Copy the vectors into an index. Raises UserError for NaN, infinity, or a faiss that cannot be used."""
        check_vectors(vectors_ID, "item")
        faiss = load_faiss()
        index = faiss.IndexFlatIP(vectors_ID.shape[1])
        self._wide = None
        if vectors_ID.is_cuda and faiss.get_num_gpus() > 0 and hasattr(faiss, "StandardGpuResources"):
            self._resources = faiss.StandardGpuResources()
            index = faiss.index_cpu_to_gpu(self._resources, vectors_ID.get_device(), index)
            self._wide = ExactRetriever()
            self._wide.build(vectors_ID)
        index.add(vectors_ID.detach().float().cpu().contiguous().numpy())
        self._index = index

    def search(self, query_BD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k best rows of every query; see :class:`~cascade_kd.retrieval.retriever.Retriever`."""
        assert self._index is not None, "build before search"
        check_vectors(query_BD, "query")
        found = min(k, self._index.ntotal)
        if self._wide is not None and found > GPU_MAX_K:
            return self._wide.search(query_BD, k)
        score_BK = torch.full((len(query_BD), k), -torch.inf)
        row_BK = torch.full((len(query_BD), k), -1, dtype=torch.int64)
        for start in range(0, len(query_BD) if found else 0, QUERY_BLOCK):
            part = slice(start, start + QUERY_BLOCK)
            query = query_BD[part].detach().float().cpu().contiguous().numpy()
            score, row = self._index.search(query, found)
            score_BK[part, :found], row_BK[part, :found] = torch.from_numpy(score), torch.from_numpy(row)
        score_BK, row_BK = order_ties(score_BK, row_BK)
        return score_BK.to(query_BD.device), row_BK.to(query_BD.device)

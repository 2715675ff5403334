"""Search by faiss. Axes: I items, B queries, D embedding, K places, F places fetched before reranking."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from cascade_kd.retrieval import faiss_module
from cascade_kd.retrieval.exact import ExactRetriever, check_vectors, order_ties, serial
from cascade_kd.retrieval.plan import Plan

GPU_MAX_K = 2048  # faiss's own limit on the GPU
GPU_KINDS = ("flat", "ivf", "ivfpq", "sq")
WIDER = 4  # a deeper search looks into so many times more lists
RERANK_PLACES = 1 << 20  # candidates whose vectors are gathered at once on the GPU: 256 MiB at width 64


class FaissRetriever:
    """One index of faiss, built as a plan says; on the GPU if the vectors are there and faiss can serve it there.

    Equal scores are ordered by the smaller row number within the k found; which of several equal scores makes the
    last place is faiss's choice. Scores of quantised vectors are approximate unless ``rerank`` is set. The same
    vectors, plan and seed build the same index on one machine. More than 2048 places on the GPU are served by exact
    search in torch.

    ``effort`` is the number of lists, or of vertices of the graph, that a query looks at (1 where search is exact).
    """

    def __init__(self, plan: Plan, *, seed: int = 0) -> None:
        self.plan = plan
        self.notes: list[str] = list(plan.notes)
        self.effort = plan.effort or 1
        self._seed = seed
        self._index: Any = None
        self._serving: Any = None  # the index, with the vectors behind it if faiss reranks
        self._resources: Any = None  # must outlive a GPU index
        self._exact = ExactRetriever()  # over the vectors of a flat index, and over those of any on the GPU

    def build(self, vectors_ID: Tensor) -> None:
        """Train the index and add the vectors. Raises UserError for NaN, infinity, or a faiss that cannot be used."""
        check_vectors(vectors_ID, "item")
        vectors_ID = vectors_ID.detach().float().contiguous()
        self._index = faiss_module.new_index(self.plan, vectors_ID.shape[1], self._seed)
        self._resources = None
        if vectors_ID.is_cuda:
            self._move_to_gpu(vectors_ID.get_device())
        at_ID = vectors_ID if self.on_gpu else vectors_ID.cpu()
        with faiss_module.stream_of(self._resources, at_ID), faiss_module.threads_of_build(self.plan):
            if not self._index.is_trained:
                self._index.train_c(len(at_ID), faiss_module.floats(at_ID))
            if len(at_ID):
                self._index.add_c(len(at_ID), faiss_module.floats(at_ID))
        reranks = self.plan.rerank and not self.on_gpu
        self._serving = faiss_module.reranked(self._index, at_ID) if reranks else self._index
        self._exact.vectors_ID = None
        if self.on_gpu:
            self._exact.vectors_ID = vectors_ID
        elif self.plan.kind == "flat":
            self._exact.vectors_ID = faiss_module.vectors_of(self._index)

    @property
    def on_gpu(self) -> bool:
        """Whether the index lies on the GPU."""
        return self._resources is not None

    @property
    def num_vectors(self) -> int:
        """I."""
        return int(self._index.ntotal)

    @property
    def exact(self) -> ExactRetriever | None:
        """Search in torch over the vectors of a flat index, of which there is no second copy."""
        return self._exact if self.plan.kind == "flat" else None

    @property
    def most(self) -> int:
        """The effort that looks at everything there is; 1 where search is exact."""
        return (self.plan.nlist or 1) if self.plan.kind != "hnsw" else self.num_vectors

    @property
    def deepest(self) -> int:
        """The depth of search at which no vector is left out."""
        if self.plan.kind == "hnsw":
            return 1  # a graph that falls apart is not mended by looking further: the vectors are scanned
        return next(depth for depth in range(64) if self.effort * WIDER**depth >= self.most)

    @property
    def bytes_per_vector(self) -> float:
        """Memory of the index, and of the vectors kept for reranking, divided by I."""
        size = faiss_module.index_bytes(self._index, self.plan, self.num_vectors)
        return size / max(1, self.num_vectors) + (4 * self._index.d if self.plan.rerank else 0)

    def search(self, query_BD: Tensor, k: int, *, depth: int = 0) -> tuple[Tensor, Tensor]:
        """The k best rows of every query; see :class:`~cascade_kd.retrieval.retriever.Retriever`."""
        assert self._index is not None, "build before search"
        device = query_BD.device
        query_BD = query_BD.detach().to(device if self.on_gpu else "cpu", torch.float32).contiguous()
        check_vectors(query_BD, "query")
        found = min(k, self.num_vectors)
        reranks = self.on_gpu and self.plan.rerank > 0
        fetched = min(self.plan.rerank * found, self.num_vectors) if reranks else found
        if self.on_gpu and fetched > GPU_MAX_K:
            return self._exact.search(query_BD, k)
        if found == 0 or len(query_BD) == 0:
            score_BF = torch.empty(len(query_BD), found, device=device)
            row_BF = torch.empty(len(query_BD), found, dtype=torch.int64, device=device)
        else:
            score_BF, row_BF = self._search(query_BD, fetched, depth)
            if reranks:
                score_BF, place_BF = self._rescored(query_BD, row_BF).topk(found, dim=1)
                row_BF = row_BF.gather(1, place_BF)
            _order_ties_in(score_BF, row_BF)
            score_BF, row_BF = score_BF.to(device), row_BF.to(device)
        if found == k:
            return score_BF, row_BF
        return pad(score_BF, (0, k - found), value=-torch.inf), pad(row_BF, (0, k - found), value=-1)

    def _search(self, query_BD: Tensor, fetched: int, depth: int) -> tuple[Tensor, Tensor]:
        """As faiss answers, with score -inf where it found nothing."""
        index, parameters = self._serving, None
        if self.plan.kind == "hnsw" and depth:
            index = faiss_module.storage_of(index)
        elif self.plan.effort_key:
            effort = min(self.effort * WIDER**depth, self.most)
            parameters = faiss_module.search_parameters(self.plan, effort, on_gpu=self.on_gpu)
        score_BF, row_BF = faiss_module.search(index, self._resources, query_BD, fetched, parameters)
        if bool(row_BF[:, -1].min() < 0):  # what was not found comes last
            score_BF.masked_fill_(row_BF < 0, -torch.inf)
        return score_BF, row_BF

    def _rescored(self, query_bD: Tensor, row_bF: Tensor) -> Tensor:
        """Exact inner products in place of those of codes; faiss does so on the CPU only."""
        vectors_ID = self._exact.vectors_ID
        assert vectors_ID is not None
        score_bF = torch.empty(row_bF.shape, device=row_bF.device)
        step = max(1, RERANK_PLACES // row_bF.shape[1])
        for start in range(0, len(row_bF), step):
            row_cF = row_bF[start : start + step]
            vectors_cFD = vectors_ID.index_select(0, row_cF.clamp(min=0).flatten()).view(*row_cF.shape, -1)
            query_cD = query_bD[start : start + step]
            score_bF[start : start + step] = (vectors_cFD @ query_cD.unsqueeze(2)).squeeze(2)
        return score_bF.masked_fill_(row_bF < 0, -torch.inf)

    def _move_to_gpu(self, device: int) -> None:
        """Clone the empty index to the GPU; what has no GPU version stays on the CPU, with a note."""
        kind, why = self.plan.kind, ""
        if kind not in GPU_KINDS:
            why = "faiss has no GPU version of it; 'ivf', 'ivfpq' and 'sq' have one"
        elif not faiss_module.sees_gpu():
            why = "this faiss sees no GPU; pip install 'cascade-kd[gpu]' instead of [cpu] brings one that does"
        else:
            try:
                self._index, self._resources = faiss_module.to_gpu(self._index, device)
            except RuntimeError as error:  # e.g. a pq_m that its kernels do not know
                why = f"faiss cannot put it on the GPU: {str(error).splitlines()[-1]}"
        if why:
            self.notes.append(f"[index] kind '{kind}' is searched on the CPU: {why}")


def _order_ties_in(score_BK: Tensor, row_BK: Tensor) -> None:
    """Put equal scores in order of the row, in place. The lists are sorted by score; few hold a tie."""
    score, row = serial(score_BK), serial(row_BK)
    tied_B = torch.as_tensor(((score[:, 1:] == score[:, :-1]) & (row[:, 1:] >= 0)).any(1))
    if bool(tied_B.any()):
        score_BK[tied_B], row_BK[tied_B] = order_ties(score_BK[tied_B], row_BK[tied_B])

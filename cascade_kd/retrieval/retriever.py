"""What a recall stage asks of an index, and which one serves it. Axes: I items, B queries, K places, D embedding."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from cascade_kd.retrieval.exact import ExactRetriever
from cascade_kd.retrieval.faiss_index import FaissRetriever
from cascade_kd.retrieval.faiss_module import faiss_is_installed, sees_gpu
from cascade_kd.retrieval.plan import make_plan
from cascade_kd.retrieval.settings import IndexConfig


class Retriever(Protocol):
    """An index over item vectors: largest inner product first."""

    @property
    def num_vectors(self) -> int:
        """I."""
        ...

    @property
    def deepest(self) -> int:
        """The depth of search at which no vector is left out; 0 where search is exact anyway."""
        ...

    @property
    def exact(self) -> ExactRetriever | None:
        """The search in torch that finds the same, where this index is exact; else None."""
        ...

    def build(self, vectors_ID: Tensor) -> None:
        """Index the vectors, replacing what was there. Raises UserError for NaN or infinity."""
        ...

    def search(self, query_BD: Tensor, k: int, *, depth: int = 0) -> tuple[Tensor, Tensor]:
        """Scores (float32) and row numbers of the vectors (int64), both [B, k], best first, on the query's device.

        Places for which nothing was found hold row -1 and score -inf: those beyond the number of vectors, and with an
        approximate index also others, fewer with every ``depth`` and none at ``deepest``. Raises UserError for NaN or
        infinity.
        """
        ...


def make_retriever(
    config: IndexConfig, num_items: int, dim: int, device: torch.device, *, seed: int = 0
) -> tuple[ExactRetriever | FaissRetriever, list[str]]:
    """The index that serves ``config`` over vectors of this shape and place, and notes for the user.

    Exact search in torch stands in where faiss is not installed, and for ``flat`` on a GPU that faiss cannot use.
    Raises UserError if faiss is installed but broken or doubled, or the config does not fit the width.
    """
    if config.kind == "torch":
        return ExactRetriever(), []
    if not faiss_is_installed():
        what = f"[index] kind '{config.kind}': faiss is not installed, exact search in torch serves"
        return ExactRetriever(), [f"{what}; pip install 'cascade-kd[cpu]' brings faiss"]
    plan = make_plan(config, num_items, dim)
    if plan.kind == "flat" and device.type == "cuda" and not sees_gpu():
        what = "[index] kind 'flat': this faiss sees no GPU, exact search in torch serves"
        return ExactRetriever(), [*plan.notes, f"{what}; pip install 'cascade-kd[gpu]' instead of [cpu]"]
    return FaissRetriever(plan, seed=seed), list(plan.notes)

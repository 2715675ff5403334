"""What a recall stage asks of an index, and which one serves it. Axes: I items, B queries, K places, D embedding."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from cascade_kd.retrieval.exact import ExactRetriever
from cascade_kd.retrieval.faiss_module import faiss_is_installed
from cascade_kd.retrieval.flat import FlatRetriever
from cascade_kd.retrieval.settings import IndexConfig


class Retriever(Protocol):
    """An index over item vectors: largest inner product first."""

    def build(self, vectors_ID: Tensor) -> None:
        """Index the vectors, replacing what was there. Raises UserError for NaN or infinity."""
        ...

    def search(self, query_BD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Scores (float32) and row numbers of the vectors (int64), both [B, k], best first, on the query's device.

        Places beyond the number of vectors hold row -1 and score -inf. Raises UserError for NaN or infinity.
        """
        ...


def make_retriever(config: IndexConfig) -> tuple[Retriever, str]:
    """The index that ``config`` asks for, and a note for the user, empty if all is as asked.

    Without faiss, exact search in torch takes the place of ``flat``: the same answers, and the note says so. Raises
    UserError if faiss is installed but broken or doubled.
    """
    if config.kind == "torch":
        return ExactRetriever(), ""
    if faiss_is_installed():
        return FlatRetriever(), ""
    note = "faiss is not installed: exact search in torch serves; pip install 'cascade-kd[cpu]' brings faiss"
    return ExactRetriever(), note

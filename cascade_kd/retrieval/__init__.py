"""Retrieval (floor 2): the k items with the largest inner product with a query, behind one protocol.

The names below load on first use: ``settings`` alone, which the check of a TOML reads, takes no torch. Importing this
package does not import faiss; building an index does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cascade_kd.lazy import lazy

if TYPE_CHECKING:
    from cascade_kd.retrieval.build import BuiltIndex, build_index
    from cascade_kd.retrieval.exact import ExactRetriever
    from cascade_kd.retrieval.excluding import Found, search_excluding
    from cascade_kd.retrieval.faiss_index import FaissRetriever
    from cascade_kd.retrieval.retriever import Retriever, make_retriever
    from cascade_kd.retrieval.settings import IndexConfig
else:
    __getattr__ = lazy(
        __name__,
        {
            "BuiltIndex": "build",
            "ExactRetriever": "exact",
            "FaissRetriever": "faiss_index",
            "Found": "excluding",
            "IndexConfig": "settings",
            "Retriever": "retriever",
            "build_index": "build",
            "make_retriever": "retriever",
            "search_excluding": "excluding",
        },
    )

__all__ = [
    "BuiltIndex",
    "ExactRetriever",
    "FaissRetriever",
    "Found",
    "IndexConfig",
    "Retriever",
    "build_index",
    "make_retriever",
    "search_excluding",
]

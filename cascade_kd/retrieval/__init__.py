"""Retrieval (floor 2): the k items with the largest inner product with a query, behind one protocol.

The names below load on first use: ``settings`` alone, which the check of a TOML reads, takes no torch. Importing this
package does not import faiss; building a flat index does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cascade_kd.lazy import lazy

if TYPE_CHECKING:
    from cascade_kd.retrieval.exact import ExactRetriever
    from cascade_kd.retrieval.excluding import Found, agreement, search_excluding
    from cascade_kd.retrieval.flat import FlatRetriever
    from cascade_kd.retrieval.retriever import Retriever, make_retriever
    from cascade_kd.retrieval.settings import IndexConfig
else:
    __getattr__ = lazy(
        __name__,
        {
            "ExactRetriever": "exact",
            "FlatRetriever": "flat",
            "Found": "excluding",
            "IndexConfig": "settings",
            "Retriever": "retriever",
            "agreement": "excluding",
            "make_retriever": "retriever",
            "search_excluding": "excluding",
        },
    )

__all__ = [
    "ExactRetriever",
    "FlatRetriever",
    "Found",
    "IndexConfig",
    "Retriever",
    "agreement",
    "make_retriever",
    "search_excluding",
]

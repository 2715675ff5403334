"""Retrieval (floor 2): the k items with the largest inner product with a query, behind one protocol.

Importing this package does not import faiss; building a flat index does.
"""

from cascade_kd.retrieval.exact import ExactRetriever
from cascade_kd.retrieval.excluding import Found, agreement, search_excluding
from cascade_kd.retrieval.flat import FlatRetriever
from cascade_kd.retrieval.retriever import Retriever, make_retriever
from cascade_kd.retrieval.settings import IndexConfig

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

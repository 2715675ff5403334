"""An index that is measured before it serves. Axes: I items, Q held queries, D embedding."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cascade_kd.errors import UserError
from cascade_kd.retrieval.check import Truth
from cascade_kd.retrieval.faiss_index import FaissRetriever
from cascade_kd.retrieval.retriever import Retriever, make_retriever
from cascade_kd.retrieval.settings import IndexConfig

LEAST_EFFORT = 8
MOST_EF = 4096  # a graph that takes more is better linked anew than searched harder
FINER = {  # what to do where looking at more does not help
    "flat": 'this faiss computes wrongly here; reinstall it, or take kind = "torch"',
    "ivfpq": "the codes are too coarse: raise rerank or pq_m",
    "sq": 'the numbers are too coarse: raise rerank, or take sq_type = "fp16"',
    "hnsw": "raise hnsw_m or ef_construction",
}


@dataclass(frozen=True)
class BuiltIndex:
    """An index, what is known of it as a tree for ``metrics.json``, and notes for the user."""

    retriever: Retriever
    facts: Mapping[str, Any]
    notes: tuple[str, ...]


def build_index(
    config: IndexConfig, vectors_ID: Tensor, query_QD: Tensor | None, k: int, *, seed: int = 0
) -> BuiltIndex:
    """Build the index, measure its recall@k on held queries, and refuse it below the floor.

    The facts are its kind and parameters, ``recall@k`` {mean, stderr, n} against exact search, ``build_seconds``
    (training and adding) and ``bytes_per_vector``. An nprobe or ef_search that is not set becomes the smallest power
    of two whose recall is above the floor by two standard errors. Without queries (None or empty) nothing is measured,
    and one that is not set becomes the largest. Raises UserError below the floor, naming the key to change.
    """
    retriever, notes = make_retriever(config, len(vectors_ID), vectors_ID.shape[1], vectors_ID.device, seed=seed)
    started = time.perf_counter()
    retriever.build(vectors_ID)
    if vectors_ID.is_cuda:
        torch.cuda.synchronize(vectors_ID.device)
    facts: dict[str, Any] = {"build_seconds": time.perf_counter() - started}
    recall = f"recall@{k}"
    if not isinstance(retriever, FaissRetriever):
        facts |= {"kind": "torch", "bytes_per_vector": 4.0 * vectors_ID.shape[1]}
        facts[recall] = {"mean": None, "why": "exact search in torch is what others are measured against"}
        return BuiltIndex(retriever, facts, tuple(notes))
    plan = retriever.plan
    most = min(retriever.most, MOST_EF) if plan.kind == "hnsw" else retriever.most
    if query_QD is None or len(query_QD) == 0 or len(vectors_ID) == 0:
        retriever.effort = plan.effort or most
        facts[recall] = {"mean": None, "why": "there is nothing to measure it on"}
    else:
        truth = Truth(vectors_ID, query_QD, k)
        recall_Q = truth.recall(retriever) if plan.effort else _least_effort(retriever, truth, config.floor, most)
        if recall_Q.mean() < config.floor:
            raise UserError(_refusal(retriever, truth, config.floor, float(recall_Q.mean())))
        facts[recall] = {"mean": float(recall_Q.mean()), "stderr": _stderr(recall_Q), "n": len(recall_Q)}
    if plan.effort_key:
        facts[plan.effort_key] = retriever.effort
    facts |= {"kind": plan.kind, "bytes_per_vector": retriever.bytes_per_vector, **plan.parameters}
    return BuiltIndex(retriever, facts, tuple(retriever.notes))


def _least_effort(retriever: FaissRetriever, truth: Truth, floor: float, most: int) -> Tensor:
    """Set the smallest effort that is safely above the floor, else the most; its recall [Q]."""
    retriever.effort = min(LEAST_EFFORT, most)
    while True:
        recall_Q = truth.recall(retriever)
        if retriever.effort >= most or recall_Q.mean() - 2 * _stderr(recall_Q) >= floor:
            return recall_Q
        retriever.effort = min(2 * retriever.effort, most)


def _refusal(retriever: FaissRetriever, truth: Truth, floor: float, mean: float) -> str:
    """Who, what was got, what is wanted, what to do."""
    plan, queries = retriever.plan, len(truth.query_QD)
    said = f"[index] kind '{plan.kind}' finds {mean:.4f} of the {truth.count} items that exact search finds for "
    said += f"{queries} held {'query' if queries == 1 else 'queries'}; recall_floor is {floor:g}"
    if plan.effort and float(truth.recall(retriever, depth=retriever.deepest).mean()) >= floor:
        remedy = f"raise {plan.effort_key}, now {retriever.effort}, or leave it out to have it found"
    else:
        remedy = FINER[plan.kind]
    return f"{said}. {remedy[0].upper()}{remedy[1:]}; or lower recall_floor"


def _stderr(value_Q: Tensor) -> float:
    """Standard error of the mean; 0 for one value."""
    return float(value_Q.std()) / math.sqrt(len(value_Q)) if len(value_Q) > 1 else 0.0

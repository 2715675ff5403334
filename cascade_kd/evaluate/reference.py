"""What a cascade is measured against: popularity, random order, and the best possible AUC (floor 6).

B requests, K places, I items.
"""

from __future__ import annotations

from typing import Any

import torch

from cascade_kd.data import Dataset, EvaluationRequests
from cascade_kd.metrics import Metric, auc, hits, mean_and_stderr, ndcg_at, recall_at
from cascade_kd.retrieval import ExactRetriever, search_excluding

Tree = dict[str, Any]


def reference_metrics(
    dataset: Dataset, asked: EvaluationRequests, label: str, ks: tuple[int, ...], *, mask_seen: bool
) -> Tree:
    """``popularity`` and ``random`` over the full catalogue; ``oracle`` where the true probability is known.

    Popularity orders items by their training events with the label, the same list for everyone but for seen items.
    Random is the expectation over all orders of the items left, not a draw.
    """
    tree = {
        "popularity": popularity(dataset, asked, label, ks, mask_seen=mask_seen),
        "random": random_order(dataset, asked, ks, mask_seen=mask_seen),
    }
    if dataset.events.oracle_N is not None:
        rows = dataset.rows("test")
        best = auc(dataset.events.oracle_N[rows], dataset.events.labels[label][rows])
        tree["oracle"] = {"auc": best.as_dict()}
    return tree


def popularity(
    dataset: Dataset, asked: EvaluationRequests, label: str, ks: tuple[int, ...], *, mask_seen: bool
) -> Tree:
    """recall@k and ndcg@k of the most popular items."""
    rows = dataset.rows("train")
    counts_I1 = torch.zeros(dataset.num_items + 1, device=rows.device).index_add_(
        0, dataset.events.item_N[rows], dataset.events.labels[label][rows]
    )
    retriever = ExactRetriever()
    retriever.build(counts_I1[1:].unsqueeze(1))
    offsets_B1, items = _seen(dataset, asked, mask_seen)
    one_B1 = torch.ones(len(asked.requests), 1, device=rows.device)
    found = search_excluding(retriever, one_B1, min(max(ks), dataset.num_items), offsets_B1, items - 1)
    hit_BK = hits(found.row_BK + 1, found.valid_BK, asked.offsets_B1, asked.positive_P)
    positives_B = asked.offsets_B1.diff()
    tree: Tree = {f"recall@{k}": recall_at(hit_BK, positives_B, k).as_dict() for k in ks}
    return tree | {f"ndcg@{k}": ndcg_at(hit_BK, positives_B, k).as_dict() for k in ks}


def random_order(dataset: Dataset, asked: EvaluationRequests, ks: tuple[int, ...], *, mask_seen: bool) -> Tree:
    """Expected recall@k of a uniformly random order: each reachable positive is in the first k of n with k / n."""
    offsets_B1, _ = _seen(dataset, asked, mask_seen)
    left_B = (dataset.num_items - offsets_B1.diff()).clamp(min=1)
    positives_B = asked.offsets_B1.diff()
    reachable_B = positives_B
    if mask_seen:
        row_P = torch.arange(len(positives_B), device=positives_B.device).repeat_interleave(positives_B)
        seen_P = dataset.is_seen(asked.requests.user_B[row_P], asked.positive_P.unsqueeze(1), part="test").squeeze(1)
        reachable_B = torch.zeros_like(positives_B).index_add_(0, row_P, (~seen_P).long())

    def expected(k: int) -> Metric:
        return mean_and_stderr((k / left_B.double()).clamp(max=1.0) * reachable_B / positives_B)

    return {f"recall@{k}": expected(k).as_dict() for k in ks}


def _seen(dataset: Dataset, asked: EvaluationRequests, mask_seen: bool) -> tuple[torch.Tensor, torch.Tensor]:
    if mask_seen:
        return dataset.seen(asked.requests.user_B, part="test")
    return torch.zeros_like(asked.offsets_B1), asked.positive_P[:0]

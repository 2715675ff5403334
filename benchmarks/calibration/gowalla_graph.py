"""GF-CF on Gowalla, scored by our metrics, and whether its test file is a random part of the log.

    python benchmarks/calibration/gowalla_graph.py

GF-CF has no training and a public figure, Recall@20 .1849 and NDCG@20 .1518: one that comes out so vouches for the
data, for the masking of training places and for the metrics. Source: Shen et al., "How powerful is graph convolution
for recommendation?", CIKM 2021: with R~ = D_U^-1/2 R D_I^-1/2, a user's row of R times
``R~' R~ + .3 D_I^-1/2 V V' D_I^1/2``, V the 256 first right singular vectors of R~. A minute of a core.

Second, the share of a place's visits that is in the test file, over places with many visits: were every visit equally
likely to be there, its standard deviation would be that of a binomial share.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import svds
from torch import Tensor

from cascade_kd.config import load_dataset_definition
from cascade_kd.data import Dataset, load, prepare
from cascade_kd.metrics.ranking import hits, ndcg_at, recall_at
from cascade_kd.types import Part

K, RANK, WEIGHT, AT_ONCE, MANY = 20, 256, 0.3, 2048, 200


def visits(dataset: Dataset, *parts: Part) -> sp.csr_array:
    """Users x places, 1 where a pair is in the parts."""
    rows = torch.cat([dataset.rows(part) for part in parts])
    pairs = (dataset.events.user_N[rows].numpy(), dataset.events.item_N[rows].numpy())
    shape = tuple(len(dataset.vocabularies[dataset.feature(name).vocabulary]) + 1 for name in ("user_id", "item_id"))
    return sp.csr_array((np.ones(len(rows), np.float32), pairs), shape=shape)


def per_root(sums: np.ndarray) -> np.ndarray:
    """1 / sqrt, and 0 of 0."""
    return np.divide(1, np.sqrt(sums), out=np.zeros_like(sums), where=sums > 0)


def best(known: sp.csr_array) -> Tensor:
    """Each user's K best places beside those known, [U, K]."""
    by_user, by_item = per_root(known.sum(1)), per_root(known.sum(0))
    scaled = known.multiply(by_user[:, None]).multiply(by_item).tocsr()
    alike = (scaled.T @ scaled).tocsr()
    first = svds(scaled, RANK, random_state=0)[2]
    narrow, wide = (first * by_item).T, first * np.sqrt(known.sum(0))
    found = []
    for start in range(0, known.shape[0], AT_ONCE):
        some = known[start : start + AT_ONCE]
        score = torch.from_numpy((some @ alike).toarray() + WEIGHT * ((some @ narrow) @ wide))
        score[torch.from_numpy(some.toarray() > 0)] = -torch.inf
        score[:, 0] = -torch.inf  # no place has code 0
        found.append(score.topk(K).indices)
    return torch.cat(found)


def main() -> None:
    definition, file = load_dataset_definition("gowalla")
    dataset = load(prepare(definition, base=file.parent))
    known, test = visits(dataset, "train", "valid"), visits(dataset, "test")
    item_UK = best(known)
    positive_P, offsets_U1 = (torch.from_numpy(x).long() for x in (test.indices, test.indptr))
    hit_UK = hits(item_UK, torch.ones_like(item_UK, dtype=torch.bool), offsets_U1, positive_P)
    recall, ndcg = (metric(hit_UK, offsets_U1.diff(), K) for metric in (recall_at, ndcg_at))
    print(f"GF-CF: recall@{K} {recall.mean:.4f}, ndcg@{K} {ndcg.mean:.4f}")
    in_test, total = test.sum(0), test.sum(0) + known.sum(0)
    share, overall = (in_test / np.maximum(total, 1))[total >= MANY], in_test.sum() / total.sum()
    chance = np.sqrt(np.mean(overall * (1 - overall) / total[total >= MANY]))
    print(f"share in test, {len(share)} places of {MANY} visits and more: sd {share.std():.3f}, {chance:.3f} by chance")


if __name__ == "__main__":
    main()

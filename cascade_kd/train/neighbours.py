"""The nearest other row of every row, over mixed attributes (floor 6).

M rows, U distinct rows (groups of equal ones), Q groups that are asked for, K candidates, D width of an encoding,
T codes of a list, V distinct codes of a column, C rows of a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from cascade_kd.retrieval.faiss_module import euclidean_lists, faiss_is_installed, search
from cascade_kd.streams import generator_at, hashed, seed_at, stream

EXACT_ROWS = 20_000  # distinct rows up to which every pair is looked at
CODE_WIDTH = 32  # columns of more codes than this are encoded by random vectors of this width
CANDIDATES = 16  # found by the encodings, then ordered by the distance itself
PROBES = 8  # lists that a row looks into, of 2 sqrt(U)
BLOCK_CELLS = 1 << 24  # numbers of a block of distances: 64 MiB
QUERIES_PER_BLOCK = 1 << 10

Columns = Mapping[str, Tensor]


def nearest_other(nominal: Columns, continuous: Columns, *, seed: int) -> Tensor:
    """[M] int64: the number of another row at the least distance from each row, on the device of the columns.

        d(e, e')^2 = sum over continuous of (e_a - e'_a)^2, scaled to [0, 1]  +  sum over nominal of [e_a != e'_a]

    ``nominal`` columns are integer codes [M] or lists of distinct codes [M, T] padded with 0; of lists A and B the
    second sum takes 1 - |A n B| / sqrt(|A| |B|), from 0 for the same set to 1 for sets that share nothing, which inner
    products can search as they cannot Jaccard's. An empty list is the set {0}. ``continuous`` columns are [M]; one that
    is constant counts 0. Source: Bucila et al., KDD 2006: Euclidean and Hamming distance; how they add up is ours.

    A row that has equals takes one of them, each the next in a ring in random order, so that none serves all. Of the
    distinct rows, the nearest 16 by encoding are ordered by the distance itself, ties at random, and a row of equals
    stands for all of them. Codes are encoded one-hot / sqrt(2) in columns of at most 32 distinct ones, else as random
    unit vectors of width 32 / sqrt(2), whose squared distance is 1 give or take 0.18: an approximation in which rows
    the search looks at, not in how it orders them. Up to 20,000 distinct rows all pairs are looked at; above, with
    faiss, 8 of 2 sqrt(U) lists; without faiss all pairs, at a cost that grows with U^2.

    Memory: 8 D bytes a distinct row, D the sum of the columns' widths (at most 32 each, 1 for a continuous one):
    800,000 rows of 5 numbers and 5 columns of many codes take 1.1 GB. Time: 95 s on one CPU thread for the 800,000
    training rows of MovieLens-1M, 5 statistics and 6 nominal columns, D = 95.

    Everything follows from ``seed``. Raises ``ValueError`` for fewer than 2 rows, or no columns.
    """
    columns = [*nominal.values(), *continuous.values()]
    if not columns:
        raise ValueError("there is no column to measure a distance on")
    size, device = len(columns[0]), columns[0].device
    if size < 2:
        raise ValueError(f"a nearest other row takes at least 2 rows, got {size}")
    nominal = {name: column.cpu() for name, column in nominal.items()}
    continuous = {name: unit_scaled(column.cpu()) for name, column in continuous.items()}
    group_M = equal_rows([*nominal.values(), *continuous.values()])
    count_U = torch.bincount(group_M)
    start_U = count_U.cumsum(0) - count_U
    shuffled_M = torch.randperm(size, generator=generator_at(stream(seed, "equal rows")))
    by_group_M = shuffled_M[group_M[shuffled_M].argsort(stable=True)]  # equal rows side by side, in random order
    start_M, count_M = start_U[group_M[by_group_M]], count_U[group_M[by_group_M]]
    neighbour_M = torch.empty_like(by_group_M)
    neighbour_M[by_group_M] = by_group_M[start_M + (torch.arange(size) - start_M + 1) % count_M]
    alone_Q = (count_U == 1).nonzero().squeeze(1)
    if len(alone_Q):
        first_U = by_group_M[start_U]
        distinct = ({n: x[first_U] for n, x in nominal.items()}, {n: x[first_U] for n, x in continuous.items()})
        found_Q = nearest_distinct(*distinct, alone_Q, seed=seed)
        draw_Q = hashed(stream(seed, "of equals"), alone_Q) % count_U[found_Q]
        neighbour_M[first_U[alone_Q]] = by_group_M[start_U[found_Q] + draw_Q]
    return neighbour_M.to(device)


def unit_scaled(x_M: Tensor) -> Tensor:
    """[M] float32 from 0 to 1; a constant column is 0."""
    low, high = x_M.aminmax()
    return ((x_M - low) / (high - low)).float() if high > low else torch.zeros(len(x_M))


def equal_rows(columns: list[Tensor]) -> Tensor:
    """[M] int64: rows have the same number, from 0 to U - 1, if they are equal in all columns [M] and [M, T]."""
    group_M = torch.zeros(len(columns[0]), dtype=torch.int64)
    for column in columns:
        for value_M in column.unsqueeze(1).flatten(1).T:
            code_M = value_M.unique(return_inverse=True)[1]
            group_M = (group_M * (code_M.max() + 1) + code_M).unique(return_inverse=True)[1]
    return group_M


def nearest_distinct(nominal: Columns, continuous: Columns, query_Q: Tensor, *, seed: int) -> Tensor:
    """[Q] the nearest of U distinct rows to each of the rows ``query_Q``, itself left out; U is at least 2."""
    encoded_UD = encode(nominal, continuous, seed=seed)
    size = len(encoded_UD)
    found_Q = torch.empty_like(query_Q)
    for start, candidate_CK in _candidates(encoded_UD, query_Q, seed):
        query_C = query_Q[start : start + len(candidate_CK)]
        left_out_CK = (candidate_CK < 0) | (candidate_CK == query_C.unsqueeze(1))
        distance_CK = distances(nominal, continuous, query_C, candidate_CK.clamp(min=0))
        distance_CK = distance_CK.masked_fill(left_out_CK, math.inf)
        tied_CK = distance_CK == distance_CK.amin(1, keepdim=True)
        draw_CK = hashed(stream(seed, "ties"), query_C.unsqueeze(1) * size + candidate_CK)
        best_C = draw_CK.masked_fill(~tied_CK, torch.iinfo(torch.int64).max).argmin(1)
        found_Q[start : start + len(query_C)] = candidate_CK.gather(1, best_C.unsqueeze(1)).squeeze(1)
    return found_Q


def encode(nominal: Columns, continuous: Columns, *, seed: int) -> Tensor:
    """[M, D] float32 whose squared Euclidean distances are those of the rows, or near them where codes are random."""
    parts = [x_M.unsqueeze(1) for x_M in continuous.values()]
    for name, column in nominal.items():
        value_V, code = column.unique(return_inverse=True)
        if len(value_V) <= CODE_WIDTH:
            table_VD = torch.eye(len(value_V))
        else:
            drawn_VD = torch.randn(len(value_V), CODE_WIDTH, generator=generator_at(stream(seed, "codes", name)))
            table_VD = F.normalize(drawn_VD, dim=1)
        if column.ndim == 1:
            part_MD = table_VD[code]
        else:
            part_MD = torch.zeros(len(column), table_VD.shape[1])
            for code_M, is_in_M in zip(code.T, is_in_set(column).T, strict=True):
                part_MD += table_VD[code_M] * is_in_M.unsqueeze(1)
            part_MD = F.normalize(part_MD, dim=1)
        parts.append(part_MD.mul_(math.sqrt(0.5)))
    return torch.cat(parts, dim=1)


def is_in_set(codes_MT: Tensor) -> Tensor:
    """[M, T] bool: the places that are no padding; the first of an empty list, which stands for the set {0}."""
    is_in_MT = codes_MT > 0
    is_in_MT[:, 0] |= ~is_in_MT.any(1)
    return is_in_MT


def distances(nominal: Columns, continuous: Columns, query_C: Tensor, other_CK: Tensor) -> Tensor:
    """[C, K] squared distances of the rows ``query_C`` from the rows ``other_CK``."""
    distance_CK = torch.zeros(other_CK.shape)
    for x_M in continuous.values():
        distance_CK += (x_M[query_C].unsqueeze(1) - x_M[other_CK]) ** 2
    for column in nominal.values():
        own, other = column[query_C].unsqueeze(1), column[other_CK]
        if column.ndim == 1:
            distance_CK += own != other
            continue
        own_C1T, other_CKT = is_in_set(column[query_C]).unsqueeze(1), is_in_set(other.flatten(0, 1)).view_as(other)
        both_CKTT = (own.unsqueeze(3) == other.unsqueeze(2)) & own_C1T.unsqueeze(3) & other_CKT.unsqueeze(2)
        sizes_CK = own_C1T.sum(2) * other_CKT.sum(2)
        distance_CK += 1 - both_CKTT.sum((2, 3)) / sizes_CK.sqrt()
    return distance_CK


def _candidates(encoded_UD: Tensor, query_Q: Tensor, seed: int) -> Iterator[tuple[int, Tensor]]:
    """(first query, [C, K]): the nearest rows of block after block of queries, -1 where fewer were found."""
    size = len(encoded_UD)
    count = min(CANDIDATES + 1, size)  # one of them is the query itself
    index = None
    if size > EXACT_ROWS and faiss_is_installed():
        nlist = round(2 * math.sqrt(size))
        index = euclidean_lists(encoded_UD, nlist=nlist, nprobe=PROBES, seed=seed_at(seed, 0) % (1 << 31))
    half_U = encoded_UD.square().sum(1) / 2
    for start in range(0, len(query_Q), QUERIES_PER_BLOCK):
        query_CD = encoded_UD[query_Q[start : start + QUERIES_PER_BLOCK]]
        if index is None:
            yield start, _nearest_of_all(encoded_UD, half_U, query_CD, count)
            continue
        row_CK = search(index, None, query_CD, count, None)[1]
        few_C = (row_CK >= 0).sum(1) < 2  # the lists hold no other row
        if bool(few_C.any()):
            row_CK[few_C] = _nearest_of_all(encoded_UD, half_U, query_CD[few_C], count)
        yield start, row_CK


def _nearest_of_all(encoded_UD: Tensor, half_U: Tensor, query_CD: Tensor, count: int) -> Tensor:
    """[C, K] rows by (|x|^2 - 2 q x) / 2, a few queries at a time; ``half_U`` is |x|^2 / 2."""
    return torch.cat(
        [
            (half_U - part_CD @ encoded_UD.T).topk(count, dim=1, largest=False).indices
            for part_CD in query_CD.split(max(1, BLOCK_CELLS // len(half_U)))
        ]
    )

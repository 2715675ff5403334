"""Exact search, flat and torch, against sorting in NumPy."""

import math
from typing import get_args

import numpy as np
import pydantic
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_kd.errors import UserError
from cascade_kd.retrieval import ExactRetriever, FlatRetriever, IndexConfig, agreement, make_retriever
from cascade_kd.retrieval import flat as flat_module

RETRIEVERS = {
    "torch": ExactRetriever,
    "torch in small chunks": lambda: ExactRetriever(item_chunk=7, query_chunk=3),
    "flat": FlatRetriever,
}
ALL = pytest.mark.parametrize("make", RETRIEVERS.values(), ids=RETRIEVERS)


def vectors(num, dim=6, seed=0):
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed))


def whole(num, dim=3, seed=0):
    """Vectors of small whole numbers: inner products are exact, and ties are many."""
    return torch.randint(-2, 3, (num, dim), generator=torch.Generator().manual_seed(seed)).float()


def brute(query, item, k):
    """Scores and rows by sorting, ties by the smaller row, padded."""
    score = query.numpy().astype(np.float64) @ item.numpy().astype(np.float64).T
    rows = np.argsort(-score, axis=1, kind="stable")[:, :k]
    top = np.take_along_axis(score, rows, axis=1)
    short = ((0, 0), (0, k - rows.shape[1]))
    return np.pad(top, short, constant_values=-np.inf), np.pad(rows, short, constant_values=-1)


def built(make, item):
    retriever = make()
    retriever.build(item)
    return retriever


@ALL
@pytest.mark.parametrize(("num", "k"), [(50, 1), (50, 10), (50, 50), (1100, 20), (3, 7), (1, 1)])
def test_search_equals_sorting(make, num, k):
    query, item = vectors(11, seed=1), vectors(num)
    score, row = built(make, item).search(query, k)
    want_score, want_row = brute(query, item, k)
    assert row.tolist() == want_row.tolist()
    assert score.numpy() == pytest.approx(want_score, abs=1e-5)
    assert (score.dtype, row.dtype) == (torch.float32, torch.int64)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 40), st.integers(1, 9), st.integers(0, 10**6))
def test_torch_breaks_ties_by_the_smaller_row_everywhere(num, queries, k, chunk, seed):
    item, query = whole(num, seed=seed), whole(queries, seed=seed + 1)
    retriever = ExactRetriever(item_chunk=chunk, query_chunk=5)
    retriever.build(item)
    score, row = retriever.search(query, k)
    want_score, want_row = brute(query, item, k)
    assert row.tolist() == want_row.tolist()
    assert score.tolist() == want_score.tolist()


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 10**6))
def test_flat_orders_ties_by_the_smaller_row_among_those_found(num, k, seed):
    item, query = whole(num, seed=seed), whole(5, seed=seed + 1)
    score, row = built(FlatRetriever, item).search(query, k)
    want_score, want_row = brute(query, item, k)
    assert score.tolist() == want_score.tolist()
    for got, want, points in zip(row.tolist(), want_row.tolist(), want_score.tolist(), strict=True):
        found = sorted((-s, r) for s, r in zip(points, got, strict=True) if r >= 0)
        assert got == [r for _, r in found] + [-1] * (k - len(found))
        cut = min(s for s in points if s > -math.inf)
        # Above the score at the cut there is no choice.
        assert [r for r, s in zip(got, points, strict=True) if s > cut] == [
            r for r, s in zip(want, points, strict=True) if s > cut
        ]


@ALL
def test_no_query_and_no_item(make):
    score, row = built(make, vectors(5)).search(vectors(0), 3)
    assert score.shape == row.shape == (0, 3)
    score, row = built(make, vectors(0)).search(vectors(2), 3)
    assert row.tolist() == [[-1] * 3] * 2
    assert score.tolist() == [[-math.inf] * 3] * 2


@ALL
def test_build_replaces_and_takes_what_a_model_gives(make):
    retriever = built(make, vectors(9))
    retriever.build((vectors(4).double()).requires_grad_())
    score, row = retriever.search(vectors(2, seed=1).double().requires_grad_(), 6)
    assert row.tolist() == brute(vectors(2, seed=1), vectors(4), 6)[1].tolist()
    assert not score.requires_grad
    strided = vectors(12)[:, ::2]
    retriever.build(strided)
    assert retriever.search(strided[3:4], 12)[1].sort().values.tolist() == [list(range(12))]


@ALL
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_vectors_of_a_diverged_model_are_refused(make, bad):
    item = vectors(5)
    item[3, 1] = bad
    with pytest.raises(UserError, match="1 of 5 item vectors hold NaN or infinity, the first is row 3"):
        make().build(item)
    with pytest.raises(UserError, match="1 of 5 query vectors"):
        built(make, vectors(9)).search(item, 2)


def test_agreement_is_the_share_of_rows_found():
    item, query = vectors(40), vectors(8, seed=1)
    exact = built(ExactRetriever, item)
    assert agreement(built(FlatRetriever, item), exact, query, 10) == 1.0
    assert agreement(built(FlatRetriever, item), exact, query, 100) == 1.0
    other = built(ExactRetriever, vectors(40, seed=5))
    truth, seen = (brute(query, vectors(40, seed=seed), 10)[1].tolist() for seed in (0, 5))
    want = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(truth, seen, strict=True)])
    assert agreement(other, exact, query, 10) == pytest.approx(want)
    with pytest.raises(ValueError, match="at least one query"):
        agreement(exact, exact, query[:0], 10)
    with pytest.raises(ValueError, match="one indexed vector"):
        agreement(exact, built(ExactRetriever, vectors(0)), query, 10)


def test_the_kind_is_one_of_those_that_exist():
    assert IndexConfig().kind == "flat"
    for kind in get_args(IndexConfig.model_fields["kind"].annotation):
        assert make_retriever(IndexConfig(kind=kind))[1] == ""
    with pytest.raises(pydantic.ValidationError, match="'flat' or 'torch'"):
        IndexConfig(kind="hnsw")
    with pytest.raises(pydantic.ValidationError, match="Extra inputs"):
        IndexConfig(kind="flat", nprobe=8)


def test_on_the_gpu_more_than_2048_places_go_to_torch(monkeypatch):
    """What a GPU index would do, with its limit lowered and the CPU index in its place."""
    item, query = vectors(30), vectors(4, seed=1)
    retriever = built(FlatRetriever, item)
    retriever._wide = built(ExactRetriever, item)
    monkeypatch.setattr(flat_module, "GPU_MAX_K", 8)
    monkeypatch.setattr(retriever._index, "search", lambda *_: pytest.fail("over the limit of the index"))
    assert retriever.search(query, 9)[1].tolist() == brute(query, item, 9)[1].tolist()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@ALL
def test_vectors_on_the_gpu(make):
    item, query = whole(5000, dim=8), whole(20, dim=8, seed=1)
    score, row = built(make, item.cuda()).search(query.cuda(), 30)
    assert score.is_cuda
    assert row.is_cuda
    assert score.cpu().tolist() == brute(query, item, 30)[0].tolist()

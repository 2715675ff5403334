"""Exact search, flat and torch, against sorting in NumPy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_kd.errors import UserError
from cascade_kd.retrieval import ExactRetriever, FaissRetriever, faiss_index
from cascade_kd.retrieval.plan import Plan


def flat():
    return FaissRetriever(Plan("flat"))


RETRIEVERS = {
    "torch": ExactRetriever,
    "torch in small chunks": lambda: ExactRetriever(item_block=7, query_chunk=3),
    "flat": flat,
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
    retriever = ExactRetriever(item_block=chunk, query_chunk=5)
    retriever.build(item)
    score, row = retriever.search(query, k)
    want_score, want_row = brute(query, item, k)
    assert row.tolist() == want_row.tolist()
    assert score.tolist() == want_score.tolist()


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 10**6))
def test_flat_orders_ties_by_the_smaller_row_among_those_found(num, k, seed):
    item, query = whole(num, seed=seed), whole(5, seed=seed + 1)
    score, row = built(flat, item).search(query, k)
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


def test_on_the_gpu_more_than_2048_places_go_to_torch(monkeypatch):
    """What a GPU index would do, with its limit lowered and the CPU index in its place."""
    item, query = vectors(30), vectors(4, seed=1)
    retriever = built(flat, item)
    monkeypatch.setattr(FaissRetriever, "on_gpu", True)
    monkeypatch.setattr(faiss_index, "GPU_MAX_K", 8)
    monkeypatch.setattr(faiss_index.faiss_module, "search", lambda *_: pytest.fail("over the limit of the index"))
    assert retriever.search(query, 9)[1].tolist() == brute(query, item, 9)[1].tolist()


def test_reranking_on_the_gpu_finds_what_faiss_finds_on_the_cpu(monkeypatch):
    """What a GPU index would do, with the CPU index in its place."""
    item, query = vectors(3000), vectors(40, seed=1)
    retriever = built(lambda: FaissRetriever(Plan("sq", nlist=8, sq_type="8bit", rerank=2, effort=3)), item)
    assert retriever._exact.vectors_ID is None
    score, row = retriever.search(query, 30)
    retriever._exact.vectors_ID, retriever._serving = item, retriever._index
    monkeypatch.setattr(FaissRetriever, "on_gpu", True)
    for places in (1, 10**6):
        monkeypatch.setattr(faiss_index, "RERANK_PLACES", places)
        other_score, other_row = retriever.search(query, 30)
        assert other_row.tolist() == row.tolist()
        torch.testing.assert_close(other_score, score)
    found = retriever.search(query, 3000, depth=0)
    assert ((found[1] < 0) == (found[0] == -math.inf)).all()

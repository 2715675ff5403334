"""Search without each user's own items, against filtering a full sort."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_kd.retrieval import ExactRetriever, FlatRetriever, excluding, search_excluding

NUM = 25  # items


def ragged(sets):
    offsets = torch.tensor([0, *map(len, sets)]).cumsum(0)
    return offsets, torch.tensor([x for row in sets for x in row], dtype=torch.int64)


def vectors(num, seed):
    return torch.randn(num, 4, generator=torch.Generator().manual_seed(seed))


def built(make):
    retriever = make()
    retriever.build(vectors(NUM, 0))
    return retriever


class Spy:
    """Passes searches on and notes their sizes."""

    def __init__(self, inner):
        self.inner, self.calls = inner, []

    def build(self, vectors_ID):
        self.inner.build(vectors_ID)

    def search(self, query_BD, k):
        self.calls.append((len(query_BD), k))
        return self.inner.search(query_BD, k)


sets = st.lists(st.lists(st.integers(0, NUM - 1), unique=True).map(sorted), min_size=0, max_size=8)


@pytest.mark.parametrize("make", [ExactRetriever, FlatRetriever])
@settings(deadline=None, max_examples=75)
@given(sets, st.integers(1, 30), st.sampled_from([1, 40, 100, 10**6]))
def test_it_equals_filtering_a_full_sort(make, drawn, k, max_places):
    query = vectors(len(drawn), 1)
    score = query @ vectors(NUM, 0).T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(excluding, "MAX_PLACES", max_places)
        patch.setattr(excluding, "MAX_QUERIES", 3)
        found = search_excluding(built(make), query, k, *ragged(drawn))
    assert found.row_BK.shape == found.score_BK.shape == found.valid_BK.shape == (len(drawn), k)
    for b, own in enumerate(drawn):
        want = [row for row in score[b].argsort(descending=True).tolist() if row not in own][:k]
        padding = k - len(want)
        assert found.row_BK[b].tolist() == want + [-1] * padding
        assert found.valid_BK[b].tolist() == [True] * len(want) + [False] * padding
        assert found.score_BK[b].tolist() == pytest.approx(score[b, want].tolist() + [-math.inf] * padding, abs=1e-5)


def test_a_heavy_user_does_not_widen_the_searches_of_others(monkeypatch):
    monkeypatch.setattr(excluding, "MAX_QUERIES", 2)
    spy = Spy(built(ExactRetriever))
    own = [[], list(range(20)), [1], [], [2, 3]]
    search_excluding(spy, vectors(5, 1), 3, *ragged(own))
    assert spy.calls == [(1, 23), (2, 5), (2, 3)]


def test_the_places_of_a_batch_are_bounded(monkeypatch):
    monkeypatch.setattr(excluding, "MAX_PLACES", 30)
    spy = Spy(built(ExactRetriever))
    search_excluding(spy, vectors(6, 1), 5, *ragged([list(range(10))] * 3 + [[]] * 3))
    assert spy.calls == [(2, 15), (1, 15), (3, 5)]


def test_offsets_of_another_batch_are_refused():
    with pytest.raises(ValueError, match="2 queries need 3 offsets, got 2"):
        search_excluding(built(ExactRetriever), vectors(2, 1), 3, *ragged([[1]]))
    with pytest.raises(ValueError, match="must ascend"):
        search_excluding(built(ExactRetriever), vectors(1, 1), 3, *ragged([[5, 1]]))

"""Search without each user's own items, against filtering a full sort."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_kd.retrieval import ExactRetriever, FaissRetriever, exact, excluding, search_excluding
from cascade_kd.retrieval.plan import Plan

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
        self.inner, self.calls, self.depths = inner, [], []

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def search(self, query_BD, k, *, depth=0):
        self.calls.append((len(query_BD), k))
        self.depths.append(depth)
        return self.inner.search(query_BD, k, depth=depth)


sets = st.lists(st.lists(st.integers(0, NUM - 1), unique=True).map(sorted), min_size=0, max_size=8)


def flat():
    return FaissRetriever(Plan("flat"))


def one_list():
    """An index that finds everything and yet is asked for more and filtered."""
    return FaissRetriever(Plan("ivf", nlist=1, effort=1))


@pytest.mark.parametrize("make", [ExactRetriever, flat, one_list])
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
    spy = Spy(built(one_list))
    own = [[], list(range(20)), [1], [], [2, 3]]
    search_excluding(spy, vectors(5, 1), 3, *ragged(own))
    assert spy.calls == [(1, 23), (2, 5), (2, 3)]


def test_the_places_of_a_batch_are_bounded(monkeypatch):
    monkeypatch.setattr(excluding, "MAX_PLACES", 30)
    spy = Spy(built(one_list))
    search_excluding(spy, vectors(6, 1), 5, *ragged([list(range(10))] * 3 + [[]] * 3))
    assert spy.calls == [(2, 15), (1, 15), (3, 5)]


def test_offsets_of_another_batch_are_refused():
    with pytest.raises(ValueError, match="2 queries need 3 offsets, got 2"):
        search_excluding(built(ExactRetriever), vectors(2, 1), 3, *ragged([[1]]))
    with pytest.raises(ValueError, match="must ascend"):
        search_excluding(built(one_list), vectors(1, 1), 3, *ragged([[5, 1]]))


@pytest.mark.parametrize("make", [ExactRetriever, flat])
def test_exact_search_masks_instead_of_fetching_more(make):
    spy = Spy(built(make))
    found = search_excluding(spy, vectors(2, 1), 3, *ragged([[1], list(range(NUM - 1))]))
    assert spy.calls == []
    assert found.row_BK[1].tolist() == [NUM - 1, -1, -1]


@settings(deadline=None, max_examples=150)
@given(st.data(), st.integers(1, 400), st.integers(1, 12), st.integers(1, 12), st.sampled_from([8, 24, 64, None]))
def test_groups_and_blocks_keep_the_order_of_ties(data, num, queries, k, block):
    """Inner products of small whole numbers: most places are tied, also at the cut and across groups and blocks."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    top = data.draw(st.integers(1, 3))
    item = torch.randint(-top, top + 1, (num, 2), generator=generator).float()
    if data.draw(st.booleans()):  # ever better items: the bar rises with every block
        item = item[(item @ torch.ones(2)).argsort()]
    query = torch.randint(0, 3, (queries, 2), generator=generator).float()
    banned_QI = torch.rand(queries, num, generator=generator) < data.draw(st.sampled_from([0.0, 0.1, 0.99]))
    score_QI = (query @ item.T).masked_fill(banned_QI, -math.inf)
    want_score, want_row = score_QI.sort(dim=1, descending=True, stable=True)
    retriever = ExactRetriever(item_block=block, query_chunk=5)
    retriever.build(item)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "GROUP", data.draw(st.sampled_from([8, 16])))
        patch.setattr(exact, "GROUP_MAXIMA", data.draw(st.sampled_from([1, 1 << 22])))
        found = search_excluding(retriever, query, k, *ragged([row.nonzero()[:, 0].tolist() for row in banned_QI]))
    kept = min(k, num)
    want_row = want_row.masked_fill(want_score == -math.inf, -1)
    assert found.row_BK[:, :kept].tolist() == want_row[:, :kept].tolist()
    assert found.score_BK[:, :kept].tolist() == want_score[:, :kept].tolist()
    assert bool((found.row_BK[:, kept:] == -1).all())


# -- indexes that look at a part of the vectors


NUM_MANY = 600
APPROXIMATE = {
    "ivf": Plan("ivf", nlist=15, effort=1),
    "sq": Plan("sq", nlist=15, sq_type="8bit", effort=1),
    "ivfpq": Plan("ivfpq", nlist=10, pq_m=4, pq_bits=4, effort=1),
    "ivfpq reranked": Plan("ivfpq", nlist=10, pq_m=4, pq_bits=4, rerank=3, effort=1),
    "hnsw": Plan("hnsw", hnsw_m=4, ef_construction=8, effort=4),
}


@pytest.fixture(scope="module", params=APPROXIMATE.values(), ids=APPROXIMATE)
def approximate(request):
    retriever = FaissRetriever(request.param)
    retriever.build(torch.cat([vectors(NUM_MANY - 50, 0), torch.ones(50, 4)]))
    return retriever


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.sets(st.integers(0, NUM_MANY - 1), max_size=40).map(sorted), min_size=1, max_size=6),
    st.integers(0, 8),
    st.integers(1, 100),
)
def test_a_list_is_short_only_if_fewer_rows_remain(approximate, drawn, kept, k):
    heavy = sorted(set(range(NUM_MANY)) - set(range(0, NUM_MANY, NUM_MANY // (kept + 1))))  # who has almost all
    drawn = [*drawn, heavy, list(range(NUM_MANY))]
    found = search_excluding(approximate, vectors(len(drawn), 1), k, *ragged(drawn))
    for b, own in enumerate(drawn):
        rows = found.row_BK[b][found.valid_BK[b]].tolist()
        assert len(rows) == len(set(rows)) == min(k, NUM_MANY - len(own))
        assert not set(rows) & set(own)
        assert found.row_BK[b].tolist() == rows + [-1] * (k - len(rows))
        scores = found.score_BK[b].tolist()
        assert scores == sorted(scores, reverse=True)
        assert all(score == -math.inf for score in scores[len(rows) :])


def test_only_queries_with_short_lists_are_searched_again_and_ever_deeper():
    retriever = FaissRetriever(Plan("ivf", nlist=16, effort=1))
    retriever.build(vectors(NUM_MANY, 0))
    query = vectors(8, 1)
    reach = [(retriever.search(query, NUM_MANY, depth=depth)[1] >= 0).sum(1) for depth in range(3)]
    assert retriever.deepest == 2
    assert bool((reach[0] < reach[1]).all())
    assert (reach[2] == NUM_MANY).all()  # all 16 lists
    k = int(reach[0].median()) + 1
    spy = Spy(retriever)
    found = search_excluding(spy, query, k, torch.zeros(9, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    short = [int((lists < k).sum()) for lists in reach]
    assert 0 < short[0] < 8
    assert spy.calls == [(8, k), (short[0], k)] + [(short[1], k)] * bool(short[1])
    assert spy.depths == [0, 1, 2][: len(spy.calls)]
    assert found.valid_BK.all()


def test_full_lists_are_those_of_one_search_of_the_index():
    retriever = FaissRetriever(Plan("ivf", nlist=16, effort=8))
    retriever.build(vectors(NUM_MANY, 0))
    query, own = vectors(5, 1), [list(range(b, NUM_MANY, 50)) for b in range(5)]
    spy = Spy(retriever)
    found = search_excluding(spy, query, 10, *ragged(own))
    assert spy.depths == [0]
    _, rows = retriever.search(query, 10 + 12)
    for b, banned in enumerate(own):
        assert found.row_BK[b].tolist() == [row for row in rows[b].tolist() if row not in banned][:10]

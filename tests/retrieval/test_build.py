"""Every kind of index against exact search computed in NumPy: recall as measured, floors, facts, determinism."""

from functools import cache
from typing import get_args

import numpy as np
import pytest
import torch

from cascade_kd.errors import UserError
from cascade_kd.retrieval import ExactRetriever, FaissRetriever, IndexConfig, build, build_index, faiss_module
from cascade_kd.retrieval.check import Truth
from cascade_kd.retrieval.plan import Plan
from cascade_kd.retrieval.settings import Kind

NUM, DIM, K = 3000, 8, 20
CONFIGS = {
    "flat": {"kind": "flat"},
    "torch": {"kind": "torch"},
    "ivf": {"kind": "ivf", "nlist": 32},
    "ivf, few lists looked into": {"kind": "ivf", "nlist": 32, "nprobe": 2, "recall_floor": 0.01},
    "ivfpq": {"kind": "ivfpq", "pq_bits": 6, "rerank": 8},
    "ivfpq, not reranked": {"kind": "ivfpq", "pq_bits": 4, "pq_m": 2, "rerank": 0, "recall_floor": 0.01},
    "sq": {"kind": "sq"},
    "sq of 8 bits": {"kind": "sq", "sq_type": "8bit", "recall_floor": 0.9},
    "sq of 8 bits, reranked": {"kind": "sq", "sq_type": "8bit", "rerank": 2},
    "sq, plain scan": {"kind": "sq", "nlist": 1},
    "hnsw": {"kind": "hnsw", "ef_construction": 40},
    "hnsw, few looked at": {"kind": "hnsw", "hnsw_m": 4, "ef_search": 1, "recall_floor": 0.01},
}
ALL = pytest.mark.parametrize("name", CONFIGS)


def normal(num, seed):
    return torch.randn(num, DIM, generator=torch.Generator().manual_seed(seed))


def clustered(num, seed):
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randint(0, 40, (num,), generator=generator)
    return 2 * normal(40, 99)[centre] + 0.3 * torch.randn(num, DIM, generator=generator)


SHAPES = {"random": normal, "clustered": clustered}


@cache
def built(name, shape):
    make = SHAPES[shape]
    return build_index(IndexConfig(**CONFIGS[name]), make(NUM, 0), make(100, 1), K)


def brute_recall(query, item, rows, k):
    """The share of the k best by a full sort in float64 that are among ``rows``, one number a query."""
    score = query.double().numpy() @ item.double().numpy().T
    best = np.argsort(-score, axis=1, kind="stable")[:, :k]
    return np.array([len(set(a) & set(b)) / best.shape[1] for a, b in zip(best.tolist(), rows.tolist(), strict=True)])


def test_every_kind_is_among_them():
    assert {keys["kind"] for keys in CONFIGS.values()} == set(get_args(Kind))


@ALL
@pytest.mark.parametrize("shape", SHAPES)
def test_recall_as_measured_is_that_of_a_full_sort(name, shape):
    index, make = built(name, shape), SHAPES[shape]
    score, row = index.retriever.search(make(100, 1), K)
    want = brute_recall(make(100, 1), make(NUM, 0), row, K)
    measured = index.facts[f"recall@{K}"]
    if name == "torch":
        assert measured == {"mean": None, "why": "exact search in torch is what others are measured against"}
        assert want.min() == 1
        return
    assert measured["mean"] == pytest.approx(want.mean(), abs=1e-9)
    assert measured["stderr"] == pytest.approx(want.std(ddof=1) / 10, abs=1e-9)
    assert measured["n"] == 100
    assert measured["mean"] >= IndexConfig(**CONFIGS[name]).floor
    assert bool((score[:, 1:] <= score[:, :-1]).all())
    if CONFIGS[name]["kind"] in ("flat", "ivf", "hnsw") or CONFIGS[name].get("rerank"):
        exact = (make(100, 1) @ make(NUM, 0).T).gather(1, row.clamp(min=0)).masked_fill(row < 0, -torch.inf)
        assert score.numpy() == pytest.approx(exact.numpy(), abs=1e-4)


def test_some_of_them_miss_something():
    low = [name for name in CONFIGS if name != "torch" and built(name, "random").facts[f"recall@{K}"]["mean"] < 0.9]
    assert low == ["ivf, few lists looked into", "ivfpq, not reranked", "hnsw, few looked at"]


@ALL
def test_every_vector_can_be_found(name):
    retriever = built(name, "clustered").retriever
    row = retriever.search(clustered(2, 1), NUM, depth=retriever.deepest)[1]
    assert row.sort().values.tolist() == [list(range(NUM))] * 2
    score, row = retriever.search(clustered(2, 1), NUM + 5, depth=retriever.deepest)
    assert (row[:, NUM:] == -1).all()
    assert (score[:, NUM:] == -torch.inf).all()
    assert ((row == -1) == (score == -torch.inf)).all()


@ALL
def test_places_for_which_nothing_was_found_are_padded(name):
    score, row = built(name, "random").retriever.search(normal(30, 2), NUM)
    assert ((row == -1) == (score == -torch.inf)).all()
    count = (row >= 0).sum(dim=1)
    for rows, num in zip(row.tolist(), count.tolist(), strict=True):
        assert len(set(rows[:num])) == num
        assert set(rows[num:]) <= {-1}


@ALL
def test_the_same_build_twice_is_the_same_index(name):
    again = build_index(IndexConfig(**CONFIGS[name]), normal(NUM, 0), normal(100, 1), K)
    one, two = (index.retriever.search(normal(50, 3), 200) for index in (built(name, "random"), again))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    without_time = [
        {key: value for key, value in index.facts.items() if key != "build_seconds"}
        for index in (built(name, "random"), again)
    ]
    assert without_time[0] == without_time[1]


@pytest.mark.parametrize(
    "plan",
    [
        Plan("ivf", nlist=20, effort=1),
        Plan("ivfpq", nlist=20, pq_m=4, pq_bits=4, effort=1),
        Plan("hnsw", hnsw_m=4, ef_construction=4, effort=1),
    ],
    ids=lambda plan: plan.kind,
)
def test_another_seed_draws_anew(plan):
    scores = []
    for seed in (0, 1, 0):
        index = FaissRetriever(plan, seed=seed)
        index.build(normal(NUM, 0))
        scores.append(index.search(normal(50, 3), 200)[0])
    assert torch.equal(scores[0], scores[2])
    assert not torch.equal(scores[0], scores[1])


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "torch"])
def test_bytes_are_those_of_the_index_written_out(name):
    retriever = built(name, "random").retriever
    written = len(faiss_module.load_faiss().serialize_index(retriever._index)) / NUM
    kept = 4 * DIM if retriever.plan.rerank else 0
    assert built(name, "random").facts["bytes_per_vector"] == pytest.approx(written + kept, rel=0.03)


def test_facts_name_what_was_built():
    facts = built("ivfpq", "random").facts
    assert {key: facts[key] for key in ("kind", "nlist", "pq_m", "pq_bits", "rerank")} == {
        "kind": "ivfpq",
        "nlist": 76,
        "pq_m": 4,
        "pq_bits": 6,
        "rerank": 8,
    }
    assert facts["build_seconds"] > 0
    assert built("hnsw, few looked at", "random").facts["ef_search"] == 1
    assert built("flat", "random").facts.keys() == {"kind", f"recall@{K}", "build_seconds", "bytes_per_vector"}


@pytest.mark.parametrize(("kind", "key"), [("ivf", "nprobe"), ("hnsw", "ef_search")])
def test_an_effort_that_is_not_set_is_the_least_that_is_safe(kind, key):
    config = IndexConfig(kind=kind, recall_floor=0.9)
    index = build_index(config, normal(NUM, 0), normal(100, 1), K)
    effort = index.facts[key]
    recall = {}
    for tried in (effort // 2, effort):
        index.retriever.effort = tried
        _, row = index.retriever.search(normal(100, 1), K)
        shares = brute_recall(normal(100, 1), normal(NUM, 0), row, K)
        recall[tried] = shares.mean() - 2 * shares.std(ddof=1) / 10
    assert recall[effort] >= 0.9
    assert effort == 8 or recall[effort // 2] < 0.9


def test_without_queries_nothing_is_measured_and_all_is_looked_at():
    for queries in (None, normal(0, 1)):
        index = build_index(IndexConfig(kind="ivf", nlist=16), normal(NUM, 0), queries, K)
        assert index.facts[f"recall@{K}"] == {"mean": None, "why": "there is nothing to measure it on"}
        assert index.facts["nprobe"] == 16
        row = index.retriever.search(normal(9, 1), K)[1]
        assert brute_recall(normal(9, 1), normal(NUM, 0), row, K).min() == 1


# -- floors


@pytest.mark.parametrize(
    ("keys", "remedy"),
    [
        ({"kind": "ivf", "nprobe": 1}, "Raise nprobe, now 1, or leave it out to have it found"),
        ({"kind": "hnsw", "ef_search": 2, "hnsw_m": 4}, "Raise ef_search, now 2, or leave it out to have it found"),
        ({"kind": "ivfpq", "pq_bits": 4, "pq_m": 2}, "The codes are too coarse: raise rerank or pq_m"),
        ({"kind": "ivfpq", "pq_bits": 4, "pq_m": 2, "nprobe": 60}, "The codes are too coarse: raise rerank or pq_m"),
        (
            {"kind": "sq", "sq_type": "8bit", "recall_floor": 1.0},
            'The numbers are too coarse: raise rerank, or take sq_type = "fp16"',
        ),
    ],
)
def test_an_index_below_its_floor_is_refused_with_the_key_to_change(keys, remedy):
    config = IndexConfig(**keys)
    with pytest.raises(UserError) as caught:
        build_index(config, normal(NUM, 0), normal(100, 1), K)
    said, _, advice = str(caught.value).partition(". ")
    start, _, rest = said.partition(" finds ")
    share, _, rest = rest.partition(" ")
    assert start == f"[index] kind '{config.kind}'"
    assert 0 < float(share) < config.floor
    assert rest == (f"of the {K} items that exact search finds for 100 held queries; recall_floor is {config.floor:g}")
    assert advice == f"{remedy}; or lower recall_floor"
    shown = build_index(config.model_copy(update={"recall_floor": float(share) - 1e-4}), *two(), K)
    if config.nprobe or config.ef_search:
        assert shown.facts[f"recall@{K}"]["mean"] == pytest.approx(float(share), abs=1e-4)


def two():
    return normal(NUM, 0), normal(100, 1)


def test_a_graph_that_searching_harder_does_not_help_is_to_be_linked_anew(monkeypatch):
    monkeypatch.setattr(build, "MOST_EF", 8)
    config = IndexConfig(kind="hnsw", hnsw_m=2, ef_construction=1)
    with pytest.raises(UserError, match="Raise hnsw_m or ef_construction; or lower recall_floor"):
        build_index(config, *two(), K)


def test_an_exact_index_that_errs_is_refused(monkeypatch):
    search = FaissRetriever.search

    def one_off(self, query_BD, k, *, depth=0):
        score, row = search(self, query_BD, k, depth=depth)
        return score, (row + 1) % NUM

    monkeypatch.setattr(FaissRetriever, "search", one_off)
    with pytest.raises(
        UserError, match=r"kind 'flat' finds 0\.0.* recall_floor is 0\.999\. This faiss computes wrongly"
    ):
        build_index(IndexConfig(), *two(), K)


# -- the measure itself


class Answers:
    """Gives the rows it was told to."""

    def __init__(self, row):
        self.row = torch.tensor(row)

    def search(self, query_BD, k, *, depth=0):
        return torch.zeros(self.row.shape), self.row


def test_recall_counts_each_found_item_once_and_padding_never():
    item, query = torch.tensor([[5.0], [4.0], [3.0], [2.0], [1.0]]), torch.ones(5, 1)
    truth = Truth(item, query, 3)
    rows = [[0, 1, 2], [2, 1, 0], [0, 0, 0], [3, 4, 0], [-1, -1, 1]]
    assert truth.recall(Answers(rows)).tolist() == pytest.approx([1, 1, 1 / 3, 1 / 3, 1 / 3])


def test_of_equal_scores_at_the_cut_any_may_be_found():
    item, query = torch.tensor([[2.0], [1.0], [1.0], [1.0], [0.0]]), torch.ones(2, 1)
    assert Truth(item, query, 2).recall(Answers([[0, 3], [0, 4]])).tolist() == [1, 0.5]
    same = torch.ones(500, 4)
    for kind in ("flat", "ivf", "sq", "hnsw"):
        index = build_index(IndexConfig(kind=kind), same, same[:9], 30)
        assert index.facts["recall@30"]["mean"] == 1.0
        assert (
            index.retriever.search(same[:2], 600, depth=index.retriever.deepest)[1][:, :500].sort().values.tolist()
            == [list(range(500))] * 2
        )


def test_recall_is_of_the_items_that_there_are():
    assert Truth(normal(3, 0), normal(2, 1), 10).recall(Answers([[2, 0, 1, -1], [1, -1, -1, -1]])).tolist() == [
        1,
        1 / 3,
    ]
    for bad in ((normal(0, 0), normal(2, 1)), (normal(2, 0), normal(0, 1))):
        with pytest.raises(ValueError, match="at least one query and one vector"):
            Truth(*bad, 1)


def test_recall_measured_in_chunks_is_the_same(monkeypatch):
    retriever = built("ivf, few lists looked into", "random").retriever
    whole = Truth(*two(), K).recall(retriever)
    monkeypatch.setattr("cascade_kd.retrieval.check.PLACES_AT_ONCE", 3 * K)
    assert torch.equal(Truth(*two(), K).recall(retriever), whole)


# -- edges


@ALL
def test_one_vector_and_none(name):
    config = IndexConfig(**CONFIGS[name])
    index = build_index(config, normal(1, 0), normal(3, 1), K)
    score, row = index.retriever.search(normal(2, 1), 4)
    assert row.tolist() == [[0, -1, -1, -1]] * 2
    assert score[:, 0].tolist() == pytest.approx((normal(2, 1) @ normal(1, 0)[0]).tolist(), abs=1e-2)
    empty = build_index(config, normal(0, 0), normal(3, 1), K)
    assert empty.retriever.search(normal(2, 1), 4)[1].tolist() == [[-1] * 4] * 2
    assert built(name, "random").retriever.search(normal(0, 1), 4)[1].shape == (0, 4)


@ALL
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_vectors_of_a_diverged_model_are_refused(name, bad):
    item = normal(NUM, 0)
    item[7, 2] = bad
    with pytest.raises(UserError, match="1 of 3000 item vectors hold NaN or infinity, the first is row 7"):
        build_index(IndexConfig(**CONFIGS[name]), item, normal(5, 1), K)
    with pytest.raises(UserError, match="of 8 query vectors hold NaN"):
        built(name, "random").retriever.search(item[:8], K)


@pytest.mark.parametrize("name", ["ivf", "hnsw", "ivfpq"])
def test_ties_go_to_the_smaller_row(name):
    """Every vector eight times: equal scores stand in order of rows, whatever faiss does inside."""
    item = normal(NUM, 0).repeat(8, 1)
    index = build_index(IndexConfig(**CONFIGS[name]), item, normal(50, 1), K)
    score, row = index.retriever.search(normal(30, 2), 64)
    tied = (score[:, 1:] == score[:, :-1]) & (row[:, 1:] >= 0)
    assert bool(tied.any())
    assert bool((row[:, 1:] > row[:, :-1])[tied].all())


def test_building_again_replaces_what_was_there():
    for keys in CONFIGS.values():
        index = build_index(IndexConfig(**keys), normal(NUM, 0), None, K).retriever
        index.build(normal(2000, 5).double().requires_grad_())
        assert index.num_vectors == 2000
        score, row = index.search(normal(3, 1), 2000, depth=index.deepest)
        assert row.sort().values.tolist() == [list(range(2000))] * 3
        assert not score.requires_grad


def test_without_faiss_every_kind_is_served_exactly(monkeypatch):
    monkeypatch.setattr("cascade_kd.retrieval.retriever.faiss_is_installed", lambda: False)
    index = build_index(IndexConfig(kind="ivfpq"), *two(), K)
    assert isinstance(index.retriever, ExactRetriever)
    assert index.facts["kind"] == "torch"
    assert "faiss is not installed" in index.notes[0]


def test_a_graph_is_built_on_one_thread_and_the_others_come_back(monkeypatch):
    faiss = faiss_module.load_faiss()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(2)
    try:
        for kind, threads in (("hnsw", 1), ("ivf", 2)):
            with faiss_module.threads_of_build(Plan(kind)):
                assert faiss.omp_get_max_threads() == threads
            assert faiss.omp_get_max_threads() == 2
    finally:
        faiss.omp_set_num_threads(before)

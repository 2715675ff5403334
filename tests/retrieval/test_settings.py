"""The keys of [index]: which kind takes which, and what is built of them over a catalogue."""

from typing import get_args

import pydantic
import pytest
import torch

from cascade_kd.config.files import StageFile
from cascade_kd.config.problems import validate
from cascade_kd.errors import UserError
from cascade_kd.retrieval import FaissRetriever, IndexConfig
from cascade_kd.retrieval.plan import Plan, make_plan
from cascade_kd.retrieval.settings import TAKEN_BY, Kind

KINDS = get_args(Kind)
VALUES = {"sq_type": "8bit", "recall_floor": 0.9, "hnsw_m": 8, "pq_bits": 6}


@pytest.mark.parametrize("key", TAKEN_BY)
@pytest.mark.parametrize("kind", KINDS)
def test_a_key_is_taken_by_its_kinds_and_refused_by_the_others_at_its_own_place(kind, key):
    index = {"kind": kind, key: VALUES.get(key, 4)}
    found, faults = validate(StageFile, {"index": index})
    if kind in TAKEN_BY[key]:
        assert faults == []
        assert getattr(found.index, key) == index[key]
    else:
        owners = [f"'{kind}'" for kind in TAKEN_BY[key]]
        listed = " or ".join([", ".join(owners[:-1]), owners[-1]] if len(owners) > 1 else owners)
        assert [(fault.path, fault.message) for fault in faults] == [
            (("index", key), f"kind '{kind}' takes no {key}; it belongs to kind {listed}")
        ]


def test_every_key_has_its_kinds():
    assert {"kind", *TAKEN_BY} == set(IndexConfig.model_fields)


@pytest.mark.parametrize(
    ("index", "key", "message"),
    [
        ({"kind": "hsnw"}, "kind", "want one of 'flat', 'ivf', 'ivfpq', 'hnsw', 'sq', 'torch'"),
        ({"kind": "ivf", "nprob": 3}, "nprob", "unknown key; did you mean 'nprobe'?"),
        ({"kind": "ivf", "nlist": 0}, "nlist", "want a number >= 1, got 0"),
        ({"kind": "ivf", "nlist": 8, "nprobe": 9}, "nprobe", "want at most the 8 lists of nlist, got 9"),
        ({"kind": "ivfpq", "pq_bits": 9}, "pq_bits", "want a number <= 8, got 9"),
        ({"kind": "sq", "sq_type": "4bit"}, "sq_type", "want one of 'fp16', '8bit'"),
        ({"kind": "ivf", "recall_floor": 0}, "recall_floor", "want a number > 0, got 0"),
        ({"kind": "ivf", "recall_floor": 1.1}, "recall_floor", "want a number <= 1, got 1.1"),
    ],
)
def test_wrong_values_are_said_at_their_key(index, key, message):
    _, faults = validate(StageFile, {"index": index})
    assert [fault.path for fault in faults] == [("index", key)]
    assert faults[0].message.startswith(message)


def test_all_misplaced_keys_are_said_at_once():
    with pytest.raises(pydantic.ValidationError) as caught:
        IndexConfig(kind="flat", nlist=3, hnsw_m=4)
    assert [error["loc"] for error in caught.value.errors()] == [("nlist",), ("hnsw_m",)]


def test_floors_and_queries_unless_they_are_set():
    assert [IndexConfig(kind=kind).floor for kind in ("flat", "ivf", "hnsw")] == [0.999, 0.95, 0.95]
    assert [IndexConfig(kind=kind).is_exact for kind in KINDS] == [kind in ("flat", "torch") for kind in KINDS]
    assert IndexConfig(kind="ivf", recall_floor=0.5, check_queries=9).floor == 0.5
    assert IndexConfig(kind="ivf", recall_floor=0.5, check_queries=9).num_queries == 9
    assert IndexConfig().num_queries == 256


# -- plans


def plan(num_items, dim=64, **keys):
    return make_plan(IndexConfig(**keys), num_items, dim)


def test_the_defaults_of_a_large_catalogue():
    assert plan(10**6, kind="flat") == Plan("flat")
    assert plan(10**6, kind="ivf") == Plan("ivf", nlist=2000)
    assert plan(10**6, kind="sq") == Plan("sq", nlist=2000, sq_type="fp16")
    assert plan(10**6, kind="ivfpq") == Plan("ivfpq", nlist=2000, pq_m=32, pq_bits=8, rerank=2)
    assert plan(10**6, kind="hnsw") == Plan("hnsw", hnsw_m=32, ef_construction=100)


def test_keys_that_are_set_stand():
    assert plan(10**6, kind="ivf", nlist=100, nprobe=7) == Plan("ivf", nlist=100, effort=7)
    asked = {"kind": "ivfpq", "nlist": 50, "pq_m": 16, "pq_bits": 6, "rerank": 0}
    assert plan(10**6, **asked) == Plan("ivfpq", nlist=50, pq_m=16, pq_bits=6, rerank=0)
    assert plan(10**6, kind="sq", sq_type="8bit", rerank=3) == Plan("sq", nlist=2000, sq_type="8bit", rerank=3)
    asked = {"kind": "hnsw", "hnsw_m": 5, "ef_construction": 6, "ef_search": 7}
    assert plan(9, **asked) == Plan("hnsw", hnsw_m=5, ef_construction=6, effort=7)


@pytest.mark.parametrize(("num_items", "nlist"), [(10**4, 200), (6084, 156), (3900, 100), (156, 4)])
def test_a_small_catalogue_gets_fewer_lists_without_a_word(num_items, nlist):
    assert plan(num_items, kind="ivf").nlist == nlist
    assert plan(num_items, kind="ivf").notes == ()


def test_lists_that_were_asked_for_and_cannot_be_trained_are_said():
    small = plan(400, kind="ivf", nlist=64, nprobe=32)
    assert (small.nlist, small.effort) == (10, 10)
    assert small.notes == (
        "[index] nlist: 64 lists need 2,496 items to be trained, 39 each, and there are 400: 10 lists serve",
    )


@pytest.mark.parametrize(
    ("num_items", "keys", "need"),
    [
        (155, {"kind": "ivf"}, "156 items to train a few lists"),
        (155, {"kind": "sq", "nlist": 7}, "156 items to train a few lists"),
        (9983, {"kind": "ivfpq"}, "9,984 items to train its codes of 8 bits"),
        (600, {"kind": "ivfpq", "pq_bits": 4}, "624 items to train its codes of 4 bits"),
    ],
)
def test_flat_serves_a_catalogue_too_small_to_train_on(num_items, keys, need):
    small = plan(num_items, **keys)
    assert small == Plan("flat")
    assert small.notes == (f"[index] kind '{keys['kind']}' needs {need}, and there are {num_items:,}: 'flat' serves",)


def test_few_lists_are_built_where_few_are_asked_for():
    assert plan(5, kind="sq", nlist=1) == Plan("sq", nlist=1, sq_type="fp16")
    assert plan(100, kind="ivf", nlist=2) == Plan("ivf", nlist=2)
    assert plan(1, kind="hnsw").kind == "hnsw"
    assert {plan(0, kind=kind).kind for kind in KINDS if kind != "torch"} == {"flat"}


@pytest.mark.parametrize(("dim", "parts"), [(64, 32), (10, 5), (9, 9), (7, 7), (1, 1), (2, 1)])
def test_parts_of_at_most_two_numbers(dim, parts):
    assert plan(10**5, dim, kind="ivfpq").pq_m == parts


def test_parts_that_do_not_divide_the_vectors_are_refused():
    with pytest.raises(UserError, match=r"pq_m = 5 does not divide the 12 numbers .* want one of 1, 2, 3, 4, 6, 12,"):
        plan(10**5, 12, kind="ivfpq", pq_m=5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("keys", [{"kind": "ivf"}, {"kind": "ivfpq", "pq_bits": 4}, {"kind": "sq"}])
def test_faiss_does_not_complain_of_what_a_plan_trains_on(keys, capfd):
    for num_items in (624, 1000):
        retriever = FaissRetriever(plan(num_items, 8, **keys))
        retriever.build(torch.randn(num_items, 8, generator=torch.Generator().manual_seed(0)))
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")

"""Indexes on the GPU, and what serves where the GPU or faiss cannot."""

from types import SimpleNamespace

import pytest
import torch

from cascade_kd.retrieval import ExactRetriever, FaissRetriever, IndexConfig, build_index, faiss_module, make_retriever
from cascade_kd.retrieval import retriever as retriever_module
from cascade_kd.retrieval.plan import Plan

NUM, DIM, K = 5000, 16, 30
KINDS = {
    "flat": {},
    "torch": {},
    "ivf": {},
    "ivfpq": {"pq_m": 8, "pq_bits": 8, "nlist": 40, "recall_floor": 0.8},
    "sq": {"sq_type": "8bit", "recall_floor": 0.9},
}


def vectors(num, seed):
    return torch.randn(num, DIM, generator=torch.Generator().manual_seed(seed))


def why_not():
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    return "" if faiss_module.sees_gpu() else "faiss.get_num_gpus() is 0"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("kind", [*KINDS, "hnsw"])
def test_every_kind_serves_vectors_on_the_gpu(kind):
    config = IndexConfig(kind=kind, **KINDS.get(kind, {}))
    item, query = vectors(12 * NUM, 0).cuda(), vectors(200, 1).cuda()
    index = build_index(config, item, query, K)
    score, row = index.retriever.search(query, K)
    assert score.is_cuda
    assert row.is_cuda
    truth = (query @ item.T).topk(K).indices.cpu().tolist()
    found = sum(len(set(a) & set(b)) for a, b in zip(row.cpu().tolist(), truth, strict=True)) / (200 * K)
    assert found >= config.floor - 1e-3
    wide = index.retriever.search(query[:3], 3000, depth=index.retriever.deepest)[1]
    assert bool((wide >= 0).all())


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_the_gpu_index_finds_what_the_cpu_index_finds(kind):
    if reason := why_not():
        pytest.skip(reason)
    config = IndexConfig(kind=kind, **KINDS[kind])
    item, query = vectors(12 * NUM, 0), vectors(200, 1)
    cpu = build_index(config, item, query, K)
    gpu = build_index(config, item.cuda(), query.cuda(), K)
    if isinstance(gpu.retriever, FaissRetriever):
        assert gpu.retriever.on_gpu
        assert gpu.notes == ()
    there, here = gpu.retriever.search(query.cuda(), K)[0].cpu(), cpu.retriever.search(query, K)[0]
    close = torch.isclose(there[:, 0], here[:, 0], rtol=1e-3, atol=1e-3).double().mean()
    assert close > 0.9
    again = build_index(config, item.cuda(), query.cuda(), K)
    assert again.facts[f"recall@{K}"] == gpu.facts[f"recall@{K}"]


@pytest.mark.gpu
def test_the_gpu_index_waits_for_what_torch_has_not_written_yet():
    if reason := why_not():
        pytest.skip(reason)
    index = build_index(IndexConfig(), vectors(NUM, 0).cuda(), vectors(9, 1).cuda(), K).retriever
    with torch.cuda.stream(torch.cuda.Stream()):
        query = vectors(64, 2).cuda()
        for _ in range(50):
            query = torch.nn.functional.normalize(query @ query.T @ query)
        score, row = index.search(query, 5)
        want = (query @ vectors(NUM, 0).cuda().T).topk(5).values
        torch.testing.assert_close(score, want, rtol=1e-4, atol=1e-4)
        assert bool((row >= 0).all())


# -- without a GPU: who serves, and what is said


def test_exact_search_in_torch_serves_a_gpu_that_faiss_cannot_use(monkeypatch):
    monkeypatch.setattr(retriever_module, "sees_gpu", lambda: False)
    serving, notes = make_retriever(IndexConfig(), NUM, DIM, torch.device("cuda"))
    assert isinstance(serving, ExactRetriever)
    assert notes == [
        "[index] kind 'flat': this faiss sees no GPU, exact search in torch serves; pip install 'cascade-kd[gpu]' "
        "instead of [cpu]"
    ]
    assert isinstance(make_retriever(IndexConfig(), NUM, DIM, torch.device("cpu"))[0], FaissRetriever)


@pytest.mark.parametrize(
    ("plan", "sees", "error", "why"),
    [
        (Plan("hnsw", hnsw_m=4, ef_construction=4), True, None, "faiss has no GPU version of it; 'ivf', 'ivfpq' and"),
        (Plan("ivf", nlist=4), False, None, "this faiss sees no GPU; pip install 'cascade-kd[gpu]' instead of [cpu]"),
        (Plan("ivf", nlist=4), True, "Error in x:\nno such kernel", "faiss cannot put it on the GPU: no such kernel"),
    ],
)
def test_what_cannot_go_to_the_gpu_is_searched_on_the_cpu_and_said(monkeypatch, plan, sees, error, why):
    def to_gpu(index, device):
        raise RuntimeError(error)

    monkeypatch.setattr(faiss_module, "sees_gpu", lambda: sees)
    monkeypatch.setattr(faiss_module, "to_gpu", to_gpu)
    retriever = FaissRetriever(plan)
    retriever._index = faiss_module.new_index(plan, DIM, 0)
    retriever._move_to_gpu(0)
    assert not retriever.on_gpu
    (note,) = retriever.notes
    assert note.startswith(f"[index] kind '{plan.kind}' is searched on the CPU: {why}")


def test_faiss_works_on_the_stream_of_torch_and_gives_its_own_back(monkeypatch):
    """The order of calls, on a stand-in for the resources of a GPU."""
    calls = []
    resources = SimpleNamespace(
        getDefaultStream=lambda device: f"own stream of {device}",
        setDefaultStream=lambda device, stream: calls.append((device, stream)),
    )
    faiss = SimpleNamespace(cast_integer_to_cudastream_t=lambda number: f"stream {number}")
    monkeypatch.setattr(faiss_module, "load_faiss", lambda: faiss)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=77))
    with faiss_module.stream_of(resources, SimpleNamespace(get_device=lambda: 1)):
        calls.append("search")
    assert calls == [(1, "stream 77"), "search", (1, "own stream of 1")]
    with faiss_module.stream_of(None, torch.zeros(1)):
        pass

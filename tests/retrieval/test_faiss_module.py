"""faiss: imported late, checked, tuned, and at peace with torch in either import order."""

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import get_args

import pytest
import torch

from cascade_kd.errors import UserError
from cascade_kd.retrieval import ExactRetriever, FaissRetriever, IndexConfig, faiss_module, make_retriever, retriever
from cascade_kd.retrieval.plan import Plan
from cascade_kd.retrieval.settings import Kind

CPU = torch.device("cpu")
WORK = """
def work():
    vectors = torch.randn(5000, 32)
    weight = torch.randn(32, 32, requires_grad=True)
    index = faiss.IndexFlatIP(32)
    index.add(vectors.numpy())
    centres = faiss.Kmeans(32, 16, niter=3, spherical=True)
    for _ in range(3):
        loss = (vectors @ weight).square().mean()
        loss.backward()
        score, row = index.search(vectors[:600].numpy(), 10)
        assert (torch.from_numpy(row) >= 0).all()
        assert torch.allclose((vectors[:600] @ vectors.T).amax(1), torch.from_numpy(score)[:, 0], atol=1e-3)
        centres.train(vectors.numpy())
    return float(weight.grad.norm()) > 0 and bool(torch.from_numpy(centres.centroids).isfinite().all())
"""
IN_CHILD = """
import multiprocessing
if __name__ == "__main__":
    first = work()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print("done", first and pool.apply_async(work).get(100))
"""


def python(*arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )


@pytest.mark.parametrize(
    "imports", ["import torch, faiss", pytest.param("import faiss, torch", marks=pytest.mark.slow)]
)
def test_both_import_orders_search_cluster_and_train_and_so_does_a_spawned_child(imports, tmp_path):
    """A forked child would hang: the threads that the parent's OpenMP counts on do not come along."""
    script = tmp_path / "work.py"
    script.write_text(imports + WORK + IN_CHILD, "utf-8")
    result = python(str(script))
    assert (result.returncode, result.stdout.strip()) == (0, "done True"), result.stderr


def test_importing_retrieval_does_not_import_faiss():
    code = "import sys, torch, cascade_kd.retrieval as r; r.make_retriever(r.IndexConfig(), 9, 2, torch.device('cpu'))"
    result = python("-c", f"{code}; print('faiss' in sys.modules)")
    assert result.stdout.strip() == "False", result.stderr


def test_two_distributions_of_faiss_are_refused_with_the_mend():
    with pytest.raises(UserError, match="pip uninstall -y faiss-cpu faiss-gpu, then pip install 'cascade-kd\\[cpu\\]'"):
        faiss_module.check_one_distribution(["faiss-gpu", "faiss-cpu", "faiss-cpu"])
    faiss_module.check_one_distribution(["faiss-cpu", "faiss-cpu"])  # one distribution may be listed per file
    faiss_module.check_one_distribution([])  # built from source


@pytest.fixture
def fresh():
    """load_faiss forgets that it has run, before and after."""
    faiss_module.load_faiss.cache_clear()
    yield
    faiss_module.load_faiss.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_a_doubled_faiss_stops_the_build(monkeypatch):
    both = {"faiss": ["faiss-cpu", "faiss-gpu"]}
    monkeypatch.setattr(faiss_module.importlib.metadata, "packages_distributions", lambda: both)
    with pytest.raises(UserError, match="installed 2 times"):
        FaissRetriever(Plan("flat")).build(torch.zeros(2, 2))


@pytest.mark.usefixtures("fresh")
def test_an_empty_shell_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", SimpleNamespace(__spec__=object()))
    with pytest.raises(UserError, match="empty shell"):
        faiss_module.load_faiss()


@pytest.mark.usefixtures("fresh")
def test_without_faiss_torch_serves_and_says_so(monkeypatch):
    monkeypatch.setattr(faiss_module, "faiss_is_installed", lambda: False)
    monkeypatch.setattr(retriever, "faiss_is_installed", lambda: False)
    for kind in set(get_args(Kind)) - {"torch"}:
        serving, (note,) = make_retriever(IndexConfig(kind=kind), 10**6, 64, CPU)
        assert isinstance(serving, ExactRetriever)
        assert note == (
            f"[index] kind '{kind}': faiss is not installed, exact search in torch serves; "
            "pip install 'cascade-kd[cpu]' brings faiss"
        )
    assert make_retriever(IndexConfig(kind="torch"), 10**6, 64, CPU)[1] == []
    with pytest.raises(UserError, match="pip install 'cascade-kd\\[cpu\\]'"):
        faiss_module.load_faiss()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((128000, 1024, 4096), (1600, 65536, 512)),  # faiss 1.15
        ((20, 1024, 4096), (20, 1024, 4096)),  # older: nothing to mend
        ((5, 1, 1), (5, 1, 1)),  # the user's own
        ((128000, 2048, 4096), (1600, 2048, 4096)),
    ],
)
def test_the_blas_threshold_is_mended_only_at_its_default(before, after):
    names = ("distance_compute_blas_threshold", "distance_compute_blas_database_bs", "distance_compute_blas_query_bs")
    cvar = SimpleNamespace(**dict(zip(names, before, strict=True)))
    faiss_module.tune_blas(SimpleNamespace(cvar=cvar, omp_get_max_threads=lambda: 2))
    assert tuple(getattr(cvar, name) for name in names) == after


def test_the_installed_faiss_is_not_left_at_the_slow_default():
    faiss = faiss_module.load_faiss()
    assert faiss.cvar.distance_compute_blas_threshold < 128000

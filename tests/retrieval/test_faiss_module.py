"""faiss: imported late, checked, tuned, and at peace with torch in either import order."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from cascade_kd.errors import UserError
from cascade_kd.retrieval import ExactRetriever, FlatRetriever, IndexConfig, faiss_module, make_retriever, retriever

WORK = """
vectors = torch.randn(5000, 32)
weight = torch.randn(32, 32, requires_grad=True)
index = faiss.IndexFlatIP(32)
index.add(vectors.numpy())
for _ in range(3):
    loss = (vectors @ weight).square().mean()
    loss.backward()
    score, row = index.search(vectors[:600].numpy(), 10)
    assert (torch.from_numpy(row) >= 0).all()
    assert torch.allclose((vectors[:600] @ vectors.T).amax(1), torch.from_numpy(score)[:, 0], atol=1e-3)
print("done", float(weight.grad.norm()) > 0)
"""


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "2", **environment},
    )


@pytest.mark.parametrize("imports", ["import torch, faiss", "import faiss, torch"])
def test_both_import_orders_search_and_train(imports):
    result = python(imports + WORK)
    assert (result.returncode, result.stdout.strip()) == (0, "done True"), result.stderr


def test_importing_retrieval_does_not_import_faiss():
    code = "import sys, cascade_kd.retrieval as r; r.make_retriever(r.IndexConfig()); print('faiss' in sys.modules)"
    result = python(code)
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
        FlatRetriever().build(torch.zeros(2, 2))


@pytest.mark.usefixtures("fresh")
def test_an_empty_shell_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", SimpleNamespace(__spec__=object()))
    with pytest.raises(UserError, match="empty shell"):
        faiss_module.load_faiss()


@pytest.mark.usefixtures("fresh")
def test_without_faiss_torch_serves_and_says_so(monkeypatch):
    monkeypatch.setattr(faiss_module, "faiss_is_installed", lambda: False)
    monkeypatch.setattr(retriever, "faiss_is_installed", lambda: False)
    serving, note = make_retriever(IndexConfig(kind="flat"))
    assert isinstance(serving, ExactRetriever)
    assert "exact search in torch serves" in note
    assert make_retriever(IndexConfig(kind="torch"))[1] == ""
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

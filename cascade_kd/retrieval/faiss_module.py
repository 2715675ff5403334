"""The one place that talks to faiss: imports it, lazily, checked and tuned; makes its indexes and calls them.

Tensors go in and out by pointer, on the CPU and on the GPU alike. ``faiss.contrib.torch_utils`` would do the same, but
patches faiss for the whole process, and its ``search`` takes no parameters such as nprobe. Axes: I items, B queries,
D embedding, K places.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cascade_kd.errors import UserError
from cascade_kd.retrieval.plan import Plan

QUERY_BLOCK = 512  # queries that faiss multiplies at once; our batches are no larger
POINTS_PER_CODE = 64  # training vectors of a PQ centroid; faiss's 256 take 2 to 4 times as long for .005 of recall
WIDE_TABLE = 48  # PQ parts from which on the GPU look-up tables are of 16 bits
ITEM_BLOCK = 65536  # items likewise: a block of scores takes 512 x 65536 x 4 bytes = 128 MiB


def faiss_is_installed() -> bool:
    """Whether there is a faiss to import, without importing it."""
    return importlib.util.find_spec("faiss") is not None


def check_one_distribution(names: list[str]) -> None:
    """Raise UserError if more than one distribution provides faiss: they overwrite each other's files."""
    names = sorted(set(names))
    if len(names) > 1:
        raise UserError(
            f"faiss is installed {len(names)} times ({', '.join(names)}), and they overwrite each other's files. "
            f"Keep one: pip uninstall -y {' '.join(names)}, then pip install 'cascade-kd[cpu]' or 'cascade-kd[gpu]'"
        )


def tune_blas(faiss: Any) -> None:
    """Undo the default of faiss 1.15 that makes flat search 9 to 20 times slower on few threads.

    1.15 uses BLAS only from 128000 (queries x dimension) on; facebookresearch/faiss pull request 5109 makes it 800 x
    threads. The larger block of items is worth another factor of 2. Values set by the user are left alone.
    """
    if faiss.cvar.distance_compute_blas_threshold == 128000:
        faiss.cvar.distance_compute_blas_threshold = 800 * faiss.omp_get_max_threads()
        if faiss.cvar.distance_compute_blas_database_bs == 1024 and faiss.cvar.distance_compute_blas_query_bs == 4096:
            faiss.cvar.distance_compute_blas_query_bs = QUERY_BLOCK
            faiss.cvar.distance_compute_blas_database_bs = ITEM_BLOCK


@functools.cache
def load_faiss() -> Any:
    """Import faiss, once. Raises UserError naming the mend if it is absent, doubled or an empty shell."""
    if not faiss_is_installed():
        raise UserError("this index needs faiss, which is not installed; pip install 'cascade-kd[cpu]'")
    check_one_distribution(list(importlib.metadata.packages_distributions().get("faiss", [])))
    import faiss

    if not hasattr(faiss, "IndexFlatIP"):
        raise UserError(
            "the installed faiss is an empty shell, as left by uninstalling one of two; "
            "pip install --force-reinstall --no-deps faiss-cpu (or faiss-gpu) mends it"
        )
    tune_blas(faiss)
    return faiss


def new_index(plan: Plan, dim: int, seed: int) -> Any:
    """An empty index for inner products on the CPU, its random draws seeded."""
    faiss = load_faiss()
    ip = faiss.METRIC_INNER_PRODUCT
    if plan.kind == "flat":
        return faiss.IndexFlatIP(dim)
    if plan.kind == "hnsw":
        index = faiss.IndexHNSWFlat(dim, plan.hnsw_m, ip)
        index.hnsw.efConstruction = plan.ef_construction
        index.hnsw.rng = faiss.RandomGenerator(seed)
        return index
    coarse = faiss.IndexFlatIP(dim)
    if plan.kind == "ivf":
        index = faiss.IndexIVFFlat(coarse, dim, plan.nlist, ip)
    elif plan.kind == "sq":
        kinds = {"fp16": faiss.ScalarQuantizer.QT_fp16, "8bit": faiss.ScalarQuantizer.QT_8bit}
        index = faiss.IndexIVFScalarQuantizer(coarse, dim, plan.nlist, kinds[str(plan.sq_type)], ip)
    else:
        assert plan.kind == "ivfpq"
        index = faiss.IndexIVFPQ(coarse, dim, plan.nlist, plan.pq_m, plan.pq_bits, ip)
        index.pq.cp.seed = seed
        index.pq.cp.max_points_per_centroid = POINTS_PER_CODE
    set_clustering(index, seed)
    return index


def euclidean_lists(vectors_ID: Tensor, *, nlist: int, nprobe: int, seed: int) -> Any:
    """An index of ``nlist`` lists over CPU vectors, filled, that finds the nearest by squared Euclidean distance."""
    faiss = load_faiss()
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(vectors_ID.shape[1]), vectors_ID.shape[1], nlist, faiss.METRIC_L2)
    index.cp.seed, index.cp.max_points_per_centroid = seed, POINTS_PER_CODE
    index.train_c(len(vectors_ID), floats(vectors_ID))
    index.add_c(len(vectors_ID), floats(vectors_ID))
    index.nprobe = nprobe
    return index


def set_clustering(index: Any, seed: int) -> None:
    """k-means of the lists: seeded, and on the sphere, as faiss's own factory has it for inner products."""
    index.cp.seed = seed
    index.cp.spherical = True


def floats(x: Tensor) -> Any:
    """A pointer to a contiguous float32 tensor; the tensor must outlive its use."""
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    return load_faiss().cast_integer_to_float_ptr(x.data_ptr())


def search(index: Any, resources: Any, query_BD: Tensor, k: int, parameters: Any) -> tuple[Tensor, Tensor]:
    """faiss's own answer on the device of the queries, without a copy: scores and rows [B, K], -1 where none is."""
    score_BK = torch.empty(len(query_BD), k, device=query_BD.device)
    row_BK = torch.empty(len(query_BD), k, dtype=torch.int64, device=query_BD.device)
    rows = load_faiss().cast_integer_to_idx_t_ptr(row_BK.data_ptr())
    with stream_of(resources, query_BD):
        index.search_c(len(query_BD), floats(query_BD), k, floats(score_BK), rows, parameters)
    return score_BK, row_BK


def vectors_of(index: Any) -> Tensor:
    """The vectors [I, D] of a flat index on the CPU, its own memory: the index must outlive them and grow no more."""
    if index.ntotal == 0:
        return torch.empty(0, index.d)
    numbers = load_faiss().rev_swig_ptr(index.get_xb(), index.ntotal * index.d)
    return torch.from_numpy(numbers).view(-1, index.d)


def reranked(index: Any, vectors_ID: Tensor) -> Any:
    """A CPU index with the vectors behind it, by which it orders what it found."""
    return load_faiss().IndexRefineFlat(index, floats(vectors_ID))


def search_parameters(plan: Plan, effort: int, *, on_gpu: bool = False) -> Any:
    """How much a query of this search looks at, and how much of that the CPU reranks."""
    faiss = load_faiss()
    if plan.kind == "hnsw":
        return faiss.SearchParametersHNSW(efSearch=effort)
    lists = faiss.SearchParametersIVF(nprobe=effort)
    if not plan.rerank or on_gpu:
        return lists
    return faiss.IndexRefineSearchParameters(k_factor=plan.rerank, base_index_params=lists)


def storage_of(index: Any) -> Any:
    """The vectors behind a graph, as a flat index."""
    return load_faiss().downcast_index(index.storage)


def index_bytes(index: Any, plan: Plan, num_items: int) -> int:
    """Memory of the index in bytes: codes, ids, centroids, links. Not counted: slack of growing lists."""
    dim = int(index.d)
    if plan.kind == "flat":
        return 4 * dim * num_items
    if plan.kind == "hnsw":
        graph = index.hnsw
        links = 4 * graph.neighbors.size() + 8 * graph.offsets.size() + 4 * graph.levels.size()
        return 4 * dim * num_items + int(links)
    assert plan.nlist is not None
    code = {"fp16": 2 * dim, "8bit": dim}.get(plan.sq_type or "", 4 * dim)
    codebook = 0
    if plan.pq_m and plan.pq_bits:
        code, codebook = (plan.pq_m * plan.pq_bits + 7) // 8, 4 * dim << plan.pq_bits
    return (code + 8) * num_items + 4 * dim * plan.nlist + codebook


@contextlib.contextmanager
def threads_of_build(plan: Plan) -> Iterator[None]:
    """One thread while a graph is built, since several would link it in another order each time."""
    faiss = load_faiss()
    before = faiss.omp_get_max_threads()
    if plan.kind == "hnsw":
        faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def sees_gpu() -> bool:
    """Whether this faiss can use a GPU of this machine."""
    faiss = load_faiss()
    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


def to_gpu(index: Any, device: int) -> tuple[Any, Any]:
    """The same empty index on the GPU and the resources that must outlive it. Raises RuntimeError if it cannot be."""
    faiss = load_faiss()
    resources, options = faiss.StandardGpuResources(), faiss.GpuClonerOptions()
    seed = index.cp.seed if hasattr(index, "cp") else None
    if hasattr(index, "pq"):
        options.useFloat16 = index.pq.M > WIDE_TABLE  # its tables must fit a block's shared memory
    moved = faiss.index_cpu_to_gpu(resources, device, index, options)
    if seed is not None:
        set_clustering(moved, seed)
    return moved, resources


@contextlib.contextmanager
def stream_of(resources: Any, x: Tensor) -> Iterator[None]:
    """Let faiss work on torch's current stream, so that neither reads what the other has not written yet."""
    if resources is None:
        yield
        return
    faiss, device = load_faiss(), x.get_device()
    before = resources.getDefaultStream(device)
    stream = torch.cuda.current_stream(device).cuda_stream
    resources.setDefaultStream(device, faiss.cast_integer_to_cudastream_t(stream))
    try:
        yield
    finally:
        resources.setDefaultStream(device, before)

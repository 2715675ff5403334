"""The one place that imports faiss: lazily, checked and tuned."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from typing import Any

from cascade_kd.errors import UserError

QUERY_BLOCK = 512  # queries that faiss multiplies at once; our batches are no larger
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
        raise UserError("index kind 'flat' needs faiss, which is not installed; pip install 'cascade-kd[cpu]'")
    check_one_distribution(list(importlib.metadata.packages_distributions().get("faiss", [])))
    import faiss

    if not hasattr(faiss, "IndexFlatIP"):
        raise UserError(
            "the installed faiss is an empty shell, as left by uninstalling one of two; "
            "pip install --force-reinstall --no-deps faiss-cpu (or faiss-gpu) mends it"
        )
    tune_blas(faiss)
    return faiss

"""Pooled embedding look-ups (floor 3). N rows, L codes of a row, V table rows, D embedding.

On a CPU they are products with a sparse matrix in CSR form: half the time of ``F.embedding_bag``.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor


def _csr(crow: Tensor, column: Tensor, value: Tensor, shape: tuple[int, int]) -> Tensor:
    return torch.sparse_csr_tensor(crow, column, value, shape, check_invariants=False)


with warnings.catch_warnings():  # torch calls CSR a beta feature once a process: here, not in the user's face
    warnings.simplefilter("ignore", UserWarning)
    _csr(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), (1, 1))


def weighted_sum(table_VD: Tensor, codes_NL: Tensor, weight_NL: Tensor) -> Tensor:
    """[N, D] weighted sums of table rows, without a gradient."""
    if not _by_product(table_VD):
        return F.embedding_bag(codes_NL, table_VD.detach(), mode="sum", per_sample_weights=weight_NL)
    num, length = codes_NL.shape
    crow = torch.arange(0, num * length + 1, length)
    with torch.autocast("cpu", enabled=False):  # torch has no such product in 16 bits
        return _csr(crow, codes_NL.flatten(), weight_NL.flatten(), (num, table_VD.shape[0])) @ table_VD.detach()


def _by_product(table_VD: Tensor) -> bool:
    return table_VD.device.type == "cpu" and torch.backends.mkl.is_available()

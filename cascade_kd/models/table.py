"""The fused embedding table and the gradient of its touched rows (floor 3).

V table rows, D embedding, N rows of a look-up, L codes of a row, E look-ups of single rows, U distinct rows touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cascade_kd.models.lookup import lookup_sum, weighted_sum
from cascade_kd.models.pages import on_huge_pages


@dataclass(frozen=True)
class Touched:
    """What one look-up adds to the table's gradient: row ``code_E[e]`` gets ``weight_E[e] * grad_ND[source_E[e]]``."""

    code_E: Tensor
    source_E: Tensor
    weight_E: Tensor
    grad_ND: Tensor


@final
class Table(nn.Module):
    """Rows ``weight`` [V, D] from N(0, std^2).

    Its gradient is dense, in ``weight.grad``, unless ``touched`` is a list: then look-ups append to it in the backward
    pass and ``weight.grad`` stays None, so that a step costs what its look-ups cost, however long the table.
    """

    def __init__(self, rows: int, dim: int, std: float) -> None:
        super().__init__()
        weight_VD = on_huge_pages(torch.empty(rows, dim))
        nn.init.normal_(weight_VD)  # not needed, but a seed gives the weights that it gave before
        nn.init.normal_(weight_VD, std=std)
        self.weight = nn.Parameter(weight_VD)
        self.touched: list[Touched] | None = None

    def forward(self, codes: Tensor) -> Tensor:
        """[..., D] rows of the codes [...]."""
        if self.touched is None:
            return F.embedding(codes, self.weight)
        return _Rows.apply(self.weight, codes, self.touched)  # type: ignore[no-untyped-call, no-any-return]

    def weighted_sum(self, codes_NL: Tensor, weight_NL: Tensor) -> Tensor:
        """[N, D] sums over L of weight times row; no gradient flows to the weights; weight 0 touches no row."""
        if self.touched is None:
            return lookup_sum(self.weight, codes_NL, weight_NL)
        return _RowSums.apply(self.weight, codes_NL, weight_NL, self.touched)  # type: ignore[no-untyped-call, no-any-return]

    def take_touched(self) -> tuple[Tensor, Tensor] | None:
        """The rows touched since the last call, ascending [U], and their gradients [U, D]; None if there are none.

        The gradients of one row are added in the order of the look-ups, whatever the number of threads.
        """
        assert self.touched is not None
        shares = [share for share in self.touched if len(share.code_E)]
        self.touched.clear()
        if not shares:
            return None
        before = 0
        sources = []
        for share in shares:
            sources.append(share.source_E + before)
            before += len(share.grad_ND)
        code_E = torch.cat([share.code_E for share in shares])
        if len(self.weight) < 2**31:
            code_E = code_E.to(torch.int32)  # sorts twice as fast
        sorted_E, order_E = code_E.sort(stable=True)
        row_U, count_U = torch.unique_consecutive(sorted_E, return_counts=True)
        grad_UD = F.embedding_bag(
            torch.cat(sources).index_select(0, order_E),
            torch.cat([share.grad_ND for share in shares]),
            count_U.cumsum(0) - count_U,
            mode="sum",
            per_sample_weights=torch.cat([share.weight_E for share in shares]).index_select(0, order_E),
        )
        return row_U.to(torch.int64), grad_UD


def take_rows(table_VD: Tensor, code_E: Tensor) -> Tensor:
    """``table_VD[code_E]`` without a gradient, [E, D].

    Bags of one on a CPU: their kernel prefetches, which halves the time on a table larger than the caches.
    """
    if table_VD.device.type != "cpu" or len(code_E) == 0:
        return F.embedding(code_E, table_VD.detach())
    offsets = torch.arange(len(code_E), dtype=code_E.dtype)
    return F.embedding_bag(code_E, table_VD.detach(), offsets, mode="sum")


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table_VD: Tensor, codes: Tensor, touched: list[Touched]) -> Tensor:
        ctx.save_for_backward(codes)
        ctx.touched = touched
        return take_rows(table_VD, codes.flatten()).view(*codes.shape, table_VD.shape[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        (codes,) = ctx.saved_tensors
        code_E, grad_ED = codes.flatten(), grad.flatten(0, -2)
        source_E = torch.arange(len(code_E), device=code_E.device)
        ctx.touched.append(Touched(code_E, source_E, grad_ED.new_ones(len(code_E)), grad_ED))
        return None, None, None


class _RowSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table_VD: Tensor, codes_NL: Tensor, weight_NL: Tensor, touched: list[Touched]) -> Tensor:
        ctx.save_for_backward(codes_NL, weight_NL)
        ctx.touched = touched
        return weighted_sum(table_VD.detach(), codes_NL, weight_NL)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[None, None, None, None]:
        codes_NL, weight_NL = ctx.saved_tensors
        at_E = weight_NL.flatten().nonzero().squeeze(1)
        codes_E, weight_E = codes_NL.flatten().index_select(0, at_E), weight_NL.flatten().index_select(0, at_E)
        ctx.touched.append(Touched(codes_E, at_E // weight_NL.shape[1], weight_E, grad_ND))
        return None, None, None, None

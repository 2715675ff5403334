"""The fused embedding table and the gradient of its touched rows (floor 3).

V table rows, D embedding, N rows of a look-up, L codes of a row, E look-ups of single rows, U distinct rows touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cascade_kd.models.lookup import weighted_sum
from cascade_kd.models.pages import on_huge_pages
from cascade_kd.models.shards import Shard


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
    pass and ``weight.grad`` stays None, so that a step costs what its look-ups cost, however long the table. Either
    way a CPU adds up the gradients of the touched rows by :func:`row_sums`, a fifth of what torch's own takes.

    With a ``shard`` this rank has its stretch of the rows only: look-ups fetch rows from the others, ``touched`` names
    rows of the whole table, and its gradients have to be sent to the ranks that have the rows.
    """

    def __init__(self, rows: int, dim: int, std: float) -> None:
        super().__init__()
        weight_VD = on_huge_pages(torch.empty(rows, dim))
        nn.init.normal_(weight_VD, std=std)
        self.weight = nn.Parameter(weight_VD)
        self.touched: list[Touched] | None = None
        self.shard: Shard | None = None

    def share_out(self, rank: int, ranks: int) -> None:
        """Keep this rank's stretch of the rows alone."""
        self.shard = Shard(len(self.weight), rank, ranks)
        self.weight.data = on_huge_pages(self.shard.own(self.weight.data).clone())

    def make_whole(self) -> None:
        """Have room for all rows again; they have to be loaded."""
        if self.shard is not None:
            self.weight.data = on_huge_pages(self.weight.new_empty(self.shard.rows, self.weight.shape[1]))
            self.shard = None

    @property
    def num_rows(self) -> int:
        """V, of the whole table."""
        return len(self.weight) if self.shard is None else self.shard.rows

    def forward(self, codes: Tensor) -> Tensor:
        """[..., D] rows of the codes [...]."""
        if self._plain:
            return F.embedding(codes, self.weight)
        fetched = None if self.shard is None else self.shard.fetch(self.weight, codes)
        return _Rows.apply(self.weight, codes, self.touched, fetched)  # type: ignore[no-untyped-call, no-any-return]

    def weighted_sum(self, codes_NL: Tensor, weight_NL: Tensor) -> Tensor:
        """[N, D] sums over L of weight times row; no gradient flows to the weights; weight 0 touches no row."""
        if self._plain:
            return F.embedding_bag(codes_NL, self.weight, mode="sum", per_sample_weights=weight_NL)
        fetched = None if self.shard is None else self.shard.fetch(self.weight, codes_NL)
        return _RowSums.apply(self.weight, codes_NL, weight_NL, self.touched, fetched)  # type: ignore[no-untyped-call, no-any-return]

    def take_touched(self) -> tuple[Tensor, Tensor] | None:
        """The rows touched since the last call, ascending [U], and their gradients [U, D]; None if there are none."""
        assert self.touched is not None
        shares = [share for share in self.touched if len(share.code_E)]
        self.touched.clear()
        return row_sums(shares, self.num_rows) if shares else None

    @property
    def _plain(self) -> bool:
        """Whether torch's own look-ups serve: on other devices their gradient is quick."""
        return self.touched is None and self.weight.device.type != "cpu"


def row_sums(shares: Sequence[Touched], num_rows: int) -> tuple[Tensor, Tensor]:
    """The rows that the shares touch, ascending [U], and their gradients [U, D].

    The gradients of one row are added in the order of the look-ups, whatever the number of threads.
    """
    before = 0
    sources = []
    for share in shares:
        sources.append(share.source_E + before)
        before += len(share.grad_ND)
    code_E = _joined([share.code_E for share in shares])
    if num_rows < 2**31:
        code_E = code_E.to(torch.int32)  # sorts twice as fast
    sorted_E, order_E = code_E.sort(stable=True)
    row_U, count_U = torch.unique_consecutive(sorted_E, return_counts=True)
    grad_UD = F.embedding_bag(
        _joined(sources).index_select(0, order_E),
        _joined([share.grad_ND for share in shares]),
        count_U.cumsum(0) - count_U,
        mode="sum",
        per_sample_weights=_joined([share.weight_E for share in shares]).index_select(0, order_E),
    )
    return row_U.to(torch.int64), grad_UD


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def take_rows(table_VD: Tensor, code_E: Tensor) -> Tensor:
    """``table_VD[code_E]`` without a gradient, [E, D].

    Bags of one on a CPU: their kernel prefetches, which halves the time on a table larger than the caches.
    """
    if table_VD.device.type != "cpu" or len(code_E) == 0:
        return F.embedding(code_E, table_VD.detach())
    offsets = torch.arange(len(code_E), dtype=code_E.dtype)
    return F.embedding_bag(code_E, table_VD.detach(), offsets, mode="sum")


def _leave(share: Touched, shape: torch.Size, touched: list[Touched] | None) -> Tensor | None:
    """Append the share to ``touched``; without such a list, the gradient [V, D] of the whole table."""
    if touched is not None:
        touched.append(share)
        return None
    grad_VD = share.grad_ND.new_zeros(shape)
    if shape[1] == 1:  # short rows need no sorting
        grad_E = share.grad_ND.squeeze(1).index_select(0, share.source_E) * share.weight_E
        grad_VD.squeeze(1).index_add_(0, share.code_E, grad_E)
    elif len(share.code_E):
        grad_VD.index_copy_(0, *row_sums([share], shape[0]))
    return grad_VD


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        table_VD: Tensor,
        codes: Tensor,
        touched: list[Touched] | None,
        fetched: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        ctx.save_for_backward(codes)
        ctx.shape, ctx.touched = table_VD.shape, touched
        rows_UD, place = (table_VD, codes) if fetched is None else fetched
        return take_rows(rows_UD, place.flatten()).view(*codes.shape, table_VD.shape[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None]:
        (codes,) = ctx.saved_tensors
        code_E, grad_ED = codes.flatten(), grad.flatten(0, -2)
        source_E = torch.arange(len(code_E), device=code_E.device)
        share = Touched(code_E, source_E, grad_ED.new_ones(len(code_E)), grad_ED)
        return _leave(share, ctx.shape, ctx.touched), None, None, None


class _RowSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        table_VD: Tensor,
        codes_NL: Tensor,
        weight_NL: Tensor,
        touched: list[Touched] | None,
        fetched: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        ctx.save_for_backward(codes_NL, weight_NL)
        ctx.shape, ctx.touched = table_VD.shape, touched
        rows_UD, place_NL = (table_VD, codes_NL) if fetched is None else fetched
        return weighted_sum(rows_UD.detach(), place_NL, weight_NL)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        codes_NL, weight_NL = ctx.saved_tensors
        at_E = weight_NL.flatten().nonzero().squeeze(1)
        codes_E, weight_E = codes_NL.flatten().index_select(0, at_E), weight_NL.flatten().index_select(0, at_E)
        share = Touched(codes_E, at_E // weight_NL.shape[1], weight_E, grad_ND)
        return _leave(share, ctx.shape, ctx.touched), None, None, None, None

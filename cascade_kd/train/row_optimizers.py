"""Optimisers of embedding tables that update touched rows only (floor 6).

V table rows, D embedding, U touched rows, B rows of a block of them.

A step gathers the touched rows and their state, computes, and puts them back, block by block, so that what is put back
is still in a cache: its cost does not depend on V. A row is touched when a look-up of the step reads it; padding of a
pooled feature reads nothing. An L2 penalty l2/2 |row|^2 reaches a row in the steps that touch it, once each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import final

import torch
from torch import Tensor

from cascade_kd.models import Table
from cascade_kd.models.pages import on_huge_pages
from cascade_kd.models.table import take_rows
from cascade_kd.train.distributed import sum_touched

BLOCK = 16_384  # rows; measured
Held = tuple[slice, float]  # rows of a parameter, and an L2 that they get beside that of all rows


@final
class RowAdam(torch.optim.Optimizer):
    """Lazy Adam: m <- b1 m + (1-b1) g, v <- b2 v + (1-b2) g^2, row <- row - lr m^ / (sqrt(v^) + eps).

    The moments of a row that is not touched stay as they are. One step count a table corrects the bias of all rows.
    Equal to ``torch.optim.Adam`` while every step touches every row, and to ``torch.optim.SparseAdam`` but for eps,
    which is added after the bias correction, as in Adam. Source: Kingma & Ba, ICLR 2015, algorithm 1.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        *,
        lr: float,
        l2: float = 0.0,
        held: Mapping[torch.nn.Parameter, Sequence[Held]] = MappingProxyType({}),
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(_collecting(tables), {"lr": lr, "l2": l2, "betas": betas, "eps": eps})
        self.tables, self.held = tables, held
        for table in tables:
            moments = {key: _zeros(table.weight, table.weight.shape[1]) for key in ("exp_avg", "exp_avg_sq")}
            self.state[table.weight] = {"step": torch.zeros(()), **moments}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the rows touched so far."""
        _forget(self.tables)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the rows touched since the last step."""
        group = self.param_groups[0]
        beta1, beta2 = group["betas"]
        for table, row_U, grad_UD in _touched_rows(self.tables):
            weight_VD, state = table.weight, self.state[table.weight]
            state["step"] += 1
            step = state["step"].item()
            rate, root = group["lr"] / (1 - beta1**step), math.sqrt(1 - beta2**step)
            for row_B, row_BD, grad_BD in _blocks(table, row_U, grad_UD, group["l2"], self.held):
                mean_BD = take_rows(state["exp_avg"], row_B).lerp_(grad_BD, 1 - beta1)
                square_BD = take_rows(state["exp_avg_sq"], row_B).mul_(beta2)
                square_BD.addcmul_(grad_BD, grad_BD, value=1 - beta2)
                state["exp_avg"].index_copy_(0, row_B, mean_BD)
                state["exp_avg_sq"].index_copy_(0, row_B, square_BD)
                row_BD.addcdiv_(mean_BD, square_BD.sqrt_().div_(root).add_(group["eps"]), value=-rate)
                weight_VD.index_copy_(0, row_B, row_BD)


@final
class RowAdagrad(torch.optim.Optimizer):
    """Adagrad: s <- s + g^2, row <- row - lr g / (sqrt(s) + eps), elementwise, or with one s a row.

    Elementwise it is ``torch.optim.Adagrad`` on the dense gradient: a row that is not touched has none, and stays.
    Row-wise, s <- s + mean_d g_d^2, which takes 1/D of the memory. Source: Duchi et al., JMLR 2011; one accumulator a
    row as in Mudigere et al., ISCA 2022.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        *,
        lr: float,
        rowwise: bool,
        l2: float = 0.0,
        held: Mapping[torch.nn.Parameter, Sequence[Held]] = MappingProxyType({}),
        eps: float = 1e-10,
    ) -> None:
        super().__init__(_collecting(tables), {"lr": lr, "l2": l2, "eps": eps})
        self.tables, self.held = tables, held
        self.sum_key = "row_sum" if rowwise else "sum"  # two names, so that neither is taken for the other
        for table in tables:
            self.state[table.weight] = {
                "step": torch.zeros(()),
                self.sum_key: _zeros(table.weight, 1 if rowwise else table.weight.shape[1]),
            }

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the rows touched so far."""
        _forget(self.tables)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the rows touched since the last step."""
        group = self.param_groups[0]
        for table, row_U, grad_UD in _touched_rows(self.tables):
            weight_VD, state = table.weight, self.state[table.weight]
            state["step"] += 1
            for row_B, row_BD, grad_BD in _blocks(table, row_U, grad_UD, group["l2"], self.held):
                square_BD = grad_BD.square()
                sum_BD = take_rows(state[self.sum_key], row_B)
                sum_BD += square_BD.mean(1, keepdim=True) if self.sum_key == "row_sum" else square_BD
                state[self.sum_key].index_copy_(0, row_B, sum_BD)
                row_BD.addcdiv_(grad_BD, sum_BD.sqrt_().add_(group["eps"]), value=-group["lr"])
                weight_VD.index_copy_(0, row_B, row_BD)


def _collecting(tables: Sequence[Table]) -> list[torch.nn.Parameter]:
    for table in tables:
        table.touched, table.weight.grad = [], None
    return [table.weight for table in tables]


def _forget(tables: Sequence[Table]) -> None:
    for table in tables:
        assert table.touched is not None
        table.touched.clear()


def _touched_rows(tables: Sequence[Table]) -> Iterator[tuple[Table, Tensor, Tensor]]:
    """Every table that was touched, by any rank, the places of its touched rows and their gradients."""
    for table in tables:
        assert table.weight.grad is None, "a look-up went past the table"
        touched = sum_touched(table)
        if touched is not None:
            yield table, *touched


def _blocks(
    table: Table, row_U: Tensor, grad_UD: Tensor, l2: float, held: Mapping[torch.nn.Parameter, Sequence[Held]]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Blocks of B rows: their places, their values (a copy) and their gradients with the penalties' added."""
    first = 0 if table.shard is None else table.shard.first  # places are those on this rank
    for row_B, grad_BD in zip(row_U.split(BLOCK), grad_UD.split(BLOCK), strict=True):
        row_BD = take_rows(table.weight, row_B)
        if l2:
            grad_BD.add_(row_BD, alpha=l2)
        for rows, more in held.get(table.weight, ()):
            inside_B = (row_B >= rows.start - first) & (row_B < rows.stop - first)
            grad_BD.addcmul_(row_BD, inside_B.unsqueeze(1).to(row_BD.dtype), value=more)
        yield row_B, row_BD, grad_BD


def _zeros(weight_VD: Tensor, width: int) -> Tensor:
    return on_huge_pages(weight_VD.new_empty(len(weight_VD), width)).zero_()

"""Tables whose rows are shared out over the ranks of one training (floor 3).

V rows of the whole table, L of one rank, D embedding, U distinct rows of a look-up, N ranks. Every rank must look up
the same tables in the same order: a look-up is a message to all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor, nn


@final
@dataclass(frozen=True)
class Shard:
    """Which of ``rows`` rows this rank has: the stretch ``first`` to ``end``; all stretches but the last are alike."""

    rows: int
    rank: int
    ranks: int

    @property
    def size(self) -> int:
        """Rows of a stretch."""
        return -(-self.rows // self.ranks)

    @property
    def first(self) -> int:
        """The first row of this rank."""
        return min(self.rank * self.size, self.rows)

    @property
    def end(self) -> int:
        """The row behind its last."""
        return min(self.first + self.size, self.rows)

    def fetch(self, weight_LD: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """The distinct rows [U, D] that the codes name, and the place of every code's row among them."""
        code_U, place = torch.unique(codes, return_inverse=True)
        sent, received = self._counts(code_U)
        asked_A = _to_all(code_U, sent, received)
        answer_AD = weight_LD.detach().index_select(0, asked_A - self.first)
        return _to_all(answer_AD, received, sent), place

    def collect(self, row_U: Tensor, grad_UD: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Send gradients of ascending rows to the ranks that have the rows; returns what came, places in L, by rank."""
        sent, received = self._counts(row_U)
        row_A, grad_AD = _to_all(row_U, sent, received), _to_all(grad_UD, sent, received)
        return list(zip((row_A - self.first).split(received), grad_AD.split(received), strict=True))

    def own(self, whole_VD: Tensor) -> Tensor:
        """This rank's rows of a whole table."""
        return whole_VD[self.first : self.end]

    def whole(self, own_LD: Tensor) -> Tensor:
        """On rank 0 the whole table [V, D]; the others keep their own rows."""
        padded = own_LD.detach().new_zeros(self.size, own_LD.shape[1])
        padded[: len(own_LD)] = own_LD.detach()
        parts = [torch.empty_like(padded) for _ in range(self.ranks)] if self.rank == 0 else None
        dist.gather(padded, parts, dst=0)
        return own_LD if parts is None else torch.cat(parts)[: self.rows]

    def _counts(self, row_U: Tensor) -> tuple[list[int], list[int]]:
        """How many of the ascending rows go to every rank, and how many come from it."""
        bounds = torch.arange(1, self.ranks, device=row_U.device) * self.size
        cuts = [0, *torch.searchsorted(row_U, bounds).tolist(), len(row_U)]
        sent_N = torch.tensor(cuts, device=row_U.device).diff()
        received_N = torch.empty_like(sent_N)
        dist.all_to_all_single(received_N, sent_N)
        return sent_N.tolist(), received_N.tolist()


def shards_of(model: nn.Module) -> dict[str, Shard]:
    """Of every table that is shared out, by every name of its weights."""
    return {
        f"{name}.weight": shard
        for name, module in model.named_modules(remove_duplicate=False)
        if (shard := getattr(module, "shard", None)) is not None
    }


def _to_all(rows_A: Tensor, sent: list[int], received: list[int]) -> Tensor:
    result = rows_A.new_empty(sum(received), *rows_A.shape[1:])
    dist.all_to_all_single(result, rows_A.contiguous(), received, sent)
    return result

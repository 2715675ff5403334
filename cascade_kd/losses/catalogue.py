"""The full softmax over a catalogue without its scores in memory.

Axes: B examples, I items of the catalogue, D width of the vectors, C examples of a block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SCORES_PER_BLOCK = 1 << 26  # 256 MiB of float32
CACHED = 1 << 20  # the same on a processor: 4 MiB stay in its cache


def full_softmax(user_BD: Tensor, item_ID: Tensor, target_B: Tensor) -> Tensor:
    """Mean softmax cross entropy of every example's target among all items, a scalar.

    ``mean_b (log sum_i exp(u_b . v_i) - u_b . v_target)``, natural log. Scores are made, used and forgotten block by
    block, and the gradient in the same pass: half the time of ``F.cross_entropy(user_BD @ item_ID.T, target_B)``, which
    it equals, and B + I vectors of memory in the place of B x I scores. The gradient is made with the mean, so this
    loss alone has its reduction in it; it has no second derivative.
    """
    return _FullSoftmax.apply(user_BD, item_ID, target_B)  # type: ignore[no-untyped-call, no-any-return]


class _FullSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, user_BD: Tensor, item_ID: Tensor, target_B: Tensor) -> Tensor:
        size, num_items = len(user_BD), len(item_ID)
        grad_BD = torch.empty_like(user_BD)
        grad_ID = torch.zeros_like(item_ID, dtype=torch.promote_types(item_ID.dtype, torch.float32))
        total = grad_ID.new_zeros(())
        step = max(1, (CACHED if user_BD.device.type == "cpu" else SCORES_PER_BLOCK) // num_items)
        for start in range(0, size, step):
            user_CD, target_C1 = user_BD[start : start + step], target_B[start : start + step].unsqueeze(1)
            score_CI = (user_CD @ item_ID.T).to(grad_ID.dtype)
            score_CI -= score_CI.amax(1, keepdim=True)
            total -= score_CI.gather(1, target_C1).sum()
            score_CI.exp_()
            sum_C1 = score_CI.sum(1, keepdim=True)
            total += sum_C1.log().sum()
            score_CI = score_CI.to(user_BD.dtype)
            grad_BD[start : start + step] = (score_CI @ item_ID) / sum_C1
            grad_ID += score_CI.T @ (user_CD / sum_C1).to(user_BD.dtype)
        grad_BD -= item_ID.index_select(0, target_B)
        grad_ID.index_add_(0, target_B, user_BD.to(grad_ID.dtype), alpha=-1)
        ctx.save_for_backward(grad_BD / size, (grad_ID / size).to(item_ID.dtype))
        return total / size

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_BD, grad_ID = ctx.saved_tensors
        return grad * grad_BD, grad * grad_ID, None

"""One training over several ranks, which ``torchrun`` started (floor 6). Everything here is nothing in one process.

All ranks hold the model and take the same steps; each computes its share of every batch. Every loss is divided by what
the whole batch holds (:func:`total`), so the sum of the ranks' gradients is the gradient of one process. They are
summed after the backward pass, the small ones in one message, and not by ``DistributedDataParallel``: that hooks the
forward pass of one module, while a step here runs several nets, looks tables up outside autograd, and leaves (row,
gradient) pairs that DDP knows nothing of. What it would gain, an overlap of the backward pass with the messages, is
little where most weights are tables. R rows of a share, U touched rows of a table, D embedding, V rows of a table, P
parameters.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cascade_kd.errors import UserError
from cascade_kd.models.table import Table, Touched, row_sums

T = TypeVar("T")

PATIENCE = timedelta(days=7)  # others wait while rank 0 prepares and evaluates; torchrun ends all when one dies
IN_ONE_MESSAGE = 1 << 20  # numbers; a larger gradient is summed where it is
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def num_ranks() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this one; 0 writes and speaks."""
    return dist.get_rank() if num_ranks() > 1 else 0


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Inside the block the ranks that torchrun started know each other: by gloo on CPUs, by nccl on GPUs.

    Gives this rank's own device. A process group that is there already (of Ray Train, say) is used and left as it is.
    """
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if num_ranks() > 1 or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield device
    finally:
        dist.destroy_process_group()


@contextmanager
def rank_0_first() -> Iterator[None]:
    """The other ranks enter the block when rank 0 has left it: they find in a cache what it has made.

    Where the user's input is wrong, all ranks find that out, one after the other.
    """
    if rank() > 0:
        barrier()
    try:
        yield
    except UserError:
        if rank() == 0:
            barrier()
        raise
    if rank() == 0:
        barrier()


def barrier() -> None:
    """Wait until all ranks are here."""
    if num_ranks() > 1:
        agreed(0)


def agreed(value: T) -> T:
    """What rank 0 says."""
    if num_ranks() == 1:
        return value
    said: list[Any] = [value]
    dist.broadcast_object_list(said, src=0)
    return said[0]  # type: ignore[no-any-return]


def share_of(rows_R: Tensor) -> Tensor:
    """This rank's stretch of the rows of a batch: all have as many, but for one."""
    return rows_R if num_ranks() == 1 else rows_R.tensor_split(num_ranks())[rank()]


def total(amount: Tensor) -> Tensor:
    """The sum over the ranks of a number that carries no gradient."""
    if num_ranks() == 1:
        return amount
    amount = amount.detach().clone()
    dist.all_reduce(amount)
    return amount


def mean_over_all(loss_R: Tensor) -> Tensor:
    """The share of this rank in the mean over the rows of all ranks; the shares add up to it."""
    return loss_R.mean() if num_ranks() == 1 else loss_R.sum() / total(loss_R.new_tensor(len(loss_R)))


def gathered(rows_R: Tensor) -> Tensor:
    """The rows of all ranks, one rank's behind another's, without a gradient."""
    return rows_R if num_ranks() == 1 else torch.cat(_gathered(rows_R.detach()))


def gathered_with_gradient(rows_RD: Tensor) -> tuple[Tensor, int]:
    """As :func:`gathered`, and the place of this rank's first row; gradients go back to the rank that the row is of."""
    if num_ranks() == 1:
        return rows_RD, 0
    sizes = _sizes(len(rows_RD), rows_RD.device)
    return _Gathered.apply(rows_RD), sum(sizes[: rank()])  # type: ignore[no-untyped-call]


def sum_gradients(parameters: Iterable[nn.Parameter], numbers: Tensor) -> Tensor:
    """Give every parameter the sum of its gradients over the ranks, and return the sums of ``numbers`` [n].

    A parameter that has a gradient on no rank has none after it.
    """
    if num_ranks() == 1:
        return numbers
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    has_P = numbers.new_tensor([parameter.grad is not None for parameter in wanted])
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in wanted]
    small = [grad for grad in grads if grad.numel() <= IN_ONE_MESSAGE]
    message = torch.cat([numbers, has_P, *(grad.flatten().to(numbers.dtype) for grad in small)])
    dist.all_reduce(message)
    for grad in grads:
        if grad.numel() > IN_ONE_MESSAGE:
            dist.all_reduce(grad)
    sizes = [len(numbers), len(has_P), *(grad.numel() for grad in small)]
    numbers, has_P, *summed = message.split(sizes)
    for grad, sum_G in zip(small, summed, strict=True):
        grad.copy_(sum_G.view_as(grad))
    for parameter, grad, has in zip(wanted, grads, has_P.tolist(), strict=True):
        parameter.grad = grad if has else None
    return numbers


def sum_touched(table: Table) -> tuple[Tensor, Tensor] | None:
    """The rows of a table that any rank touched, ascending [U], and the sums of their gradients [U, D].

    Added in the order of the ranks, so that all ranks have the same bits. Of a table that is shared out, the places of
    this rank's own rows.
    """
    touched, weight_VD = table.take_touched(), table.weight
    if num_ranks() == 1:
        return touched
    if touched is None:
        touched = torch.zeros(0, dtype=torch.int64, device=weight_VD.device), weight_VD.new_zeros(0, weight_VD.shape[1])
    if table.shard is not None:
        from_ranks = table.shard.collect(*touched)
    else:
        from_ranks = list(zip(_gathered(touched[0]), _gathered(touched[1]), strict=True))
    shares = [
        Touched(row_U, torch.arange(len(row_U), device=row_U.device), grad_UD.new_ones(len(row_U)), grad_UD)
        for row_U, grad_UD in from_ranks
        if len(row_U)
    ]
    return row_sums(shares, len(weight_VD)) if shares else None


def signal_of_any(signum: int | None, *, noted: Tensor | None = None) -> int | None:
    """The signal that any rank has received, SIGINT before SIGTERM; ``noted``: sums of :func:`signals_noted`."""
    if num_ranks() == 1:
        return signum
    if noted is None:
        noted = total(signals_noted(signum))
    return next((int(one) for one, count in zip(SIGNALS, noted.tolist(), strict=True) if count), None)


def signals_noted(signum: int | None) -> Tensor:
    """[2] which signal this rank has received, to be summed over all."""
    device = torch.device("cuda") if dist.get_backend() == "nccl" else None
    return torch.tensor([float(signum == one) for one in SIGNALS], device=device)


def check_ranks(stage: str, model: nn.Module, *, learned: bool) -> None:
    """Refuse what is not the same over several ranks as in one process. Raises UserError."""
    if num_ranks() == 1:
        return
    if learned:
        raise UserError(
            f"stage '{stage}': label_weight = \"learned\" weighs losses of whole batches, and each of {num_ranks()} "
            'ranks has a share; want a number or "rest", or a run without torchrun'
        )
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        raise UserError(
            f"stage '{stage}': batch norm takes its means over a batch, and each of {num_ranks()} ranks has a share of "
            "it; want batch_norm = false in [model], or a run without torchrun"
        )


def _sizes(size: int, device: torch.device) -> list[int]:
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(num_ranks())]
    dist.all_gather(sizes, torch.tensor([size], device=device))
    return [int(one) for one in sizes]


def _gathered(rows_R: Tensor) -> list[Tensor]:
    """Every rank's rows; shorter ones travel padded."""
    sizes = _sizes(len(rows_R), rows_R.device)
    padded = rows_R.new_zeros(max(sizes), *rows_R.shape[1:])
    padded[: len(rows_R)] = rows_R
    received = [torch.empty_like(padded) for _ in sizes]
    if padded.numel():
        dist.all_gather(received, padded)
    return [rows[:size] for rows, size in zip(received, sizes, strict=True)]


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_RD: Tensor) -> Tensor:
        parts = _gathered(rows_RD)
        ctx.first, ctx.size = sum(len(part) for part in parts[: rank()]), len(rows_RD)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad[ctx.first : ctx.first + ctx.size]

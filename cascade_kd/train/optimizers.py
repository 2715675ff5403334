"""The optimisers of a stage, by its ``[train]`` table (floor 6)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

import torch
from torch import nn

from cascade_kd.models import Table
from cascade_kd.models.sharing import borrowed_rows
from cascade_kd.train.distributed import num_ranks, rank
from cascade_kd.train.row_optimizers import Held, RowAdagrad, RowAdam
from cascade_kd.train.settings import TrainConfig
from cascade_kd.train.state import BESIDE


def joint_optimizers(
    model: nn.Module,
    train: TrainConfig,
    students: Collection[nn.Module],
    teachers: Mapping[nn.Module, TrainConfig],
) -> list[torch.optim.Optimizer]:
    """Those of nets that learn in the same steps, all of them parts of ``model``.

    What only a teacher has is trained by the teacher's own ``[train]``, the rest by ``train``. What several nets
    compute with gets the sum of their L2: each sends it a gradient, and together they minimise the sum of what each
    would minimise alone.
    """
    of_tables = {module.weight for module in model.modules() if isinstance(module, Table)}
    trained_by: dict[nn.Parameter, TrainConfig] = {}
    held: dict[nn.Parameter, list[Held]] = {}
    for net, net_train in [*((student, train) for student in students), *teachers.items()]:
        own = [(p, slice(None)) for name, p in net.named_parameters() if not name.startswith(BESIDE)]
        for parameter, rows in [*own, *borrowed_rows(net)]:
            if parameter in trained_by:
                l2 = net_train.embedding_l2 if parameter in of_tables else net_train.weight_decay
                if l2:  # nothing to add costs nothing in a step
                    held.setdefault(parameter, []).append((rows, l2))
            else:
                trained_by[parameter] = net_train
    made: list[torch.optim.Optimizer] = []
    for each in {id(each): each for each in (train, *teachers.values())}.values():
        # What is of no net, adapters and learned weights, is trained by `train`.
        made += make_optimizers(model, each, [p for p in model.parameters() if trained_by.get(p, train) is each], held)
    return made


def make_optimizers(
    model: nn.Module,
    train: TrainConfig,
    own: Iterable[nn.Parameter] | None = None,
    held: Mapping[nn.Parameter, list[Held]] = MappingProxyType({}),
) -> list[torch.optim.Optimizer]:
    """One dense optimiser, and with a row-sparse ``embedding_optimizer`` a second one for the embedding tables.

    The tables of ``model`` are told which gradient to leave: of all rows, or of touched rows. Those of at least
    ``shard_rows`` rows are shared out over the ranks. ``own`` are the parameters to train, all of the model's unless
    given; rows of some may be ``held`` by an L2 beside that of ``train``.
    """
    trained = dict.fromkeys(model.parameters() if own is None else own)
    tables = [module for module in model.modules() if isinstance(module, Table) and module.weight in trained]
    of_tables = dict.fromkeys(table.weight for table in tables)
    for table in tables:
        if train.shard_rows is not None and table.num_rows >= train.shard_rows and num_ranks() > 1:
            table.share_out(rank(), num_ranks())
    rest = [parameter for parameter in trained if parameter not in of_tables]
    groups = [{"params": rest, "lr": train.learning_rate, "weight_decay": train.weight_decay}]
    lr, l2 = train.embedding_learning_rate, train.embedding_l2
    row_sparse: list[torch.optim.Optimizer] = []
    if train.embedding_optimizer == "same":
        for table in tables:
            table.touched = None
        groups.append({"params": list(of_tables), "lr": lr, "weight_decay": l2})
    elif train.embedding_optimizer == "sparse-adam":
        row_sparse = [RowAdam(tables, lr=lr, l2=l2, held=held)]
    else:
        rowwise = train.embedding_optimizer == "rowwise-adagrad"
        row_sparse = [RowAdagrad(tables, lr=lr, l2=l2, rowwise=rowwise, held=held)]
    dense = torch.optim.Adam(groups, fused=True) if train.optimizer == "adam" else torch.optim.Adagrad(groups)
    if train.max_gradient_norm is not None:
        _clip(dense, train.max_gradient_norm)
    _hold(dense, held)
    return [dense, *row_sparse]


def _clip(optimizer: torch.optim.Optimizer, norm: float) -> None:
    """Let ``optimizer`` scale the gradients of all it trains down to ``norm`` before each of its steps."""
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def clip(*_: object) -> None:
        nn.utils.clip_grad_norm_(trained, norm)

    optimizer.register_step_pre_hook(clip)


def _hold(optimizer: torch.optim.Optimizer, held: Mapping[nn.Parameter, list[Held]]) -> None:
    """Let ``optimizer`` add the L2 of rows that it trains to their gradients, before each of its steps."""
    trained = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    stretches = [(parameter, *each) for parameter in trained & held.keys() for each in held[parameter]]

    @torch.no_grad()
    def add(*_: object) -> None:
        for parameter, rows, l2 in stretches:
            if parameter.grad is not None:
                parameter.grad[rows].add_(parameter[rows], alpha=l2)

    if stretches:
        optimizer.register_step_pre_hook(add)

"""The optimisers of a stage, by its ``[train]`` table (floor 6)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from cascade_kd.models import Table
from cascade_kd.train.distributed import num_ranks, rank
from cascade_kd.train.row_optimizers import RowAdagrad, RowAdam
from cascade_kd.train.settings import TrainConfig


def make_optimizers(
    model: nn.Module, train: TrainConfig, *, leave: Iterable[nn.Parameter] = ()
) -> list[torch.optim.Optimizer]:
    """One dense optimiser, and with a row-sparse ``embedding_optimizer`` a second one for the embedding tables.

    The tables of ``model`` are told which gradient to leave: of all rows, or of touched rows. Those of at least
    ``shard_rows`` rows are shared out over the ranks. The parameters ``leave`` are somebody else's.
    """
    others = {id(parameter) for parameter in leave}
    tables = [module for module in model.modules() if isinstance(module, Table) and id(module.weight) not in others]
    of_tables = [table.weight for table in tables]
    ids = {id(weight) for weight in of_tables} | others
    for table in tables:
        if train.shard_rows is not None and table.num_rows >= train.shard_rows and num_ranks() > 1:
            table.share_out(rank(), num_ranks())
    rest = [parameter for parameter in model.parameters() if id(parameter) not in ids]
    groups = [{"params": rest, "lr": train.learning_rate, "weight_decay": train.weight_decay}]
    lr, l2 = train.embedding_learning_rate, train.embedding_l2
    row_sparse: list[torch.optim.Optimizer] = []
    if train.embedding_optimizer == "same":
        for table in tables:
            table.touched = None
        groups.append({"params": of_tables, "lr": lr, "weight_decay": l2})
    elif train.embedding_optimizer == "sparse-adam":
        row_sparse = [RowAdam(tables, lr=lr, l2=l2)]
    else:
        rowwise = train.embedding_optimizer == "rowwise-adagrad"
        row_sparse = [RowAdagrad(tables, lr=lr, l2=l2, rowwise=rowwise)]
    if train.optimizer == "adam":
        return [torch.optim.Adam(groups, fused=True), *row_sparse]
    return [torch.optim.Adagrad(groups), *row_sparse]

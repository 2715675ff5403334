"""The label loss of a batch (floor 6). B impressions, R rows, I items, D vector width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cascade_kd.data import Dataset
from cascade_kd.losses import bce, sampled_softmax
from cascade_kd.models import Model, TowerModel
from cascade_kd.train.samples import Batch


def pointwise_loss(
    model: Model, dataset: Dataset, names: Sequence[str], batch: Batch, known: Mapping[str, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Binary cross entropy, the weighted mean over the rows, and the rows' logits [R].

    ``known`` holds item or pair columns [R] that need no look-up any more.
    """
    known = known or {}
    inputs = dataset.inputs(
        [name for name in names if name not in known],
        batch.requests,
        batch.item_R,
        batch.row_R,
        part=batch.requests.part,
        event_R=batch.event_R,
    )
    inputs = replace(inputs, item={**inputs.item, **known})
    logits_R = model(inputs).logits_R.float()
    return weighted_mean(bce(logits_R, batch.label_R), batch.weight_R), logits_R


def weighted_mean(loss_R: Tensor, weight_R: Tensor) -> Tensor:
    """sum(w * loss) / sum(w)."""
    return (loss_R * weight_R).sum() / weight_R.sum()


def in_batch_softmax_loss(
    model: TowerModel, dataset: Dataset, names: Sequence[str], batch: Batch, log_q_I1: Tensor
) -> Tensor:
    """Mean sampled softmax of every positive against the other positives' items, corrected by logQ.

    Source: Yi et al., RecSys 2019, eq. 5. A column that repeats the target's item is left out (accidental hit).
    ``log_q_I1`` [I + 1] is the log of every item's share of the training positives.
    """
    user_BD = model.user_vectors(dataset.user_inputs(names, batch.requests, part=batch.requests.part))
    time_B, user_B = batch.requests.time_B, batch.requests.user_B
    columns = dataset.item_inputs(
        names, batch.item_R, time_R=time_B, user_R=user_B, part=batch.requests.part, event_R=batch.event_R
    )
    score_BB = (user_BD @ model.item_vectors(columns).T).float()
    target_B = torch.arange(len(batch.item_R), device=score_BB.device)
    hit_BB = batch.item_R.unsqueeze(0) == batch.item_R.unsqueeze(1)
    hit_BB.fill_diagonal_(False)
    return sampled_softmax(score_BB, target_B, log_q_N=log_q_I1[batch.item_R], where_BN=~hit_BB).mean()


def log_popularity(dataset: Dataset, rows_M: Tensor) -> Tensor:
    """[I + 1] log share of every item among the rows; items without a row count as one."""
    counts_I1 = torch.bincount(dataset.events.item_N[rows_M], minlength=dataset.num_items + 1).clamp(min=1)
    return counts_I1.double().div(max(1, len(rows_M))).log().float()

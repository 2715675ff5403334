"""The label loss of a batch (floor 6).

B impressions, R rows, Q drawn rows behind the impressions, I items, N columns of a softmax, K drawn, D vector width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cascade_kd.data import Dataset
from cascade_kd.losses import bce, sampled_softmax
from cascade_kd.models import Model, TowerModel
from cascade_kd.train.samples import Batch


def pointwise_loss(
    model: Model,
    dataset: Dataset,
    names: Sequence[str],
    batch: Batch,
    *,
    known: Mapping[str, Tensor] | None = None,
    known_user: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Binary cross entropy, the weighted mean over the rows, and the rows' logits [R].

    ``known`` holds item or pair columns [R], ``known_user`` user or context columns [B], that need no look-up any more.
    """
    known, known_user = known or {}, known_user or {}
    inputs = dataset.inputs(
        [name for name in names if name not in known and name not in known_user],
        batch.requests,
        batch.item_R,
        batch.row_R,
        part=batch.requests.part,
        event_R=batch.event_R,
    )
    inputs = replace(inputs, user={**inputs.user, **known_user}, item={**inputs.item, **known})
    logits_R = model(inputs).logits_R.float()
    return weighted_mean(bce(logits_R, batch.label_R), batch.weight_R), logits_R


def weighted_mean(loss_R: Tensor, weight_R: Tensor) -> Tensor:
    """sum(w * loss) / sum(w)."""
    return (loss_R * weight_R).sum() / weight_R.sum()


def softmax_loss(
    model: TowerModel,
    dataset: Dataset,
    names: Sequence[str],
    batch: Batch,
    *,
    log_q_I1: Tensor | None,
    num_drawn: int,
) -> Tensor:
    """Mean softmax cross entropy of every positive against sampled negatives, corrected for their sampling.

    Columns of row b: its own item; the other positives' items, where ``log_q_I1`` [I + 1], the log of every item's
    share of the training positives, is given (in-batch negatives); and its ``num_drawn`` own draws, with the
    ``log_q_R`` of the batch. A column that repeats the target's item, or a draw that the user has in training, is left
    out (accidental hits).

    In-batch negatives alone: every score minus log q, the target's as well. Source: Yi et al., RecSys 2019, eq. 5.
    With draws: scores minus log(N q), N the columns beside the target (left out or not), and the target's as it is, so
    that ``sum_j exp(s_j) / (N q_j)`` estimates the catalogue's ``sum_i exp(s_i)`` but for the target and what is left
    out, and the loss tends to the full softmax as N grows. Source: importance sampling of the partition function,
    Bengio and Senecal, IEEE Trans. Neural Networks 19(4), 2008. Several sources share N, each with its own q; one that
    cannot draw every item (upstream, hard) adds weight to those it can.
    """
    size = len(batch.requests)
    user_BD = model.user_vectors(dataset.user_inputs(names, batch.requests, part=batch.requests.part))
    columns = dataset.item_inputs(
        names,
        batch.item_R,
        time_R=batch.requests.time_B.index_select(0, batch.row_R),
        user_R=batch.requests.user_B.index_select(0, batch.row_R),
        part=batch.requests.part,
        event_R=batch.event_R,
    )
    item_RD = model.item_vectors(columns)
    row_B = torch.arange(size, device=item_RD.device)
    if log_q_I1 is None:
        target_B = torch.zeros_like(row_B)
        score_BN = (user_BD * item_RD[:size]).sum(1, keepdim=True).float()
        where_BN = torch.ones_like(score_BN, dtype=torch.bool)
        log_q_N = score_BN.new_zeros(1)
    else:
        target_B, item_B = row_B, batch.item_R[:size]
        score_BN = (user_BD @ item_RD[:size].T).float()
        where_BN = (item_B.unsqueeze(0) != item_B.unsqueeze(1)).fill_diagonal_(True)
        log_q_N = log_q_I1[item_B]
    if num_drawn == 0:
        return sampled_softmax(score_BN, target_B, log_q_N=log_q_N, where_BN=where_BN).mean()

    row_Q = batch.row_R[size:]
    score_Q = (user_BD.index_select(0, row_Q) * item_RD[size:]).sum(1).float()
    at_Q = row_Q, batch.slot_R[size:] - 1  # the places that hold a draw; the others were left out

    def behind(first_BN: Tensor, drawn_Q: Tensor) -> Tensor:
        return torch.cat([first_BN, first_BN.new_zeros(size, num_drawn).index_put(at_Q, drawn_Q)], 1)

    log_q_BN = behind(log_q_N.expand_as(score_BN), batch.log_q_R[size:])
    log_q_BN[row_B, target_B] = -math.log(log_q_BN.shape[1] - 1)
    where_BN = behind(where_BN, torch.ones_like(row_Q, dtype=torch.bool))
    return sampled_softmax(behind(score_BN, score_Q), target_B, log_q_N=log_q_BN, where_BN=where_BN).mean()


def log_popularity(count_I1: Tensor) -> Tensor:
    """[I + 1] log share of every item among the rows; items without a row count as one."""
    return count_I1.clamp(min=1).double().div(max(1, int(count_I1.sum()))).log().float()

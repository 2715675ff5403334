"""The label loss of positives, each against columns of negatives (floor 6).

B positives of a batch, R rows, Q drawn rows behind the positives, I items, N columns, K draws of a positive,
S items drawn for the whole batch, D vector width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cascade_kd.data import Dataset
from cascade_kd.losses import bpr, ccl, full_softmax, sampled_softmax
from cascade_kd.models import SequenceModel, TowerModel
from cascade_kd.train.distributed import gathered, gathered_with_gradient, mean_over_all, total
from cascade_kd.train.samples import Batch
from cascade_kd.train.settings import TrainConfig


@dataclass(frozen=True)
class Columns:
    """Scores of B positives against N columns: the target's place among them, which count, log q (None: alike)."""

    score_BN: Tensor
    target_B: Tensor
    where_BN: Tensor
    log_q_BN: Tensor | None


def contrast_loss(columns: Columns, train: TrainConfig) -> Tensor:
    """Mean over the positives of the loss that ``train`` names."""
    score_BN, target_B, where_BN = columns.score_BN, columns.target_B, columns.where_BN
    if train.loss == "bpr":
        loss_B = bpr(score_BN, target_B, where_BN=where_BN)
    elif train.loss == "ccl":
        assert train.ccl_margin is not None, "settings fill it in"
        assert train.ccl_weight is not None
        loss_B = ccl(score_BN, target_B, margin=train.ccl_margin, negative_weight=train.ccl_weight, where_BN=where_BN)
    else:
        loss_B = sampled_softmax(score_BN, target_B, log_q_N=columns.log_q_BN, where_BN=where_BN)
    return mean_over_all(loss_B)


def batch_columns(
    model: TowerModel,
    dataset: Dataset,
    names: Sequence[str],
    batch: Batch,
    *,
    log_q_I1: Tensor | None,
    num_drawn: int,
    shared: tuple[Tensor, Tensor] | None = None,
    cosine: bool = False,
) -> Columns:
    """Every positive against the negatives of its batch.

    Columns of row b: its own item; the other positives' items, those of all ranks, where ``log_q_I1`` [I + 1], the log
    of every item's share of the training positives, is given (in-batch negatives); its ``num_drawn`` own draws, with
    the ``log_q_R`` of the batch; and the ``shared`` items [S] of all rows with their log q [S]. A column that repeats
    the target's item, or an own draw that the user has in training, is left out (accidental hits). ``cosine``: of
    vectors of length 1.

    For the softmax, in-batch negatives alone: every score minus log q, the target's as well. Source: Yi et al., RecSys
    2019, eq. 5. With draws: scores minus log(N q), N the columns beside the target (left out or not), and the target's
    as it is, so that ``sum_j exp(s_j) / (N q_j)`` estimates the catalogue's ``sum_i exp(s_i)`` but for the target and
    what is left out, and the loss tends to the full softmax as N grows. Source: importance sampling of the partition
    function, Bengio and Senecal, IEEE Trans. Neural Networks 19(4), 2008. Several sources share N, each with its own q;
    one that cannot draw every item (upstream, hard) adds weight to those it can.
    """
    size = len(batch.requests)
    user_BD = user_vectors(model, dataset, names, batch)
    item_RD = item_vectors(model, dataset, names, batch, batch.item_R, batch.row_R, batch.event_R)
    if cosine:
        user_BD, item_RD = F.normalize(user_BD, dim=1), F.normalize(item_RD, dim=1)
    row_B, item_B = torch.arange(size, device=item_RD.device), batch.item_R[:size]
    if log_q_I1 is None:
        target_B = torch.zeros_like(row_B)
        score_BN = (user_BD * item_RD[:size]).sum(1, keepdim=True).float()
        where_BN = torch.ones_like(score_BN, dtype=torch.bool)
        log_q_BN = torch.zeros_like(score_BN)
    else:
        item_ND, first = gathered_with_gradient(item_RD[:size])
        item_N, target_B = gathered(item_B), row_B + first
        score_BN = (user_BD @ item_ND.T).float()
        where_BN = item_N.unsqueeze(0) != item_B.unsqueeze(1)
        where_BN[row_B, target_B] = True
        log_q_BN = log_q_I1[item_N].expand_as(score_BN)
    if num_drawn == 0 and shared is None:
        return Columns(score_BN, target_B, where_BN, log_q_BN)

    scores, wheres, log_qs = [score_BN], [where_BN], [log_q_BN]
    if num_drawn:
        row_Q = batch.row_R[size:]
        score_Q = (user_BD.index_select(0, row_Q) * item_RD[size:]).sum(1).float()
        score_BK, where_BK, log_q_BK = _own_draws(score_Q, batch, num_drawn)
        scores, wheres, log_qs = [*scores, score_BK], [*wheres, where_BK], [*log_qs, log_q_BK]
    if shared is not None:
        item_S, log_q_S = shared
        item_SD = item_vectors(model, dataset, names, batch, item_S, _moments(batch, len(item_S)))
        score_BS = (user_BD @ (F.normalize(item_SD, dim=1) if cosine else item_SD).T).float()
        scores, wheres = [*scores, score_BS], [*wheres, item_S.unsqueeze(0) != item_B.unsqueeze(1)]
        log_qs = [*log_qs, log_q_S.expand_as(score_BS)]
    log_q_BN = torch.cat(log_qs, 1)
    log_q_BN[row_B, target_B] = -math.log(log_q_BN.shape[1] - 1)
    return Columns(torch.cat(scores, 1), target_B, torch.cat(wheres, 1), log_q_BN)


def catalogue_loss(model: TowerModel, dataset: Dataset, names: Sequence[str], batch: Batch) -> Tensor:
    """Mean over the positives of the softmax over all I items of the catalogue.

    An item whose features change with time is taken as of the moment of one of the batch's positives, spread evenly.
    """
    user_BD = user_vectors(model, dataset, names, batch)
    item_I = dataset.item_codes()
    item_ID = item_vectors(model, dataset, names, batch, item_I, _moments(batch, len(item_I)))
    size = user_BD.new_tensor(len(user_BD), dtype=torch.float32)
    return full_softmax(user_BD, item_ID, batch.item_R - 1) * (size / total(size))


def row_columns(logits_R: Tensor, batch: Batch, num_drawn: int) -> Columns:
    """Every positive against its own draws, by the logits of the batch's rows, for a model without vectors."""
    size = len(batch.requests)
    score_BK, where_BK, log_q_BK = _own_draws(logits_R[size:], batch, num_drawn)
    score_BN = torch.cat([logits_R[:size].unsqueeze(1), score_BK], 1)
    target_B = torch.zeros(size, dtype=torch.int64, device=logits_R.device)
    return Columns(score_BN, target_B, F.pad(where_BK, (1, 0), value=True), F.pad(log_q_BK, (1, 0)))


def user_vectors(model: TowerModel, dataset: Dataset, names: Sequence[str], batch: Batch) -> Tensor:
    """[B, D] of the batch's requests: one by one, or along the stretches of history that hold them."""
    if batch.stretches is None:
        return model.user_vectors(dataset.user_inputs(names, batch.requests, part=batch.requests.part))
    assert isinstance(model, SequenceModel), "config checks this"
    others = [name for name in names if name != batch.stretches.history]
    columns = dataset.user_inputs(others, batch.requests, part=batch.requests.part)
    return model.vectors_along(columns, batch.stretches)


def item_vectors(
    model: TowerModel,
    dataset: Dataset,
    names: Sequence[str],
    batch: Batch,
    item_R: Tensor,
    row_R: Tensor,
    event_R: Tensor | None = None,
) -> Tensor:
    """[R, D] of items as of the moments of the requests ``row_R``."""
    time_R, user_R = (x.index_select(0, row_R) for x in (batch.requests.time_B, batch.requests.user_B))
    columns = dataset.item_inputs(
        names, item_R, time_R=time_R, user_R=user_R, part=batch.requests.part, event_R=event_R
    )
    return model.item_vectors(columns)


def _own_draws(score_Q: Tensor, batch: Batch, num_drawn: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, places that hold a draw (the others were left out), and log q of the drawn rows, each [B, K]."""
    size = len(batch.requests)
    at_Q = batch.row_R[size:], batch.slot_R[size:] - 1
    score_BK = score_Q.new_zeros(size, num_drawn).index_put(at_Q, score_Q)
    log_q_BK = score_Q.new_zeros(size, num_drawn).index_put(at_Q, batch.log_q_R[size:])
    return (
        score_BK,
        torch.zeros_like(score_BK, dtype=torch.bool).index_put(at_Q, torch.ones_like(at_Q[0]).bool()),
        log_q_BK,
    )


def _moments(batch: Batch, num: int) -> Tensor:
    """[num] requests of the batch, in turn: whose moments items of nobody's are taken at."""
    return torch.arange(num, device=batch.item_R.device) % len(batch.requests)


def log_popularity(count_I1: Tensor) -> Tensor:
    """[I + 1] log share of every item among the rows; items without a row count as one."""
    return count_I1.clamp(min=1).double().div(max(1, int(count_I1.sum()))).log().float()

"""Objectives on who survives the stages' cuts: LCRON and ARF.

Axes: B lists, R ranks, K places of a list, S stages. ``truth_BK`` marks the ground truths (``top_places`` of the
teacher's order). All stages score one list; ``keeps`` are their budgets. Scores need not be in any order but for
``arf_global``. A list that no stage cuts teaches nothing: value and gradient 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from cascade_kd.losses.cascades.soft_sort import Membership, log_neural_sort, membership
from cascade_kd.losses.checks import check_same_shape
from cascade_kd.masked import masked_mean, masked_sum


def _check_stages(scores: Sequence[Tensor], keeps: Sequence[int], truth_BK: Tensor, where_BK: Tensor) -> None:
    if len(scores) != len(keeps) or not scores:
        raise ValueError(f"every stage needs its scores and its budget, got {len(scores)} and {len(keeps)}")
    for score_BK in scores:
        check_same_shape(score_BK, where_BK, "scores and their mask")
    check_same_shape(truth_BK, where_BK, "ground truths and their mask")


def _memberships(
    scores: Sequence[Tensor], keeps: Sequence[int], where_BK: Tensor, temperature: float
) -> list[Membership]:
    return [
        membership(log_neural_sort(score_BK, where_BK=where_BK, temperature=temperature), keep, where_BK=where_BK)
        for score_BK, keep in zip(scores, keeps, strict=True)
    ]


def _single(stage: Membership, truth_BK: Tensor, where_BK: Tensor) -> Tensor:
    loss_BK = -torch.where(truth_BK, stage.log_in_BK, stage.log_out_BK)
    return masked_mean(loss_BK, where_BK & stage.cuts_B[:, None])


def _end_to_end(stages: Sequence[Membership], truth_BK: Tensor, where_BK: Tensor) -> Tensor:
    log_in_SBK = torch.stack([stage.log_in_BK for stage in stages])
    log_out_SBK = torch.stack([stage.log_out_BK for stage in stages])
    survives_BK = log_in_SBK.sum(dim=0)
    # The chance to be lost, 1 - prod_i (1 - out_i): to be lost first by stage i, summed over i. Its value comes from
    # terms that none of them rounds away, its gradient, prod_{j != i} in_j / lost for log out_i, is put in by hand.
    with torch.no_grad():
        reaches_SBK = torch.stack(list(accumulate(log_in_SBK.unbind()))) - log_in_SBK  # passes all stages before
        lost_BK = (log_out_SBK + reaches_SBK).logsumexp(dim=0)
        slope_SBK = (log_out_SBK + survives_BK - log_in_SBK - lost_BK).exp()
    lost_BK = lost_BK + (slope_SBK * (log_out_SBK - log_out_SBK.detach())).sum(dim=0)
    cuts_B = torch.stack([stage.cuts_B for stage in stages]).any(dim=0)
    return masked_mean(-torch.where(truth_BK, survives_BK, lost_BK), where_BK & cuts_B[:, None])


def lcron_single(score_BK: Tensor, truth_BK: Tensor, *, where_BK: Tensor, keep: int, temperature: float) -> Tensor:
    """Binary cross entropy of one stage's top-``keep`` membership with the ground truths, mean over places, [B].

    Ground truths move the rows up to ``keep`` of NeuralSort, the others the rows beyond it. Source: LCRON, 2025,
    ``L_single``; ARF-v2 has it in place of :func:`arf_relax`.
    """
    _check_stages([score_BK], [keep], truth_BK, where_BK)
    (stage,) = _memberships([score_BK], [keep], where_BK, temperature)
    return _single(stage, truth_BK, where_BK)


def lcron_end_to_end(
    scores: Sequence[Tensor], truth_BK: Tensor, *, where_BK: Tensor, keeps: Sequence[int], temperature: float
) -> Tensor:
    """Binary cross entropy of surviving every stage, ``prod_i membership_i``, mean over places, [B].

    The product is a lower bound of the cascade's survival (LCRON, 2025, ``L_e2e``). As in its code, a place that is no
    ground truth moves the rows beyond each stage's budget.
    """
    _check_stages(scores, keeps, truth_BK, where_BK)
    return _end_to_end(_memberships(scores, keeps, where_BK, temperature), truth_BK, where_BK)


def lcron(
    scores: Sequence[Tensor],
    truth_BK: Tensor,
    weight_S: Tensor,
    *,
    where_BK: Tensor,
    keeps: Sequence[int],
    temperature: float,
) -> Tensor:
    """``sum_i L_single,i / (2 w_i^2) + L_e2e + log prod_i |w_i|`` with learnable weights from 1, [B].

    Source: Wang et al., "Learning cascade ranking as one network", 2025 (kwai/LCRON: temperature 50, both budgets at
    the number of ground truths; no weight on ``L_e2e``).
    """
    _check_stages(scores, keeps, truth_BK, where_BK)
    stages = _memberships(scores, keeps, where_BK, temperature)
    loss_B = _end_to_end(stages, truth_BK, where_BK) + weight_S.abs().log().sum()
    for stage, weight in zip(stages, weight_S.unbind(), strict=True):
        loss_B = loss_B + _single(stage, truth_BK, where_BK) / (2 * weight.square())
    return loss_B.masked_fill(~torch.stack([stage.cuts_B for stage in stages]).any(dim=0), 0.0)


def arf_relax(score_BK: Tensor, truth_BK: Tensor, *, where_BK: Tensor, keep: int, temperature: float) -> Tensor:
    """``mean_j -y_j log(mean_{r <= keep} P_rj)``: ARF's surrogate of Recall@keep, mean over places, [B].

    At its least, log(keep) per ground truth, not 0, since it takes the mean over rows. Source: Wang et al., "Adaptive
    neural ranking framework", WWW 2024, ``L_relax``. Differs: in log space, without its 1e-6.
    """
    _check_stages([score_BK], [keep], truth_BK, where_BK)
    cuts_B1 = where_BK.sum(dim=1, keepdim=True) > keep
    log_p_BRK = log_neural_sort(score_BK, where_BK=where_BK, temperature=temperature)
    log_mean_BK = log_p_BRK[:, :keep].logsumexp(dim=1) - math.log(keep)
    return masked_mean(-log_mean_BK.masked_fill(~(truth_BK & where_BK), 0.0), where_BK & cuts_B1)


def arf_global(score_BK: Tensor, *, where_BK: Tensor, temperature: float) -> Tensor:
    """``mean_{r, j} -Pi_rj log P_rj`` with Pi the teacher's permutation; places in the teacher's order, [B].

    The n places that count give n^2 pairs (r, j). Source: ARF, WWW 2024, ``L_global``. Differs: as :func:`arf_relax`.
    """
    log_p_BRK = log_neural_sort(score_BK, where_BK=where_BK, temperature=temperature)
    row_BK = (where_BK.cumsum(dim=1) - 1).clamp(min=0)
    log_own_BK = log_p_BRK.gather(1, row_BK[:, None, :]).squeeze(1)
    return masked_sum(-log_own_BK, where_BK) / where_BK.sum(dim=1).clamp(min=1).square()


def arf(
    score_BK: Tensor,
    truth_BK: Tensor,
    weight: Tensor,
    *,
    where_BK: Tensor,
    keep: int,
    temperature: float,
    two_sided: bool = False,
) -> Tensor:
    """``L_relax + L_global / (2 w^2) + log |w|`` with a learnable weight from 1; places in the teacher's order, [B].

    ``two_sided`` is ARF-v2: :func:`lcron_single` in place of :func:`arf_relax`. Source: Wang et al., "Adaptive neural
    ranking framework", WWW 2024 (temperature 200 in kwai/LCRON).
    """
    relax = lcron_single if two_sided else arf_relax
    relax_B = relax(score_BK, truth_BK, where_BK=where_BK, keep=keep, temperature=temperature)
    global_B = arf_global(score_BK, where_BK=where_BK, temperature=temperature)
    loss_B = relax_B + global_B / (2 * weight.square()) + weight.abs().log()
    return loss_B.masked_fill(where_BK.sum(dim=1) <= keep, 0.0)

"""Pairwise objectives between the stages of a cascade: ICC, FS priority pairs, COPR; and RankFlow's tutoring.

Axes: B lists, K places of a list, C chunks, S stages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cascade_kd.losses.checks import check_same_shape, check_teacher
from cascade_kd.losses.order.pairwise import pair_loss
from cascade_kd.losses.order.places import check_k, positions, top_places
from cascade_kd.masked import masked_mean

Gate = Literal["sigmoid", "clip"]


def stage_pairwise(score_BK: Tensor, level_BK: Tensor, *, where_BK: Tensor, weight_BK: Tensor | None = None) -> Tensor:
    """FS priority pairs: mean over the pairs of different level of ``-w_u log sigmoid(s_u - s_l)``, [B].

    ``level_BK`` says how far down the cascade a place came (any numbers, larger is further: shown above ranked above
    pre-ranked); u has the larger. ``weight_BK`` weighs the pairs by their upper place. Divided by the number of pairs,
    not by their weights, as published. Memory O(B K^2).

    Source: RecFlow, ICLR 2025, FS-LTR (RecFlow-ICLR/RecFlow). Differs: the mean over each list, not over the batch.
    """
    check_same_shape(score_BK, where_BK, "scores and their mask")
    check_same_shape(level_BK, where_BK, "levels and their mask")
    score_BK = score_BK.masked_fill(~where_BK, 0.0)
    pair_BKK = where_BK[:, :, None] & where_BK[:, None, :] & (level_BK[:, :, None] > level_BK[:, None, :])
    loss_BKK = pair_loss(score_BK[:, None, :] - score_BK[:, :, None])
    if weight_BK is not None:
        check_same_shape(weight_BK, where_BK, "weights and their mask")
        loss_BKK = loss_BKK * weight_BK.masked_fill(~where_BK, 0.0)[:, :, None]
    return masked_mean(loss_BKK.flatten(1), pair_BKK.flatten(1))


def fused_score(
    scores: Sequence[Tensor], *, where_BK: Tensor, keeps: Sequence[int], width: float = 1e-3, gate: Gate = "sigmoid"
) -> Tensor:
    """ICC's score of a whole cascade, [B, K]: a place has the score of the stage that cuts it.

    ``sum_{i < S} I_1 .. I_{i-1} (1 - I_i) s_i + I_1 .. I_S s_S``, where ``I_i = sigmoid((s_i - kappa_i) / width)`` or
    ``(1 + clip((s_i - kappa_i) / width, -1, 1)) / 2`` is the gate of stage i at its keep-th largest score kappa, which
    has a gradient. As the width goes to 0 it becomes the hard cascade, but for the keep-th place itself (and its
    ties), whose gate is 1/2. A stage that keeps the whole list cuts nothing: its gate is 1.

    Source: Gallagher et al., "Joint optimization of cascade ranking models", WSDM 2019. Differs: stages are not
    weighted by powers of 2, as kwai/LCRON's three-stage form is and its two-stage form is not.
    """
    if len(scores) != len(keeps) or not scores:
        raise ValueError(f"every stage needs its scores and its budget, got {len(scores)} and {len(keeps)}")
    if not 0.0 < width < math.inf:
        raise ValueError(f"width must be a finite number > 0, got {width}")
    fused_BK, passed_BK = torch.zeros_like(scores[0]), torch.ones_like(scores[0])
    for stage, (score_BK, keep) in enumerate(zip(scores, keeps, strict=True), start=1):
        check_k(keep)
        check_same_shape(score_BK, where_BK, "scores and their mask")
        score_BK = score_BK.masked_fill(~where_BK, 0.0)
        gate_BK = _gate(score_BK, where_BK, keep, width, gate)
        if stage < len(scores):
            fused_BK = fused_BK + passed_BK * (1 - gate_BK) * score_BK
        else:
            fused_BK = fused_BK + passed_BK * gate_BK * score_BK
        passed_BK = passed_BK * gate_BK
    return fused_BK.masked_fill(~where_BK, 0.0)


def _gate(score_BK: Tensor, where_BK: Tensor, keep: int, width: float, gate: Gate) -> Tensor:
    if keep >= score_BK.shape[1]:
        return torch.ones_like(score_BK)
    lowest = torch.finfo(score_BK.dtype).min
    kth_B1 = score_BK.masked_fill(~where_BK, lowest).topk(keep, dim=1).indices[:, -1:]
    step_BK = (score_BK - score_BK.gather(1, kth_B1)) / width
    gate_BK = step_BK.sigmoid() if gate == "sigmoid" else (1 + step_BK.clamp(-1, 1)) / 2
    return gate_BK.masked_fill((where_BK.sum(dim=1) <= keep)[:, None], 1.0)


def icc(
    scores: Sequence[Tensor],
    level_BK: Tensor,
    *,
    where_BK: Tensor,
    keeps: Sequence[int],
    width: float = 1e-3,
    gate: Gate = "sigmoid",
) -> Tensor:
    """ICC: :func:`stage_pairwise` of the :func:`fused_score` of all stages, [B].

    ``level_BK`` is the relevance: ``-positions(where_BK)`` where places are in the teacher's order. Each unordered pair
    counts once. Fragile at small widths: the gates saturate. Differs: the mean over pairs, not over K^2 places.
    """
    fused_BK = fused_score(scores, where_BK=where_BK, keeps=keeps, width=width, gate=gate)
    return stage_pairwise(fused_BK, level_BK, where_BK=where_BK)


def rankflow_tutoring(student_BK: Tensor, teacher_BK: Tensor, *, where_BK: Tensor, k: int, mix: float) -> Tensor:
    """RankFlow: the next stage's first k above the rest, and its probabilities, [B].

    ``mix * -log sigmoid(mean l of the top k - mean l of the rest) + (1 - mix) * mean (sigmoid(l) - sigmoid(z))^2``,
    logits of both, places in the teacher's order. A list of at most k places has no rest: its first term is 0.

    Source: Qin et al., "RankFlow", SIGIR 2022 (qinjr/RankFlow; mix .2 or .5).
    """
    check_teacher(student_BK, teacher_BK)
    check_same_shape(student_BK, where_BK, "student and its mask")
    if not 0.0 <= mix <= 1.0:
        raise ValueError(f"mix must be between 0 and 1, got {mix}")
    student_BK = student_BK.masked_fill(~where_BK, 0.0)
    top_BK = top_places(where_BK, k)
    rest_BK = where_BK & ~top_BK
    pair_B = pair_loss(masked_mean(student_BK, rest_BK) - masked_mean(student_BK, top_BK))
    square_BK = (student_BK.sigmoid() - teacher_BK.masked_fill(~where_BK, 0.0).sigmoid()).square()
    return mix * pair_B.masked_fill(~rest_BK.any(dim=1), 0.0) + (1 - mix) * masked_mean(square_BK, where_BK)


def copr(logits_BC: Tensor, *, where_BC: Tensor, bid_BC: Tensor | None = None) -> Tensor:
    """COPR: weighted mean over the pairs i before j of ``log(1 + exp(-(y_i b_i / (y_j b_j) - 1)))``, [B].

    One place of each chunk of the ranker's list, in its order (``draw_chunks``); ``y = sigmoid(logit)`` is the
    student's, b > 0 the bid, 1 unless given. The weight of a pair is what swapping it does to the ranker's nDCG: gain
    ``(n + 1 - p) / n`` at position p, discount ``1 / log2(1 + p)``.

    Source: Zhao et al., "COPR: consistency-oriented pre-ranking for online advertising", CIKM 2023. Differs: gains
    fall linearly, since an order has no grades; divided by the sum of weights.
    """
    check_same_shape(logits_BC, where_BC, "logits and their mask")
    value_BC = F.logsigmoid(logits_BC.masked_fill(~where_BC, 0.0))
    if bid_BC is not None:
        check_same_shape(bid_BC, where_BC, "bids and their mask")
        if bool(((bid_BC <= 0) & where_BC).any()):
            raise ValueError("bids must be > 0")
        value_BC = value_BC + bid_BC.masked_fill(~where_BC, 1.0).log()
    position_BC = positions(where_BC)
    pair_BCC = (position_BC[:, :, None] < position_BC[:, None, :]) & where_BC[:, :, None]
    # Beyond a ratio of e^7 the loss and its gradient are 0 in any type; the cut keeps infinity out of both.
    ratio_BCC = (value_BC[:, :, None] - value_BC[:, None, :]).clamp(max=7.0).exp()
    loss_BCC = pair_loss(1 - ratio_BCC)
    gain_BC = 1 - (position_BC.to(logits_BC.dtype) - 1) / where_BC.sum(dim=1, keepdim=True).clamp(min=1)
    discount_BC = 1 / torch.log2(1 + position_BC.to(logits_BC.dtype).clamp(min=1))
    weight_BCC = pair_BCC * (gain_BC[:, :, None] - gain_BC[:, None, :]).abs()
    weight_BCC = weight_BCC * (discount_BC[:, :, None] - discount_BC[:, None, :]).abs()
    mass_B = weight_BCC.sum(dim=(1, 2))
    return (weight_BCC * loss_BCC).sum(dim=(1, 2)) / mass_B.masked_fill(mass_B == 0, 1.0)

"""Pairwise losses on a teacher's list: an upper place against a lower one.

Axes: B lists, K places in the teacher's order, k first of them, P pairs.

The loss of a pair is RankNet's ``log(1 + exp(s_lower - s_upper))``, the same function as BPR's
``-log sigmoid(s_upper - s_lower)``; with a ``margin`` the hinge ``max(0, margin - (s_upper - s_lower))`` instead.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cascade_kd.losses.checks import check_same_shape
from cascade_kd.losses.order.places import first_places, position_weight, positions, student_rank
from cascade_kd.masked import masked_mean, masked_sum


def pair_loss(excess_P: Tensor, margin: float | None = None) -> Tensor:
    """Loss of pairs whose lower score exceeds the upper one by ``excess_P``, elementwise.

    ``log(1 + exp(excess))``, RankNet, Burges et al., ICML 2005 (BPR, Rendle et al., UAI 2009), or the hinge
    ``max(0, margin + excess)``.
    """
    # Beyond 40 the softplus of x is x in every type; torch's own threshold of 20 is not exact in float64.
    return F.softplus(excess_P, threshold=40.0) if margin is None else (margin + excess_P).clamp(min=0)


def topk_pairwise(
    score_BK: Tensor,
    *,
    where_BK: Tensor,
    k: int | Tensor | None = None,
    margin: float | None = None,
    alpha: float = 0.0,
    lambdas: bool = False,
) -> Tensor:
    """Weighted mean over the pairs whose upper place is among the teacher's first k, [B]; all pairs if k is None.

    ``k`` [B] is of every list its own: what stands behind it, in no order, is lower than the first k alone.

    These are the pairs within the top k and of the top k against the rest. A pair weighs ``1 + alpha / position`` of
    its upper place, and with ``lambdas`` also :func:`delta_ndcg`. Divided by the sum of weights (detached), so that k
    and the weights do not change the size of the loss. 0 for a list without a pair. Memory O(B k K); longer lists:
    :func:`sampled_pairwise`.

    Source: Zhang Junlin, "Knowledge distillation in recommender systems", 2020; Burges, "From RankNet to LambdaRank
    to LambdaMART", 2010, for the lambda weights. Differs: normalised by the weights.
    """
    check_same_shape(score_BK, where_BK, "scores and their mask")
    score_BK = score_BK.masked_fill(~where_BK, 0.0)
    upper_Bk = first_places(where_BK, k)
    position_k = torch.arange(1, upper_Bk.shape[1] + 1, device=score_BK.device)
    pair_BkK = positions(where_BK)[:, None, :] > position_k[:, None]  # padded places have position 0
    if isinstance(k, Tensor):
        pair_BkK = pair_BkK & (position_k <= k[:, None])[:, :, None]
    loss_BkK = pair_loss(score_BK[:, None, :] - score_BK.gather(1, upper_Bk)[:, :, None], margin)
    weight_BkK = pair_BkK.to(score_BK.dtype)
    if lambdas:
        weight_BkK = weight_BkK * delta_ndcg(score_BK, where_BK=where_BK, k=k)
    weight_k = position_weight(position_k.to(score_BK.dtype), alpha)
    mass_B = weight_BkK.sum(dim=2) @ weight_k
    return (weight_BkK * loss_BkK).sum(dim=2) @ weight_k / mass_B.masked_fill(mass_B == 0, 1.0)


def delta_ndcg(score_BK: Tensor, *, where_BK: Tensor, k: int | Tensor | None = None) -> Tensor:
    """What swapping two places in the student's order does to nDCG, of the first k against all, [B, min(k, K), K].

    ``|g_u - g_l| |d_u - d_l| / ideal``: the gain falls linearly with the teacher's position p, ``(k + 1 - p) / k``
    (k cut to the list), 0 after k, since an order has no grades; the discount is ``1 / log2(1 + rank)`` of the
    student's rank, ties to the teacher's earlier place. Without gradient; entries that are no pair are arbitrary.
    """
    position_BK = positions(where_BK).to(score_BK.dtype)
    num_B1 = where_BK.sum(dim=1, keepdim=True).clamp(min=1)
    if k is not None:
        num_B1 = num_B1.clamp(max=k.unsqueeze(1) if isinstance(k, Tensor) else torch.tensor(k, device=num_B1.device))
    gain_BK = ((num_B1 + 1 - position_BK) / num_B1).clamp(min=0).masked_fill(~where_BK, 0.0)
    ideal_B = (gain_BK / torch.log2(1 + position_BK.clamp(min=1))).sum(dim=1).clamp(min=1)
    discount_BK = 1 / torch.log2(1 + student_rank(score_BK, where_BK).to(score_BK.dtype))
    upper_Bk = first_places(where_BK, k)
    gain_BkK = gain_BK.gather(1, upper_Bk)[:, :, None] - gain_BK[:, None, :]
    discount_BkK = discount_BK.gather(1, upper_Bk)[:, :, None] - discount_BK[:, None, :]
    return (gain_BkK * discount_BkK).abs() / ideal_B[:, None, None]


def sampled_pairwise(
    score_BK: Tensor,
    upper_BP: Tensor,
    lower_BP: Tensor,
    *,
    where_BP: Tensor,
    margin: float | None = None,
    weight_BP: Tensor | None = None,
) -> Tensor:
    """Mean over given pairs of places, weighted where they have weights, [B]; 0 for a list without a pair.

    Pairs of ``draw_pairs`` make it the sampled form of :func:`topk_pairwise`; pairs of ``draw_group_pairs``, which
    never cross groups of popularity, make it UnKD's (Chen et al., "Unbiased knowledge distillation for
    recommendation", WSDM 2023). Differs: the mean over pairs, as in their code, instead of the sum.
    """
    check_same_shape(upper_BP, lower_BP, "upper and lower places")
    check_same_shape(upper_BP, where_BP, "pairs and their mask")
    check_same_shape(score_BK[:, :0], upper_BP[:, :0], "lists of scores and of pairs")
    excess_BP = score_BK.gather(1, lower_BP) - score_BK.gather(1, upper_BP)
    loss_BP = pair_loss(excess_BP.masked_fill(~where_BP, 0.0), margin)
    if weight_BP is None:
        return masked_mean(loss_BP, where_BP)
    check_same_shape(weight_BP, where_BP, "weights and the mask of pairs")
    mass_B = masked_sum(weight_BP, where_BP)
    return masked_sum(weight_BP * loss_BP, where_BP) / mass_B.masked_fill(mass_B == 0, 1.0)

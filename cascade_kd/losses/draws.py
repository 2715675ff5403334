"""Seeded draws that list methods train on: places, pairs, permutations.

Axes: B lists, K places in the teacher's order, n drawn places, P drawn pairs, S permutations,
G groups, I items, C chunks.

Every draw takes its generator and consumes it alone (``streams.generator_at``), in float64 on the generator's device,
so that devices agree. What a list cannot fill is masked. No loop over lists.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cascade_kd.losses.checks import check_same_shape, check_temperature
from cascade_kd.losses.order.places import first_places


def _uniform(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Uniform in [0, 1), float64."""
    return torch.rand(shape, generator=generator, dtype=torch.float64, device=generator.device).to(like.device)


def draw_places(weight_BK: Tensor, num: int, *, where_BK: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw distinct places of every list, one after the other with chances in proportion to their weights.

    Returns (``place_Bn``, ``where_Bn``): ascending, so in the teacher's order, real ones first; a place of weight 0 is
    never drawn. RRD's interesting items and CD's sample: weights ``decay_weight``; DCD's: ``gap_weight``.

    Source: Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006: the smallest of exponential
    variables over weights.
    """
    check_same_shape(weight_BK, where_BK, "weights and their mask")
    wait_BK = -torch.log1p(-_uniform(tuple(weight_BK.shape), generator, weight_BK)) / weight_BK.double()
    wait_BK = wait_BK.masked_fill(~where_BK | (weight_BK <= 0), math.inf)
    first = wait_BK.topk(min(num, wait_BK.shape[1]), dim=1, largest=False, sorted=False)
    end = weight_BK.shape[1]
    place_Bn = first.indices.masked_fill(first.values.isinf(), end).sort(dim=1).values
    return place_Bn.masked_fill(place_Bn == end, 0), place_Bn < end


def draw_pairs(
    where_BK: Tensor, num: int, *, k: int | Tensor | None = None, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw pairs of places uniformly, with replacement, from those of ``topk_pairwise``.

    Returns (``upper_BP``, ``lower_BP``, ``where_BP``): upper among the teacher's first k (None: any; [B]: of every list
    its own), lower anywhere behind it. Lists shorter than 2 have none.
    """
    order_BK = first_places(where_BK, None)
    num_B1 = where_BK.sum(dim=1, keepdim=True)
    position_k = torch.arange(1, first_places(where_BK, k).shape[1] + 1, device=where_BK.device)
    below_Bk = (num_B1 - position_k).clamp(min=0)
    if isinstance(k, Tensor):
        below_Bk = below_Bk.masked_fill(position_k > k.unsqueeze(1), 0)
    upto_Bk = below_Bk.cumsum(dim=1)  # pairs whose upper place is this one or before it
    total_B1 = upto_Bk[:, -1:]
    nth_BP = (_uniform((len(where_BK), num), generator, where_BK) * total_B1).long()
    upper_BP = torch.searchsorted(upto_Bk, nth_BP, right=True).clamp(max=upto_Bk.shape[1] - 1)
    lower_BP = upper_BP + 1 + nth_BP - (upto_Bk - below_Bk).gather(1, upper_BP)
    where_BP = (total_B1 > 0).expand(nth_BP.shape)
    lower_BP = lower_BP.masked_fill(~where_BP, 0)
    return order_BK.gather(1, upper_BP), order_BK.gather(1, lower_BP), where_BP


def draw_group_pairs(
    group_BK: Tensor, num: int, *, num_groups: int, scale: float, where_BK: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw ``num`` pairs of places inside every group of every list, for UnKD.

    Two distinct places of a group, drawn one after the other with chances in proportion to ``e^{-rank / scale}``, rank
    from 1 within the group in the teacher's order; the earlier one is the upper. Returns (``upper_BP``, ``lower_BP``,
    ``where_BP``), P = G num, group by group; a group with fewer than 2 places has none.

    Source: Chen et al., "Unbiased knowledge distillation for recommendation", WSDM 2023 (scale 20). Differs: their
    code draws both with replacement and repeats equal ones, and gives larger groups more pairs.
    """
    check_same_shape(group_BK, where_BK, "groups and their mask")
    check_temperature(scale)
    group_BK = group_BK.masked_fill(~where_BK, num_groups)
    by_group_BK = group_BK.argsort(dim=1, stable=True)
    size_BG = torch.zeros(len(group_BK), num_groups + 1, dtype=torch.int64, device=group_BK.device)
    size_BG = size_BG.scatter_add(1, group_BK, torch.ones_like(group_BK))[:, :num_groups]
    start_BG = size_BG.cumsum(dim=1) - size_BG

    n_BGP = size_BG.unsqueeze(2).double()
    u_BGP, v_BGP = _uniform((2, len(group_BK), num_groups, num), generator, group_BK).unbind(0)
    first_BGP = _geometric(u_BGP, n_BGP, scale)
    # The second place: the share of the first is cut out of the unit interval.
    before_BGP, upto_BGP = (_geometric_cdf(first_BGP - step, n_BGP, scale) for step in (1, 0))
    v_BGP = v_BGP * (1 - (upto_BGP - before_BGP))
    second_BGP = _geometric(v_BGP + (upto_BGP - before_BGP) * (v_BGP >= before_BGP), n_BGP, scale)
    where_BGP = (n_BGP >= 2) & (first_BGP != second_BGP)  # equal by rounding only

    place = torch.stack([torch.minimum(first_BGP, second_BGP), torch.maximum(first_BGP, second_BGP)]).long() - 1
    place = (place + start_BG.unsqueeze(2)).masked_fill(~where_BGP, 0).flatten(2)
    return by_group_BK.gather(1, place[0]), by_group_BK.gather(1, place[1]), where_BGP.flatten(1)


def _geometric_cdf(rank: Tensor, n: Tensor, scale: float) -> Tensor:
    """``P(r <= rank)`` where ``P(r)`` is in proportion to ``e^{-r / scale}`` for r = 1 to n."""
    return torch.expm1(-rank / scale) / torch.expm1(-n.clamp(min=1) / scale)


def _geometric(u: Tensor, n: Tensor, scale: float) -> Tensor:
    """The smallest rank whose ``_geometric_cdf`` exceeds ``u``, as a whole float from 1 to n."""
    rank = 1 + torch.floor(-scale * torch.log1p(u * torch.expm1(-n.clamp(min=1) / scale)))
    return torch.minimum(rank.clamp(min=1), n.clamp(min=1))


def draw_permutations(
    teacher_BK: Tensor, num: int, *, where_BK: Tensor, temperature: float = 1.0, generator: torch.Generator
) -> Tensor:
    """Draw orders of the places from the teacher's Plackett-Luce model, ``order_BSK``; padded places come last.

    By Gumbel noise on ``z / temperature``, for RankDistil. Source: Yellott, "The relationship between Luce's choice
    axiom, ..., and the double exponential distribution", 1977.
    """
    check_same_shape(teacher_BK, where_BK, "teacher and its mask")
    check_temperature(temperature)
    batch, width = teacher_BK.shape
    # -log of an exponential variable; 1 - u lies in (0, 1], and the tiny number keeps log(0) away.
    wait_BSK = -torch.log1p(-_uniform((batch, num, width), generator, teacher_BK))
    key_BSK = teacher_BK.detach().double()[:, None, :] / temperature - wait_BSK.clamp(min=1e-300).log()
    return key_BSK.masked_fill(~where_BK[:, None, :], -math.inf).argsort(dim=2, descending=True, stable=True)


def draw_chunks(where_BK: Tensor, chunks: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Cut every list into chunks of equal length, within one, and draw one place of each, for COPR.

    Returns (``place_BC``, ``where_BC``) in the teacher's order. Of n places chunk c holds
    ``[floor(c n / C), floor((c + 1) n / C))``; with n < C some hold none.
    """
    edge_C1 = torch.arange(chunks + 1, device=where_BK.device)
    edge_BC1 = edge_C1 * where_BK.sum(dim=1, keepdim=True) // chunks
    size_BC = edge_BC1.diff(dim=1)
    place_BC = edge_BC1[:, :-1] + (_uniform(tuple(size_BC.shape), generator, size_BC) * size_BC).long()
    where_BC = size_BC > 0
    return first_places(where_BK, None).gather(1, place_BC.masked_fill(~where_BC, 0)), where_BC


def popularity_groups(popularity_I: Tensor, num_groups: int) -> Tensor:
    """Cut the items, most popular first, into groups of equal popularity mass, ``group_I``, 0 the most popular.

    An item goes to group ``floor(G * mass before it / all mass)``: masses differ from each other by less than twice
    the largest item's. Ties go to the smaller code; items of no popularity to the last group. Raises ValueError for
    negative popularity and for no groups.
    """
    if num_groups < 1 or bool((popularity_I < 0).any()):
        raise ValueError(f"popularity must be >= 0 and the groups at least 1, got {num_groups} groups")
    mass_I, order_I = popularity_I.double().sort(descending=True, stable=True)
    before_I = mass_I.cumsum(0) - mass_I
    group_I = (num_groups * before_I / mass_I.sum().clamp(min=1e-300)).long().clamp(max=num_groups - 1)
    group_I = group_I.masked_fill(mass_I == 0, num_groups - 1)
    return torch.empty_like(order_I).scatter_(0, order_I, group_I)

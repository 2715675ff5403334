"""Masks: folding tensors under one, and the mask "is this item in that user's set" (floor 1).

Axes: B lists or users, K places of a list, P entries of a ragged set. A mask is named ``where_..`` and is true where
the value counts. Whatever stands under a false place, NaN and infinity included, changes neither value nor gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mask_logits(logits_BK: Tensor, where_BK: Tensor) -> Tensor:
    """Masked logits set to the lowest finite number of their type, so that a softmax gives them exactly 0."""
    return torch.where(where_BK, logits_BK, torch.finfo(logits_BK.dtype).min)


def masked_log_softmax(logits_BK: Tensor, where_BK: Tensor) -> Tensor:
    """Log-softmax of every row over the places of ``where_BK``; the other places hold 0.

    ``log p_i = l_i - log sum_{j in where} exp(l_j)``. The 0 (not -inf) keeps products finite: fold the result with
    :func:`masked_sum`. A row without a place is 0 throughout, with gradient 0.
    """
    return torch.log_softmax(mask_logits(logits_BK, where_BK), dim=-1).masked_fill(~where_BK, 0.0)


def masked_sum(value_BK: Tensor, where_BK: Tensor) -> Tensor:
    """Sum of every row over the places of ``where_BK``, over the last axis; 0 with gradient 0 where there is none."""
    return value_BK.masked_fill(~where_BK, 0.0).sum(dim=-1)


def masked_mean(value_BK: Tensor, where_BK: Tensor) -> Tensor:
    """Mean of every row over the places of ``where_BK``, over the last axis; 0 with gradient 0 where there is none."""
    return masked_sum(value_BK, where_BK) / where_BK.sum(dim=-1).clamp(min=1)


def is_member(item_BK: Tensor, offsets_B1: Tensor, member_P: Tensor) -> Tensor:
    """Whether ``item_BK[b, k]`` is one of ``member_P[offsets_B1[b]:offsets_B1[b + 1]]``; bool [B, K].

    Items are int64 >= 0, members ascend within each row of the ragged set; a negative item (padding) is in no set.
    Cost: one binary search a place. Raises ValueError for offsets that do not fit or members that do not ascend.
    """
    if len(offsets_B1) != len(item_BK) + 1 or int(offsets_B1[0]) != 0 or int(offsets_B1[-1]) != len(member_P):
        raise ValueError(
            f"offsets must hold B + 1 = {len(item_BK) + 1} entries from 0 to {len(member_P)}, "
            f"got {len(offsets_B1)} from {int(offsets_B1[0])} to {int(offsets_B1[-1])}"
        )
    if member_P.numel() == 0 or item_BK.numel() == 0:
        return torch.zeros_like(item_BK, dtype=torch.bool)
    rows_B = torch.arange(len(item_BK), device=item_BK.device)
    stride = torch.maximum(item_BK.max(), member_P.max()) + 1  # one key per (row, item): row * stride + item
    member_key_P = rows_B.repeat_interleave(offsets_B1.diff()) * stride + member_P
    if not bool((member_key_P.diff() >= 0).all()):
        raise ValueError("the members of each row must ascend; sort every row of the ragged set")
    key_BK = (rows_B[:, None] * stride + item_BK).contiguous()
    place_BK = torch.searchsorted(member_key_P, key_BK).clamp(max=len(member_P) - 1)
    return (member_key_P[place_BK] == key_BK) & (item_BK >= 0)

"""Which items a user already has in the log: sorted distinct (user, item) pairs (floor 2).

Axes: P distinct pairs, B users asked for, K items of a user's row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def seen_pairs(user_N: Tensor, item_N: Tensor, num_items: int) -> SeenPairs:
    """Index the pairs of N events; pairs with an unknown user or item (code 0) are left out."""
    known_N = (user_N > 0) & (item_N > 0)
    width = num_items + 1
    return SeenPairs(torch.unique(user_N[known_N] * width + item_N[known_N]), width)


@dataclass(frozen=True)
class SeenPairs:
    """Keys ``user * width + item``, ascending and distinct; ``width`` is one more than the largest item code."""

    key_P: Tensor
    width: int

    def contains(self, user_B: Tensor, item_BK: Tensor) -> Tensor:
        """Whether the user of each row has each of its items, bool [B, K] (``item_BK`` may be [B] as well)."""
        user = user_B.view(-1, *[1] * (item_BK.dim() - 1))
        key = user * self.width + item_BK
        if not len(self.key_P):
            return torch.zeros_like(key, dtype=torch.bool)
        place = torch.searchsorted(self.key_P, key.contiguous()).clamp(max=len(self.key_P) - 1)
        return self.key_P[place] == key

    def of_users(self, user_B: Tensor) -> tuple[Tensor, Tensor]:
        """CSR: row b's items are ``item_P[offsets_B1[b]:offsets_B1[b + 1]]``, ascending."""
        start_B = torch.searchsorted(self.key_P, user_B * self.width)
        count_B = torch.searchsorted(self.key_P, (user_B + 1) * self.width) - start_B
        offsets_B1 = torch.cat([count_B.new_zeros(1), count_B.cumsum(0)])
        within_P = torch.arange(int(offsets_B1[-1]), device=user_B.device) - offsets_B1[:-1].repeat_interleave(count_B)
        return offsets_B1, self.key_P[start_B.repeat_interleave(count_B) + within_P] % self.width

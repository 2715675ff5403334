"""Feature-interaction layers on one small interface: fields in, an interaction and its logit out (floor 3).

R rows, F fields, D embedding, P = F(F-1)/2 pairs, W width of the interaction, H maps or heads.

A layer is called with the fields [R, F, D] and returns the interaction [R, W] (the hidden state ``interaction``) and
its share of the logit [R]. So a ranker is an MLP, with or without such a layer beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def linear(width: int, out: int, *, bias: bool = True) -> nn.Linear:
    """A linear layer with Glorot's uniform weights and bias 0."""
    layer = nn.Linear(width, out, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


@final
class FactorizationMachine(nn.Module):
    """sum_{i<j} <v_i, v_j> = 1/2 sum_d [(sum_i v_id)^2 - sum_i v_id^2]; the interaction is its D summands.

    Source: Rendle, ICDM 2010, lemma 3.1; no parameters of its own.
    """

    def forward(self, fields_RFD: Tensor) -> tuple[Tensor, Tensor]:
        """The interaction [R, D] and its sum [R]."""
        pooled_RD = _PairSum.apply(fields_RFD)  # type: ignore[no-untyped-call]
        return pooled_RD, pooled_RD.sum(1)


class _PairSum(torch.autograd.Function):
    """[R, D] sums over the pairs of fields; d/dv_i = sum_j v_j - v_i, in half the passes that autograd would take."""

    @staticmethod
    def forward(ctx: Any, fields_RFD: Tensor) -> Tensor:
        sum_RD = fields_RFD.sum(1)
        ctx.save_for_backward(fields_RFD, sum_RD)
        return 0.5 * (sum_RD.square() - fields_RFD.square().sum(1))

    @staticmethod
    def backward(ctx: Any, grad_RD: Tensor) -> Tensor:
        fields_RFD, sum_RD = ctx.saved_tensors
        others_RFD: Tensor = sum_RD.unsqueeze(1) - fields_RFD
        return others_RFD.mul_(grad_RD.unsqueeze(1))


@final
class CrossLayers(nn.ModuleList):
    """x_{l+1} = x_0 * (W_l x_l + b_l) + x_l, elementwise product; of DCN-V2, full rank.

    Source: Wang et al., DCN V2, WWW 2021, eq. 1.
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__(linear(width, width) for _ in range(layers))

    def forward(self, x0_RW: Tensor) -> Tensor:
        """[R, W] to [R, W]."""
        x_RW = x0_RW
        for layer in self:
            x_RW = torch.addcmul(x_RW, x0_RW, layer(x_RW))
        return x_RW


@final
class CrossNetwork(nn.Module):
    """:class:`CrossLayers` with a head; the interaction is their output."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.layers = CrossLayers(width, layers)
        self.head = linear(width, 1, bias=False)

    def forward(self, fields_RFD: Tensor) -> tuple[Tensor, Tensor]:
        """The crossed embedding [R, F*D] and its logit [R]."""
        x_RW = self.layers(fields_RFD.flatten(1))
        return x_RW, self.head(x_RW).squeeze(1)


@final
class CompressedInteraction(nn.Module):
    """x^k_h = sum_{i,j} W^k_{h,ij} (x^{k-1}_i * x^0_j), one D-vector a map; all maps are summed over D for the head.

    Source: Lian et al., xDeepFM, KDD 2018, eq. 6 and 8, all maps to the output (``direct``), identity activation.
    """

    def __init__(self, num_fields: int, maps: Sequence[int]) -> None:
        super().__init__()
        widths = [num_fields, *maps]
        self.layers = nn.ModuleList(
            linear(before * num_fields, after, bias=False) for before, after in pairwise(widths)
        )
        self.head = linear(sum(maps), 1, bias=False)

    def forward(self, fields_RFD: Tensor) -> tuple[Tensor, Tensor]:
        """The pooled maps [R, sum of maps] and their logit [R]."""
        x_RHD, pooled = fields_RFD, []
        for layer in self.layers:
            outer_RDM = torch.einsum("rhd,rfd->rdhf", x_RHD, fields_RFD).flatten(2)
            x_RHD = layer(outer_RDM).transpose(1, 2)
            pooled.append(x_RHD.sum(2))
        state_RW = torch.cat(pooled, dim=1)
        return state_RW, self.head(state_RW).squeeze(1)


@final
class SelfAttention(nn.Module):
    """Multi-head self-attention over the fields with a residual, ReLU after each layer.

    Source: Song et al., AutoInt, CIKM 2019, eq. 5 to 8; no scaling of the scores, as there.
    """

    def __init__(self, num_fields: int, dim: int, *, layers: int, heads: int, size: int) -> None:
        super().__init__()
        self.heads = heads
        widths = [dim, *[size * heads] * layers]
        self.project = nn.ModuleList(
            linear(before, 4 * after, bias=False) for before, after in pairwise(widths)
        )  # query, key, value and residual in one product
        self.head = linear(num_fields * widths[-1], 1, bias=False)

    def forward(self, fields_RFD: Tensor) -> tuple[Tensor, Tensor]:
        """The attended fields, flat [R, F * size * heads], and their logit [R]."""
        x_RFW = fields_RFD
        for project in self.project:
            query, key, value, residual_RFW = project(x_RFW).chunk(4, dim=2)
            query, key, value = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
            attended = F.scaled_dot_product_attention(query, key, value, scale=1.0)
            x_RFW = (attended.transpose(1, 2).flatten(2) + residual_RFW).relu()
        state_RW = x_RFW.flatten(1)
        return state_RW, self.head(state_RW).squeeze(1)

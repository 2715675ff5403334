"""From a history's embedded items to one vector (floor 3). B requests, L places, D embedding, H heads.

A history comes with its most recent item first and padding (False in ``valid_BL``) behind; one without an item gives
zeros. An encoder is called with the items [B, L, D] and ``valid_BL`` and returns [B, D].

A causal encoder has ``along`` as well: the same of every history that ends at one of the L places, [B, L, D], in one
pass. There the items come oldest first, padding behind; what stands at padded places means nothing.
"""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cascade_kd.models.dropout import Dropout
from cascade_kd.models.interaction import linear
from cascade_kd.models.settings import HistoryConfig


def make_encoder(config: HistoryConfig, dim: int, length: int) -> nn.Module:
    """The encoder of histories of ``length`` items, ``dim`` wide."""
    if config.kind == "last":
        return LastItems(config.last)
    if config.kind == "attention":
        return AttentionPooling(dim)
    assert config.kind == "transformer", config.kind
    return Transformer(dim, length, blocks=config.blocks, heads=config.heads, dropout=config.dropout)


def means_along(item_BLD: Tensor) -> Tensor:
    """[B, L, D] the mean of the items up to every place, oldest first."""
    return item_BLD.cumsum(1) / _counts(item_BLD)


def _counts(item_BLD: Tensor) -> Tensor:
    """[L, 1]: 1, 2, ... items up to a place."""
    return torch.arange(1, item_BLD.shape[1] + 1, device=item_BLD.device, dtype=item_BLD.dtype).unsqueeze(1)


@final
class LastItems(nn.Module):
    """The mean of the last k items."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, item_BLD: Tensor, valid_BL: Tensor) -> Tensor:
        """[B, D]."""
        weight_BL = valid_BL[:, : self.k].to(item_BLD.dtype)
        weight_BL = weight_BL / weight_BL.sum(1, keepdim=True).clamp(min=1)
        return torch.bmm(weight_BL.unsqueeze(1), item_BLD[:, : self.k]).squeeze(1)

    def along(self, item_BLD: Tensor, valid_BL: Tensor) -> Tensor:
        """[B, L, D]."""
        behind_BDL = F.pad(item_BLD.transpose(1, 2), (self.k - 1, 0))
        mean_BLD = F.avg_pool1d(behind_BDL, self.k, stride=1).transpose(1, 2)  # missing items count as zeros
        return mean_BLD * (self.k / _counts(item_BLD).clamp(max=self.k))


@final
class AttentionPooling(nn.Module):
    """sum_l a_l x_l with a = softmax over the items of v . tanh(W x_l + b).

    Source: the additive attention of Bahdanau et al., ICLR 2015, with a learned query, as NAML pools clicked news
    (Wu et al., IJCAI 2019, eq. 6 and 7).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project = linear(dim, dim)
        self.query = linear(dim, 1, bias=False)

    def forward(self, item_BLD: Tensor, valid_BL: Tensor) -> Tensor:
        """[B, D]."""
        score_BL = self.query(self.project(item_BLD).tanh()).squeeze(2).masked_fill(~valid_BL, -torch.inf)
        # A row without an item has only -inf: its softmax is NaN, which 0 replaces before any gradient sees it.
        some_B1 = valid_BL.any(1, keepdim=True)
        weight_BL = score_BL.masked_fill(~some_B1, 0.0).softmax(1) * some_B1
        return torch.bmm(weight_BL.unsqueeze(1), item_BLD).squeeze(1)


@final
class Transformer(nn.Module):
    """A small causal transformer over the items in time order; its output at the last item.

    Positions count from the most recent item, so that a short history is a long one cut off; along a history, where an
    item has one position for all histories that end behind it, from the last item of all. Blocks normalise first,
    the feed-forward has the width of the embedding. Source: Kang and McAuley, SASRec, ICDM 2018, section III; there
    positions count from the left edge of the padded sequence and only the queries are normalised.
    """

    def __init__(self, dim: int, length: int, *, blocks: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.position_LD = nn.Parameter(torch.randn(length, dim) * 0.02)
        self.blocks = nn.ModuleList(Block(dim, heads, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def forward(self, item_BLD: Tensor, valid_BL: Tensor) -> Tensor:
        """[B, D]."""
        length = item_BLD.shape[1]
        # Index 0 is the most recent: an item attends to itself and to those behind it.
        earlier_LL = torch.ones(length, length, dtype=torch.bool, device=item_BLD.device).triu()
        attend_B1LL = (earlier_LL & valid_BL.unsqueeze(1)).unsqueeze(1)
        # A padded place may look at itself, so that no row of the attention is empty; nothing looks at it.
        attend_B1LL = attend_B1LL | torch.eye(length, dtype=torch.bool, device=item_BLD.device)
        x_BLD = self.dropout(item_BLD * item_BLD.shape[2] ** 0.5 + self.position_LD[:length])
        for block in self.blocks:
            x_BLD = block(x_BLD, attend_B1LL)
        return self.norm(x_BLD[:, 0]) * valid_BL[:, :1]  # type: ignore[no-any-return]

    def along(self, item_BLD: Tensor, valid_BL: Tensor) -> Tensor:
        """[B, L, D]."""
        place_L = torch.arange(item_BLD.shape[1], device=item_BLD.device)
        ago_BL = (valid_BL.sum(1, keepdim=True) - 1 - place_L).clamp(min=0)
        x_BLD = self.dropout(item_BLD * item_BLD.shape[2] ** 0.5 + F.embedding(ago_BL, self.position_LD))
        for block in self.blocks:
            x_BLD = block(x_BLD)
        return self.norm(x_BLD)  # type: ignore[no-any-return]


@final
class Block(nn.Module):
    """Attention and feed-forward, each behind a layer norm and with a residual."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_forward = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.project = linear(dim, 3 * dim)
        self.out = linear(dim, dim)
        self.inner, self.outer = linear(dim, dim), linear(dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, x_BLD: Tensor, attend_B1LL: Tensor | None = None) -> Tensor:
        """[B, L, D]; True in ``attend_B1LL`` where a place (row) may read another (column). None: those up to it."""
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in self.project(self.norm_attention(x_BLD)).chunk(3, dim=2)
        )
        causal = attend_B1LL is None  # without a mask the kernel skips what nobody reads
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=attend_B1LL, is_causal=causal)
        x_BLD = x_BLD + self.dropout(self.out(read.transpose(1, 2).flatten(2)))
        deep_BLD = self.outer(self.dropout(self.inner(self.norm_forward(x_BLD)).relu()))
        return x_BLD + self.dropout(deep_BLD)  # type: ignore[no-any-return]

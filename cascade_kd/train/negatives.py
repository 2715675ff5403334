"""Negatives drawn for a positive event, by source, and the probability of each draw (floor 6).

P positives, K negatives of a positive, R rows (request, item), I items, U users, L places of a list.

A draw is a hash of (stream, event, slot), and of the epoch where it is drawn anew, put through the distribution of its
source: the same whatever is drawn beside it or before, so a teacher's scores of it can be kept and a resume needs no
state. The draws of a positive are independent and may repeat. One that the user has in training, the positive itself
among them, is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor

from cascade_kd.streams import hashed, seed_at
from cascade_kd.train.settings import SampleSource
from cascade_kd.types import Candidates

IsSeen = Callable[[Tensor, Tensor], Tensor]  # (user_P, item_PK) -> bool [P, K]: has the user the item in training


class Distribution(Protocol):
    """Where the draws of one source come from."""

    def items(self, draw_PK: Tensor, user_P: Tensor) -> Tensor:
        """[P, K] item codes of draws that are uniform in [0, 2^62), int64; 0 where there is nothing to draw."""
        ...

    def log_q(self, user_R: Tensor, item_R: Tensor) -> Tensor:
        """[R] float32, the log of the probability that one draw for the user is the item."""
        ...


@final
@dataclass(frozen=True)
class Uniform:
    """Every item of the catalogue alike, q = 1 / I (to within I / 2^62)."""

    num_items: int

    def items(self, draw_PK: Tensor, user_P: Tensor) -> Tensor:
        """The remainder of the draw."""
        return draw_PK % self.num_items + 1

    def log_q(self, user_R: Tensor, item_R: Tensor) -> Tensor:
        """-log I."""
        return torch.full(item_R.shape, -math.log(self.num_items), device=item_R.device)


@final
@dataclass(frozen=True)
class Popularity:
    """Items by their share, q = p_i."""

    cumulative_I: Tensor  # running total of the shares, float64, 1 at the end
    log_share_I1: Tensor

    def items(self, draw_PK: Tensor, user_P: Tensor) -> Tensor:
        """The first item whose running total exceeds the draw's 53 leading bits, taken to [0, 1)."""
        share_PK = (draw_PK >> 9).double() * 2.0**-53
        return torch.searchsorted(self.cumulative_I, share_PK, right=True) + 1

    def log_q(self, user_R: Tensor, item_R: Tensor) -> Tensor:
        """log p_i, -inf for an item that is never drawn."""
        return self.log_share_I1.index_select(0, item_R)


@final
@dataclass(frozen=True)
class Upstream:
    """Every place of the user's own list alike, q = 1 / length."""

    item_UL: Tensor
    length_U: Tensor  # at least 1: a user without a list draws its padding, item 0
    log_q_U: Tensor  # -log length

    def items(self, draw_PK: Tensor, user_P: Tensor) -> Tensor:
        """The remainder of the draw is the place."""
        user_P1 = user_P.unsqueeze(1)
        return self.item_UL[user_P1, draw_PK % self.length_U[user_P1]]

    def log_q(self, user_R: Tensor, item_R: Tensor) -> Tensor:
        """-log length."""
        return self.log_q_U.index_select(0, user_R)


def by_popularity(counts_I1: Tensor, power: float) -> Popularity:
    """Shares counts^power / their sum; code 0 and items without an event are never drawn.

    Computed on the CPU: a total that differs in its last bit would draw another item.
    """
    device, counts_I1 = counts_I1.device, counts_I1.cpu()
    weight_I = torch.where(counts_I1 > 0, counts_I1.double() ** power, 0.0)[1:]
    cumulative_I = weight_I.cumsum(0)
    log_share_I = (weight_I / cumulative_I[-1]).log().float()
    # Divided, the total is 1 exactly from the last item that can be drawn on, and every draw is below it.
    log_share_I1 = torch.cat([log_share_I.new_tensor([-torch.inf]), log_share_I])
    return Popularity((cumulative_I / cumulative_I[-1]).to(device), log_share_I1.to(device))


@final
@dataclass(frozen=True)
class Negatives:
    """The negatives of any positive: slots 1, 2, ... in the order of ``sources``; slot 0 is the positive itself."""

    sources: tuple[tuple[Distribution, int], ...]  # with the number of its slots
    seed: int
    is_seen: IsSeen

    @property
    def num(self) -> int:
        """K, the negatives of a positive."""
        return sum(count for _, count in self.sources)

    def draw(self, user_P: Tensor, event_P: Tensor, epoch: int = 0) -> Tensor:
        """[P, K] the items drawn for the positive events ``event_P`` of ``user_P``, 0 where a draw is left out."""
        seed = seed_at(self.seed, epoch) if epoch else self.seed
        slot_K = torch.arange(1, self.num + 1, device=event_P.device)
        draw_PK = hashed(seed, event_P.unsqueeze(1) * (self.num + 1) + slot_K)
        item_PK = torch.empty_like(draw_PK)
        start = 0
        for distribution, count in self.sources:
            places = slice(start, start + count)
            item_PK[:, places] = distribution.items(draw_PK[:, places], user_P)
            start += count
        return item_PK.masked_fill(self.is_seen(user_P, item_PK), 0)

    def log_q(self, user_R: Tensor, item_R: Tensor, slot_R: Tensor) -> Tensor:
        """[R] log of the probability with which a row's slot draws its item for its user; 0 in slot 0."""
        log_q_R = torch.zeros(slot_R.shape, device=slot_R.device)
        start = 1
        for distribution, count in self.sources:
            of_source_R = (slot_R >= start) & (slot_R < start + count)
            log_q_R = torch.where(of_source_R, distribution.log_q(user_R, item_R), log_q_R)
            start += count
        return log_q_R


@final
@dataclass(frozen=True)
class SharedNegatives:
    """Items drawn anew every step for all positives of the batch, with their log q; they may repeat."""

    sources: tuple[tuple[Distribution, int], ...]
    seed: int
    device: torch.device

    @property
    def num(self) -> int:
        """S, the items of a step."""
        return sum(count for _, count in self.sources)

    def draw(self, step: int) -> tuple[Tensor, Tensor]:
        """Item codes [S] int64 and the log of the probability that one draw is the item [S]."""
        nobody_1 = torch.zeros(1, dtype=torch.int64, device=self.device)
        draw_S = hashed(seed_at(self.seed, step), torch.arange(self.num, device=self.device))
        items: list[Tensor] = []
        log_qs: list[Tensor] = []
        for distribution, draw_K in zip(
            (distribution for distribution, _ in self.sources),
            draw_S.split([count for _, count in self.sources]),
            strict=True,
        ):
            items.append(distribution.items(draw_K.unsqueeze(0), nobody_1)[0])
            log_qs.append(distribution.log_q(nobody_1.expand_as(items[-1]), items[-1]))
        return torch.cat(items), torch.cat(log_qs)


def make_negatives(
    sources: Sequence[SampleSource],
    seed: int,
    *,
    num_items: int,
    is_seen: IsSeen,
    counts_I1: Callable[[], Tensor],
    lists: Candidates | None = None,
) -> Negatives:
    """What uniform, popularity and upstream ``sources`` draw; the other sources draw nothing that could be kept.

    ``counts_I1`` gives the training events of every item and is asked for popularity alone; ``lists`` [U + 1, L] are
    the upstream lists by user code.
    """
    made = tuple(
        (make_distribution(source, num_items=num_items, counts_I1=counts_I1, lists=lists), source.per_positive)
        for source in sources
    )
    return Negatives(made, seed, is_seen)


def make_distribution(
    source: SampleSource, *, num_items: int, counts_I1: Callable[[], Tensor], lists: Candidates | None = None
) -> Distribution:
    """Where the draws of a uniform, popularity or upstream source come from."""
    if source.source == "uniform":
        return Uniform(num_items)
    if source.source == "popularity":
        assert source.power is not None, "settings fill it in"
        return by_popularity(counts_I1(), source.power)
    assert source.source == "upstream", source.source
    assert lists is not None, "config gives such a stage its lists"
    length_U = lists.valid_BK.sum(1).clamp(min=1)
    return Upstream(lists.item_BK, length_U, length_U.float().log().neg())

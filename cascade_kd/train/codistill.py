"""Codistillation: peers of one architecture that learn from each other's weights of a while ago (floor 6).

    loss_i = label loss + weight * cross entropy(mean over j of sigmoid(z_j), z_i)     from step ``burn_in_steps`` on

z_j are the logits of the other peers by the weights that they published last, without gradient. Source: Anil et al.,
"Large scale distributed neural network training through online distillation", ICLR 2018, algorithm 1. R rows, M
training rows.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import ClassVar, final

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from cascade_kd.losses import cross_entropy_binary
from cascade_kd.models import Model
from cascade_kd.stages.ensemble import mean_probability_logit
from cascade_kd.streams import generator_at
from cascade_kd.train.codistill_settings import CodistillConfig
from cascade_kd.train.exchange import Exchange
from cascade_kd.train.objective import weighted_mean
from cascade_kd.train.terms import LiveTeacher, Moment, Term
from cascade_kd.types import Feature, Inputs, Level, Output, Side

PEERS = "peers"  # the live teacher of a peer: all others
NAME = "codistill"  # the term


def codistill_term(config: CodistillConfig, exchange: Exchange) -> Term:
    """The agreement with the other peers, a mean over the rows; it weighs nothing before any could be read."""

    def on(moment: Moment) -> Tensor:
        teacher_R = moment.taught[PEERS].logits_R.float()
        return weighted_mean(cross_entropy_binary(moment.output.logits_R.float(), teacher_R), moment.batch.weight_R)

    def weight(step: int, total_steps: int) -> float:
        return config.weight if step >= config.burn_in_steps and exchange.used else 0.0

    return Term(NAME, on, weight, teacher=PEERS)


def peers_as_teacher(nets: Mapping[int, Model], exchange: Exchange, features: tuple[Feature, ...]) -> LiveTeacher:
    """All peers that could be read as one teacher."""
    return LiveTeacher(PEERS, MeanOfPeers(nets, exchange), features)


def share_of_rows(rows_M: Tensor, peer: int, peers: int, seed: int) -> Tensor:
    """The training rows of one peer, ascending: the shares are disjoint, alike in size, and together all rows."""
    order_M = torch.randperm(len(rows_M), generator=generator_at(seed)).to(rows_M.device)
    return rows_M[order_M[peer::peers].sort().values]


def take_turns(trainings: Iterable[Iterator[int]]) -> None:
    """Train several at once in one process: each yields its step when it waits for the others, the last goes first."""
    waiting: list[tuple[int, int, Iterator[int]]] = []
    for place, training in enumerate(trainings):
        _advance(waiting, place, training)
    while waiting:
        _, place, training = heapq.heappop(waiting)
        _advance(waiting, place, training)


def _advance(waiting: list[tuple[int, int, Iterator[int]]], place: int, training: Iterator[int]) -> None:
    step = next(training, None)
    if step is not None:
        heapq.heappush(waiting, (step, place, training))


@final
class MeanOfPeers(nn.Module):
    """A model whose logit is that of the mean probability of the peers that could be read."""

    Config: ClassVar[type[BaseModel]] = BaseModel
    levels: ClassVar[tuple[Level, ...]] = ()
    sides: ClassVar[tuple[Side, ...]] = ()
    hidden_names: tuple[str, ...] = ()

    def __init__(self, nets: Mapping[int, Model], exchange: Exchange) -> None:
        super().__init__()
        self.nets = nn.ModuleDict({str(peer): net for peer, net in nets.items()})  # type: ignore[misc]
        self.exchange = exchange

    def forward(self, inputs: Inputs, hidden: Collection[str] = ()) -> Output:
        """Logits [R]."""
        logits = [self.nets[str(peer)](inputs).logits_R.float() for peer in sorted(self.exchange.used)]
        return Output(mean_probability_logit(torch.stack(logits)), {})

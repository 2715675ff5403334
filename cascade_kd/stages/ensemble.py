"""Teachers that are no single model: the mean of several, and scores that the user brings (floor 4).

R rows (request, item), E members. Neither is ever a stage of a cascade.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor

from cascade_kd.data import Dataset
from cascade_kd.stages.interface import LogitStage
from cascade_kd.stages.scoring import order_by_logits
from cascade_kd.types import Candidates, Level, Requests


def mean_probability_logit(logit_ER: Tensor) -> Tensor:
    """The logit [R] of the members' mean probability, ``logit(mean_e sigmoid(z_e))``, exact at large logits."""
    return F.logsigmoid(logit_ER).logsumexp(0) - F.logsigmoid(-logit_ER).logsumexp(0)


@final
@dataclass(frozen=True)
class EnsembleStage:
    """Teaches with the mean of its members' probabilities."""

    name: str
    members: tuple[LogitStage, ...]
    keep: int = 1
    level: Level = "never"
    signals: frozenset[str] = frozenset({"ranking", "logits"})

    def order(self, requests: Requests, candidates: Candidates | None) -> Candidates:
        """The received candidates under the mean."""
        assert candidates is not None, "an ensemble retrieves nothing"
        return order_by_logits(self, requests, candidates)

    def __call__(self, requests: Requests, candidates: Candidates | None) -> Candidates:
        """The best ``keep``."""
        return self.order(requests, candidates).top(self.keep)

    def logits(self, requests: Requests, item_R: Tensor, row_R: Tensor, event_R: Tensor | None = None) -> Tensor:
        """Logits [R] of the mean probability."""
        return mean_probability_logit(torch.stack([m.logits(requests, item_R, row_R, event_R) for m in self.members]))


@final
@dataclass(frozen=True)
class ColumnStage:
    """Teaches with a column of the event table: logits of logged events, NaN of any other row.

    A probability is taken to its logit, 0 and 1 to those of 1e-6 and 1 - 1e-6. Of ranks, 1 the best, the negative
    stands in for a logit: config lets methods on the order alone learn from it.
    """

    name: str
    dataset: Dataset
    column: str
    scores: Literal["logit", "probability", "rank"]
    keep: int = 1
    level: Level = "never"
    signals: frozenset[str] = frozenset({"logits"})

    def order(self, requests: Requests, candidates: Candidates | None) -> Candidates:
        """A column has no score of what was not logged."""
        raise ValueError(f"teacher '{self.name}' is a column of scores and orders no candidates")

    def __call__(self, requests: Requests, candidates: Candidates | None) -> Candidates:
        """As :meth:`order`."""
        return self.order(requests, candidates)

    def logits(self, requests: Requests, item_R: Tensor, row_R: Tensor, event_R: Tensor | None = None) -> Tensor:
        """Logits [R]."""
        if event_R is None:
            return torch.full((len(item_R),), math.nan, device=item_R.device)
        inputs = self.dataset.inputs([self.column], requests, item_R, row_R, part=requests.part, event_R=event_R)
        score_R = inputs.item[self.column] if self.column in inputs.item else inputs.user[self.column][row_R]
        if self.scores == "probability":
            score_R = score_R.logit(eps=1e-6)
        elif self.scores == "rank":
            score_R = -score_R
        return score_R.masked_fill(event_R < 0, math.nan)

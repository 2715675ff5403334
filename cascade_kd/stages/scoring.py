"""Pre-rank and rank: a model scores what the stage before kept (floor 4).

B requests, K candidates, R rows (request, item), M events.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from cascade_kd.data import Dataset
from cascade_kd.models import Model
from cascade_kd.models.modes import evaluating
from cascade_kd.stages.interface import LogitStage, require_online
from cascade_kd.types import Candidates, Feature, Level, Part, Requests

ROWS_PER_CALL = 1 << 16  # rows scored at once: bounds memory at about 100 MB for 20 fields of width 16


@final
@dataclass(frozen=True)
class ScoringStage:
    """Orders every valid candidate by the model's logit + ``upstream_weight`` x the score it came with.

    The scores of a recall stage trained by a sampled softmax are log P(item | user) up to a constant, so with weight 1
    the sum is a product of the two models' odds: what the stage before knows is kept, not learnt again from a few
    sampled negatives. With weight 0, the default, the stage orders by its logit alone.
    """

    name: str
    level: Level
    keep: int
    features: tuple[Feature, ...]
    model: Model
    dataset: Dataset
    upstream_weight: float = 0.0
    signals: frozenset[str] = frozenset({"ranking", "logits", "hidden"})

    def __post_init__(self) -> None:
        require_online(self.name, self.level, self.features)

    def order(self, requests: Requests, candidates: Candidates | None) -> Candidates:
        """The received candidates under the model's logits; a later stage must receive some."""
        if candidates is None:
            raise ValueError(f"stage '{self.name}' orders candidates of a stage before it and cannot come first")
        return order_by_logits(self, requests, candidates, upstream_weight=self.upstream_weight)

    def __call__(self, requests: Requests, candidates: Candidates | None) -> Candidates:
        """The best ``keep`` of the received candidates."""
        return self.order(requests, candidates).top(self.keep)

    def logits(self, requests: Requests, item_R: Tensor, row_R: Tensor, event_R: Tensor | None = None) -> Tensor:
        """Logits [R] of the rows (request, item); ``event_R`` gives the event's own columns where it is known."""
        return score_rows(self.model, self.dataset, self.features, requests, item_R, row_R, event_R)


def order_by_logits(
    stage: LogitStage, requests: Requests, candidates: Candidates, *, upstream_weight: float = 0.0
) -> Candidates:
    """The candidates under the stage's logits; only valid places are scored, a bounded number of rows at a time."""
    score_BK = torch.full_like(candidates.score_BK, -torch.inf, dtype=torch.float32)
    step = max(1, ROWS_PER_CALL // max(1, candidates.width))
    for start in range(0, len(requests), step):
        rows = slice(start, start + step)
        item_BK, valid_BK = candidates.item_BK[rows], candidates.valid_BK[rows]
        row_R, place_R = valid_BK.nonzero(as_tuple=True)
        score_BK[start + row_R, place_R] = stage.logits(requests[rows], item_BK[row_R, place_R], row_R)
    if upstream_weight:
        score_BK = score_BK + upstream_weight * candidates.score_BK
    return candidates.with_scores(score_BK)


def score_rows(
    model: Model,
    dataset: Dataset,
    features: Sequence[Feature],
    requests: Requests,
    item_R: Tensor,
    row_R: Tensor,
    event_R: Tensor | None = None,
) -> Tensor:
    """Logits [R] float32 of the model in evaluation mode, which is left in the mode it was in."""
    names = [feature.name for feature in features]
    with evaluating(model):
        inputs = dataset.inputs(names, requests, item_R, row_R, part=requests.part, event_R=event_R)
        return model(inputs).logits_R.float()


def event_logits(stage: LogitStage, dataset: Dataset, part: Part, rows_M: Tensor) -> Tensor:
    """Logits [M] float32 of logged events of one part, each as of its own moment."""
    logits_M = torch.empty(len(rows_M), device=rows_M.device)
    for start in range(0, len(rows_M), ROWS_PER_CALL):
        rows_B = rows_M[start : start + ROWS_PER_CALL]
        row_B = torch.arange(len(rows_B), device=rows_B.device)
        requests = dataset.requests_of(rows_B, part=part)
        logits_M[start : start + len(rows_B)] = stage.logits(requests, dataset.events.item_N[rows_B], row_B, rows_B)
    return logits_M

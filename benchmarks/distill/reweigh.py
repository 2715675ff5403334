"""The weights at which later stages count in the scores they receive, chosen on validation.

A stage that learnt from an order has logits on another scale than the one that learnt from labels alone, and the stages
after it add them to their own. So that methods are compared by what they order and not by their scale, the weights of
all later stages are chosen anew for every cascade, the undistilled one included.
"""

from __future__ import annotations

from dataclasses import replace

from cascade_kd.cascade import Cascade
from cascade_kd.data import Dataset, evaluation_requests
from cascade_kd.metrics import hits, recall_at
from cascade_kd.stages import ScoringStage
from cascade_kd.types import Candidates, Requests

WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


def reweighed(cascade: Cascade, dataset: Dataset, label: str) -> Cascade:
    """The cascade with the ``upstream_weight`` of each later stage, in order, of the best validation recall@keep."""
    asked = evaluation_requests(dataset, "valid", label)
    first, *later = cascade.stages
    stages, received = [first], first(asked.requests, None)
    for stage in later:
        assert isinstance(stage, ScoringStage)
        found: dict[float, float] = {}
        lists: dict[float, Candidates] = {}
        for weight, ordered in orders(stage, asked.requests, received).items():
            lists[weight] = ordered.top(stage.keep)
            hit_BK = hits(lists[weight].item_BK, lists[weight].valid_BK, asked.offsets_B1, asked.positive_P)
            found[weight] = recall_at(hit_BK, asked.offsets_B1.diff(), stage.keep).mean or 0.0
        best = max(found, key=found.__getitem__)
        stages.append(replace(stage, upstream_weight=best))
        received = lists[best]
    return Cascade(tuple(stages))


def orders(stage: ScoringStage, requests: Requests, received: Candidates) -> dict[float, Candidates]:
    """What the stage makes of what it received, at every weight; its logits are computed once."""
    own = by_item(replace(stage, upstream_weight=0.0).order(requests, received))
    given = by_item(received)
    return {
        weight: Candidates.ranked(own.item_BK, own.score_BK + weight * given.score_BK, own.valid_BK)
        for weight in WEIGHTS
    }


def by_item(candidates: Candidates) -> Candidates:
    """The same candidates in the order of their codes."""
    place_BK = candidates.item_BK.argsort(dim=1)
    columns = (candidates.item_BK, candidates.score_BK, candidates.valid_BK)
    return Candidates(*(column.gather(1, place_BK) for column in columns))

"""What the stages before hand on, as far as the training of a stage reads it (floor 8)."""

from __future__ import annotations

from collections.abc import Sequence

from cascade_kd.cascade import Cascade
from cascade_kd.config import StageConfig
from cascade_kd.data import evaluation_requests
from cascade_kd.experiment.store import content_key
from cascade_kd.experiment.workshop import Trained, Workshop
from cascade_kd.stages import RetrievalStage
from cascade_kd.train import upstream_lists
from cascade_kd.train.monitor import Received
from cascade_kd.types import Candidates


def upstream_key(shop: Workshop, upstream: Sequence[Trained]) -> str:
    """The hash of what the stages before hand on."""
    weights = [s.upstream_weight for s in shop.config.stages[: len(upstream)]]
    stages = [trained.stage for trained in upstream]
    indices = [stage.index.model_dump() for stage in stages if isinstance(stage, RetrievalStage)]
    lists = [[trained.key, trained.stage.keep] for trained in upstream]
    return content_key(lists=lists, upstream_weights=weights, indices=indices)


def read_lists_key(shop: Workshop, stage: StageConfig, upstream: Sequence[Trained]) -> str:
    """The hash of what the stages before hand on, where a training draws samples from it or is stopped by it; or ""."""
    drawn, monitored = draws_from_lists(stage), is_monitored_on_lists(stage, upstream)
    if not (drawn or monitored):
        return ""
    return content_key(upstream=upstream_key(shop, upstream), order=stage.upstream_weight if monitored else None)


def draws_from_lists(stage: StageConfig) -> bool:
    """Whether the stage draws samples from what the stages before hand on."""
    return stage.train is not None and any(source.source == "upstream" for source in stage.train.samples)


def is_monitored_on_lists(stage: StageConfig, upstream: Sequence[Trained]) -> bool:
    """Whether the stage stops by its order of what the stages before hand on."""
    return stage.train is not None and stage.train.monitor.startswith("recall@") and bool(upstream)


def lists_from(shop: Workshop, upstream: Sequence[Trained]) -> Candidates:
    """[U + 1, K] what the stages before hand on for every training user, by user code."""
    cascade = Cascade(tuple(trained.stage for trained in upstream))
    lists = shop.store.lists(upstream_key(shop, upstream), lambda: upstream_lists(cascade, shop.dataset))
    device = shop.device
    return Candidates(lists.item_BK.to(device), lists.score_BK.to(device), lists.valid_BK.to(device))


def received_from(shop: Workshop, stage: StageConfig, upstream: Sequence[Trained]) -> Received | None:
    """What the stages before hand on for the validation requests, for a stage that is monitored on it."""
    if not is_monitored_on_lists(stage, upstream):
        return None
    assert stage.train is not None
    cascade = Cascade(tuple(trained.stage for trained in upstream))
    asked = evaluation_requests(shop.dataset, "valid", stage.train.label)
    return Received(cascade.trace(asked.requests).steps[-1].kept, stage.upstream_weight)

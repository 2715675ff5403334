"""Rounds of training: every stage undistilled, then every student with its distillers (floor 8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cascade_kd.cascade import Cascade
from cascade_kd.config import ExperimentConfig, StageConfig
from cascade_kd.data import Dataset
from cascade_kd.distill import LogitDistillConfig, logit_loss, weight_at
from cascade_kd.experiment.rundir import CHECKPOINTS, ORIGIN
from cascade_kd.experiment.store import Store, content_key, source_digest
from cascade_kd.models import Model, TowerModel
from cascade_kd.retrieval import IndexConfig
from cascade_kd.serve import prove_availability
from cascade_kd.stages import LogitStage, RetrievalStage, ScoringStage, Stage
from cascade_kd.streams import scoped_seed, seed_at, stream
from cascade_kd.train import (
    ProgressLog,
    Task,
    Term,
    fit,
    is_finished,
    load_best,
    make_sampler,
    teacher_logits,
    upstream_lists,
)
from cascade_kd.train.grow import VOCABULARY, Grown, embedding_tables, grow, newer_rows
from cascade_kd.types import Candidates, Feature


@dataclass(frozen=True)
class Trained:
    """A stage ready to serve, the hash of all that made it, and its learning curve."""

    stage: Stage
    key: str
    curve: Sequence[dict[str, Any]] = ()


@dataclass(frozen=True)
class Workshop:
    """What all stages of one experiment are made with."""

    config: ExperimentConfig
    dataset: Dataset
    out: Path
    store: Store
    progress: ProgressLog

    @property
    def device(self) -> torch.device:
        """Where the data is, and so where training happens."""
        return self.dataset.events.user_N.device


Round = dict[str, Trained]


def train_rounds(shop: Workshop, seed: int) -> list[Round]:
    """Round 0, then ``rounds`` more if anything is to be trained again; each holds every stage by name.

    Round 0 trains every stage without distillers, each on the lists of the one before. A later round trains every
    student (and every stage with ``refresh``) from a fresh start of the same seed; teachers and upstream lists are
    those of the round before.
    """
    config = shop.config
    first: Round = {}
    for stage in config.stages:
        first[stage.name] = train_stage(shop, seed, 0, stage, list(first.values()), {})
    rounds = [first]
    again = [s for s in config.stages if s.refresh or any(d.student == s.name for d in config.distill)]
    for number in range(1, config.rounds + 1 if again else 1):
        before = rounds[-1]
        after = dict(before)
        for stage in again:
            upstream = [before[s.name] for s in config.stages[: config.stages.index(stage)]]
            after[stage.name] = train_stage(shop, seed, number, stage, upstream, before)
        rounds.append(after)
    return rounds


def train_stage(
    shop: Workshop, seed: int, round_number: int, stage: StageConfig, upstream: list[Trained], teachers: Round
) -> Trained:
    """Train one stage, or take it from the store if the same content was trained before.

    ``teachers`` holds the stages of the round before, empty in round 0.
    """
    kind = stage.model_type
    content = _stage_content(stage)
    if not issubclass(kind, nn.Module):
        built = kind(stage.model, name=stage.name, level=stage.level, keep=stage.keep, dataset=shop.dataset)
        return Trained(built, content_key(stage=content, data=shop.dataset.sha256))
    assert stage.train is not None, "config refuses a model without [train]"
    # Rounds 0 and 1 share their streams: weight 0 is then the undistilled run bit for bit, and seeds are paired.
    stream_seed = stream(seed, max(round_number, 1), stage.name)
    distillers = [d for d in shop.config.distill if d.student == stage.name] if teachers else []
    reads_upstream = any(source.source == "upstream" for source in stage.train.samples)
    lists_key = _lists_key(shop, upstream) if reads_upstream else ""
    features = stage_features(stage, kind, shop.dataset)
    with scoped_seed(seed_at(stream(stream_seed, "initial weights"), 0)):
        model = kind(stage.model, features)
    grown = _grown(shop, seed, round_number, stage, model)
    if grown is not None:
        model.load_state_dict(grown.model)
    key = content_key(
        stage=content,
        data=shop.dataset.sha256,
        streams=stream_seed,
        lists=lists_key,
        distill=[[d.model_dump(), teachers[d.teacher].key] for d in distillers],
        init_from=grown.origin if grown is not None else None,
        machine=[shop.device.type, torch.get_num_threads(), torch.__version__, shop.config.deterministic],
    )
    model.to(shop.device)
    built = as_stage(stage, model, features, shop.dataset)
    prove_availability(built)  # before hours of training, not after them
    folder = shop.out / CHECKPOINTS / str(seed) / str(round_number) / stage.name
    if shop.store.restore(key, folder):
        shop.progress.say(f"{shop.progress.title(stage.name, {'seed': seed, 'round': round_number})}  from the cache")
    if is_finished(folder):
        return Trained(built, key, load_best(model, folder))
    rows_M = None if shop.dataset.stream is not None else shop.dataset.rows("train")
    if grown is not None:
        rows_M = newer_rows(shop.dataset, _origin(shop))
    task = Task(
        stage.name,
        model,
        features,
        shop.dataset,
        stage.train,
        rows_M,
        stream_seed,
        lists=_lists(shop, lists_key, upstream) if reads_upstream else None,
        label_weight=stage.label_weight if distillers else 1.0,
        index=stage.index or IndexConfig(),
        optimizer=grown.optimizer if grown is not None else {},
    )
    task = replace(task, terms=tuple(_term(shop, d, teachers[d.teacher], task, lists_key) for d in distillers))
    about = {"stage": stage.name, "seed": seed, "round": round_number, "key": key}
    curve = fit(task, folder, shop.progress, about=about | {"embedding_tables": embedding_tables(model)})
    shop.store.keep(key, folder)
    return Trained(built, key, curve)


def as_stage(
    stage: StageConfig, model: Model, features: tuple[Feature, ...], dataset: Dataset
) -> RetrievalStage | ScoringStage:
    """A model as a stage of its level."""
    if stage.level == "recall":
        assert isinstance(model, TowerModel), "config lets only tower models serve recall"
        keep = min(stage.keep, dataset.num_items)
        index = stage.index or IndexConfig()
        return RetrievalStage(stage.name, stage.level, keep, features, model, dataset, index)
    return ScoringStage(stage.name, stage.level, stage.keep, features, model, dataset, stage.upstream_weight)


def stage_features(stage: StageConfig, model: type[Model], dataset: Dataset) -> tuple[Feature, ...]:
    """The features that the stage reads: those listed, or all of the model's sides that its level has online."""
    if stage.features == "all":
        return tuple(feature for feature in dataset.online(stage.level) if feature.side in model.sides)
    return tuple(dataset.feature(name) for name in stage.features)


def _stage_content(stage: StageConfig) -> dict[str, Any]:
    """What of a stage's configuration determines its weights; ``keep`` and the index come after them."""
    return {
        "name": stage.name,
        "type": stage.type,
        "source": source_digest(stage.model_type),
        "level": stage.level,
        "features": stage.features,
        "model": stage.model.model_dump(),
        "train": stage.train.model_dump() if stage.train is not None else None,
        "label_weight": stage.label_weight,
    }


def _term(shop: Workshop, config: LogitDistillConfig, teacher: Trained, task: Task, lists_key: str) -> Term:
    assert isinstance(teacher.stage, LogitStage), "config refuses a teacher without the signals a distiller needs"
    samples = [source.model_dump() for source in task.train.samples]
    taken = [] if task.rows_M is None else [len(task.rows_M), int(task.rows_M.sum())]
    rows = [task.train.label, taken, samples, task.seed, lists_key]
    key = content_key(teacher=teacher.key, data=shop.dataset.sha256, rows=rows)
    scores_M = teacher_logits(teacher.stage, make_sampler(task), shop.store.column(key))
    return Term(
        f"{config.teacher}->{config.student}:{config.method}", logit_loss(config), partial(weight_at, config), scores_M
    )


def _lists_key(shop: Workshop, upstream: Sequence[Trained]) -> str:
    weights = [s.upstream_weight for s in shop.config.stages[: len(upstream)]]
    stages = [trained.stage for trained in upstream]
    indices = [stage.index.model_dump() for stage in stages if isinstance(stage, RetrievalStage)]
    lists = [[trained.key, trained.stage.keep] for trained in upstream]
    return content_key(lists=lists, upstream_weights=weights, indices=indices)


def _lists(shop: Workshop, key: str, upstream: Sequence[Trained]) -> Candidates:
    cascade = Cascade(tuple(trained.stage for trained in upstream))
    lists = shop.store.lists(key, lambda: upstream_lists(cascade, shop.dataset))
    device = shop.device
    return Candidates(lists.item_BK.to(device), lists.score_BK.to(device), lists.valid_BK.to(device))


def _origin(shop: Workshop) -> Path:
    assert shop.config.init_from is not None
    return Path(shop.config.init_from) / ORIGIN


def _grown(shop: Workshop, seed: int, round_number: int, stage: StageConfig, model: nn.Module) -> Grown | None:
    if shop.config.init_from is None:
        return None
    earlier = Path(shop.config.init_from) / CHECKPOINTS / str(seed) / str(round_number) / stage.name
    return grow(earlier, _origin(shop) / VOCABULARY, model, shop.dataset)

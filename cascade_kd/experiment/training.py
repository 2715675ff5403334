"""One stage: what makes it, its hash, its training (floor 8)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cascade_kd.cascade import Cascade
from cascade_kd.config import ExperimentConfig, StageConfig
from cascade_kd.config.tables import DistillConfig
from cascade_kd.data import Dataset
from cascade_kd.experiment.lessons import hint_epochs, live_layers, make_lessons, with_lessons
from cascade_kd.experiment.nets import Net, stage_features
from cascade_kd.experiment.rundir import CHECKPOINTS, ORIGIN
from cascade_kd.experiment.store import Store, content_key, source_digest
from cascade_kd.models import Model, TowerModel
from cascade_kd.retrieval import IndexConfig
from cascade_kd.serve import prove_availability
from cascade_kd.stages import EnsembleStage, LogitStage, RetrievalStage, ScoringStage, Stage
from cascade_kd.streams import scoped_seed, seed_at, stream
from cascade_kd.train import (
    LiveTeacher,
    ProgressLog,
    Task,
    fit,
    is_finished,
    load_best,
    make_sampler,
    teacher_logits,
    upstream_lists,
)
from cascade_kd.train.grow import VOCABULARY, Grown, embedding_tables, grow, newer_rows
from cascade_kd.train.transfer import MungedRows, munged_rows, score
from cascade_kd.types import Candidates, Feature, Inputs


@dataclass(frozen=True)
class Trained:
    """A stage or teacher that is complete, the hash of all that made it, and its learning curve."""

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

    def folder(self, seed: int, round_number: int, name: str) -> Path:
        """Where a stage's checkpoints are."""
        return self.out / CHECKPOINTS / str(seed) / str(round_number) / name


Round = dict[str, Trained]


def train_stage(
    shop: Workshop, seed: int, round_number: int, stage: StageConfig, upstream: list[Trained], teachers: Round
) -> Trained:
    """Train one stage, or take it from the store if the same content was trained before.

    ``teachers`` holds the stages and teachers of the round before, empty in round 0.
    """
    kind = stage.model_type
    if not issubclass(kind, nn.Module):
        built = kind(stage.model, name=stage.name, level=stage.level, keep=stage.keep, dataset=shop.dataset)
        return Trained(built, content_key(stage=stage_content(stage, taught=False), data=shop.dataset.sha256))
    pairs = [d for d in shop.config.distill if d.student == stage.name] if teachers else []
    net = new_net(shop, seed, round_number, stage)
    grown = _grown(shop, seed, round_number, stage, as_module(net))
    if grown is not None:
        as_module(net).load_state_dict(grown.model)
    lists_key = lists_key_of(shop, stage, upstream)
    key = content_key(
        stage=stage_content(stage, taught=bool(pairs)),
        lists=lists_key,
        distill=[[d.model_dump(), teachers[d.teacher].key] for d in pairs],
        transfer=transfer_content(shop, pairs),
        init_from=grown.origin if grown is not None else None,
        **setting(shop, seed, round_number, stage),
    )
    built = as_stage(stage, net.model, net.features, shop.dataset)
    prove_availability(built)  # before hours of training, not after them
    folder = shop.folder(seed, round_number, stage.name)
    restore(shop, key, folder, stage.name, seed, round_number)
    if is_finished(folder):
        return Trained(built, key, load_best(as_module(net), folder))
    task = plain_task(shop, seed, round_number, stage, net, upstream, lists_key, grown)
    if pairs:
        task = _taught(shop, stage, net, task, pairs, teachers, lists_key)
    about = {"stage": stage.name, "seed": seed, "round": round_number, "key": key}
    about["embedding_tables"] = embedding_tables(as_module(net))
    curve = fit(task, folder, shop.progress, about=about)
    shop.store.keep(key, folder)
    return Trained(built, key, curve)


def new_net(shop: Workshop, seed: int, round_number: int, stage: StageConfig) -> Net:
    """A model from its initial weights, which rounds 0 and 1 have in common."""
    kind = stage.model_type
    features = stage_features(stage, kind, shop.dataset)
    with scoped_seed(seed_at(stream(stream_seed(seed, round_number, stage), "initial weights"), 0)):
        model = kind(stage.model, features)
    return Net(model.to(shop.device), features)


def stream_seed(seed: int, round_number: int, stage: StageConfig) -> int:
    """Rounds 0 and 1 share their streams: weight 0 is then the undistilled run bit for bit, and seeds are paired."""
    return stream(seed, max(round_number, 1), stage.name)


def as_module(net: Net) -> nn.Module:
    """The model as torch knows it."""
    assert isinstance(net.model, nn.Module)
    return net.model


def setting(shop: Workshop, seed: int, round_number: int, stage: StageConfig) -> dict[str, Any]:
    """What decides a training beside the stage and its teachers: for its hash."""
    return {
        "data": shop.dataset.sha256,
        "streams": stream_seed(seed, round_number, stage),
        "machine": [shop.device.type, torch.get_num_threads(), torch.__version__, shop.config.deterministic],
    }


def restore(shop: Workshop, key: str, folder: Path, name: str, seed: int, round_number: int) -> None:
    """Take a training from the store, if it is there."""
    if shop.store.restore(key, folder):
        shop.progress.say(f"{shop.progress.title(name, {'seed': seed, 'round': round_number})}  from the cache")


def plain_task(
    shop: Workshop,
    seed: int,
    round_number: int,
    stage: StageConfig,
    net: Net,
    upstream: list[Trained],
    lists_key: str,
    grown: Grown | None = None,
) -> Task:
    """The training of a stage on its label alone."""
    assert stage.train is not None, "config refuses a model without [train]"
    rows_M = None if shop.dataset.stream is not None else shop.dataset.rows("train")
    if grown is not None:
        rows_M = newer_rows(shop.dataset, _origin(shop))
    return Task(
        stage.name,
        net.model,
        net.features,
        shop.dataset,
        stage.train,
        rows_M,
        stream_seed(seed, round_number, stage),
        lists=_lists(shop, lists_key, upstream) if lists_key else None,
        index=stage.index or IndexConfig(),
        optimizer=grown.optimizer if grown is not None else {},
    )


def _taught(
    shop: Workshop,
    stage: StageConfig,
    net: Net,
    task: Task,
    pairs: Sequence[DistillConfig],
    teachers: Round,
    lists_key: str,
) -> Task:
    """The same training with the terms of offline teachers."""
    transfer = make_transfer(shop, task, pairs, teachers)
    task = replace(task, pairs=transfer.pairs, munged=transfer.inputs)
    names = dict.fromkeys(pair.teacher for pair in pairs if live_layers(pairs, pair.teacher))
    live = [(name, net_of(teachers[name].stage)) for name in names]
    lessons = make_lessons(
        stage,
        net,
        pairs,
        dict(live),
        cached_logits(shop, task, pairs, teachers, lists_key),
        shop.dataset,
        task.seed,
        munged=transfer.logits(pairs, teachers),
    )
    running = [LiveTeacher(name, of.model, of.features, live_layers(pairs, name)) for name, of in live]
    task = with_lessons(task, lessons, running)
    return replace(task, label_weight=stage.label_weight, hint_epochs=hint_epochs(pairs))


def transfer_content(shop: Workshop, pairs: Sequence[DistillConfig]) -> dict[str, Any] | None:
    """What of ``[transfer]`` decides the training of a student of these pairs."""
    return shop.config.transfer.model_dump() if shop.config.transfer is not None and pairs else None


@dataclass(frozen=True)
class Transfer:
    """The rows without a label of one training: so many ``pairs`` a row, or pseudo ``rows``."""

    pairs: int = 0
    rows: MungedRows | None = None

    @property
    def inputs(self) -> Callable[[Tensor], Inputs] | None:
        """The pseudo rows of training rows."""
        return None if self.rows is None else self.rows.inputs

    def logits(self, pairs: Sequence[DistillConfig], teachers: Round) -> dict[str, Tensor]:
        """By name of the pair, its teacher's logits [M, k] of the pseudo rows."""
        if self.rows is None:
            return {}
        return {pair.name: score(_logit_stage(teachers[pair.teacher]), self.rows) for pair in pairs if pair.is_cached}


def make_transfer(shop: Workshop, task: Task, pairs: Sequence[DistillConfig], teachers: Round) -> Transfer:
    """What ``[transfer]`` adds to the training of a student of ``pairs``, where one of them labels it."""
    config = shop.config.transfer
    labelling = [pair for pair in pairs if pair.is_cached]
    if config is None or not labelling:
        return Transfer()
    if config.method == "pairs":
        return Transfer(pairs=config.copies)
    assert config.swap is not None, "settings fill it in"
    assert config.variance is not None
    read = [*task.features, *(f for pair in labelling for f in _features(teachers[pair.teacher].stage))]
    seed = stream(task.seed, "transfer")
    rows = munged_rows(
        shop.dataset,
        task.rows_M,
        tuple({feature.name: feature for feature in read}.values()),
        copies=config.copies,
        swap=config.swap,
        variance=config.variance,
        seed=seed,
    )
    return Transfer(rows=rows)


def _features(stage: Stage) -> tuple[Feature, ...]:
    """What a teacher, or any member of an ensemble, reads."""
    if isinstance(stage, EnsembleStage):
        return tuple(feature for member in stage.members for feature in _features(member))
    return net_of(stage).features


def _logit_stage(trained: Trained) -> LogitStage:
    assert isinstance(trained.stage, LogitStage), "config refuses a teacher without the signals a distiller needs"
    return trained.stage


def cached_logits(
    shop: Workshop, task: Task, pairs: Sequence[DistillConfig], teachers: Round, lists_key: str
) -> dict[str, Tensor]:
    """By name of the pair, a teacher's logits [M, S] of the student's training rows and their negatives."""
    samples = [source.model_dump() for source in task.train.samples]
    taken = [] if task.rows_M is None else [len(task.rows_M), int(task.rows_M.sum())]
    rows = [task.train.label, taken, samples, task.seed, lists_key, task.pairs]
    found: dict[str, Tensor] = {}
    for pair in pairs:
        if pair.is_cached:
            teacher = teachers[pair.teacher]
            key = content_key(teacher=teacher.key, data=shop.dataset.sha256, rows=rows)
            found[pair.name] = teacher_logits(_logit_stage(teacher), make_sampler(task), shop.store.column(key))
    return found


def net_of(stage: Stage) -> Net:
    """The model of a stage that has one, and what it reads."""
    assert isinstance(stage, ScoringStage | RetrievalStage), "config refuses a teacher without hidden states"
    return Net(stage.model, stage.features)


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


def stage_content(stage: StageConfig, *, taught: bool) -> dict[str, Any]:
    """What of a stage's configuration determines its weights; ``keep`` and the index come after them.

    ``label_weight`` counts where the stage is ``taught``, and nowhere else: runs that differ in it share round 0.
    """
    return {
        "name": stage.name,
        "type": stage.type,
        "source": source_digest(stage.model_type),
        "level": stage.level,
        "features": stage.features,
        "model": stage.model.model_dump(),
        "train": stage.train.model_dump() if stage.train is not None else None,
        "label_weight": stage.label_weight if taught else None,
    }


def lists_key_of(shop: Workshop, stage: StageConfig, upstream: Sequence[Trained]) -> str:
    """The hash of the lists that the stage draws samples from; empty where it draws none."""
    if stage.train is None or not any(source.source == "upstream" for source in stage.train.samples):
        return ""
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

"""One stage: what makes it, its hash, its training (floor 8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cascade_kd.config import StageConfig
from cascade_kd.config.tables import DistillConfig
from cascade_kd.data import Dataset
from cascade_kd.experiment.lessons import hint_epochs, live_layers, make_lessons, with_lessons
from cascade_kd.experiment.lists import list_terms, order_keys
from cascade_kd.experiment.nets import Net, net_of, stage_features
from cascade_kd.experiment.rundir import CHECKPOINTS, ORIGIN
from cascade_kd.experiment.store import content_key, source_digest
from cascade_kd.experiment.transfer import make_transfer, transfer_content
from cascade_kd.experiment.upstream import draws_from_lists, lists_from, read_lists_key, received_from
from cascade_kd.experiment.workshop import Round, Trained, Workshop, logit_stage
from cascade_kd.models import Model, TowerModel
from cascade_kd.retrieval import IndexConfig
from cascade_kd.serve import prove_availability
from cascade_kd.stages import RetrievalStage, ScoringStage
from cascade_kd.streams import scoped_seed, seed_at, stream
from cascade_kd.train import (
    LiveTeacher,
    Task,
    fit,
    is_finished,
    load_best,
    make_sampler,
    teacher_logits,
)
from cascade_kd.train.distributed import num_ranks, rank_0_first
from cascade_kd.train.grow import VOCABULARY, Grown, embedding_tables, grow, newer_rows
from cascade_kd.types import Feature


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
    lists_key = read_lists_key(shop, stage, upstream)
    content = training_content(shop, seed, round_number, stage, upstream, teachers, pairs)
    key = content_key(init_from=grown.origin if grown is not None else None, **content)
    built = as_stage(stage, net.model, net.features, shop.dataset)
    prove_availability(built)  # before hours of training, not after them
    folder = shop.folder(seed, round_number, stage.name)
    restore(shop, key, folder, stage.name, seed, round_number)
    if is_finished(folder):
        return Trained(built, key, load_best(as_module(net), folder))
    task = plain_task(shop, seed, round_number, stage, net, upstream, grown)
    if pairs:
        title = shop.progress.title(stage.name, {"seed": seed, "round": round_number})
        task = taught_task(shop, stage, net, task, pairs, teachers, lists_key, upstream, title)
    about = about_training(stage.name, seed, round_number, key, net)
    curve = fit(task, folder, shop.progress, about=about)
    shop.store.keep(key, folder)
    return Trained(built, key, curve)


def training_content(
    shop: Workshop,
    seed: int,
    round_number: int,
    stage: StageConfig,
    upstream: Sequence[Trained],
    teachers: Round,
    pairs: Sequence[DistillConfig],
) -> dict[str, Any]:
    """What decides the training of one stage: for its hash."""
    return {
        "stage": stage_content(stage, taught=bool(pairs)),
        "lists": read_lists_key(shop, stage, upstream),
        "distill": [[d.model_dump(), teachers[d.teacher].key] for d in pairs],
        "ordered": order_keys(shop, pairs, teachers, upstream),
        "transfer": transfer_content(shop, pairs),
        **setting(shop, seed, round_number, stage),
    }


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


def about_training(name: str, seed: int, round_number: int, key: str, net: Net) -> dict[str, Any]:
    """What the checkpoints of a training say of it."""
    tables = embedding_tables(as_module(net))
    return {"stage": name, "seed": seed, "round": round_number, "key": key, "embedding_tables": tables}


def setting(shop: Workshop, seed: int, round_number: int, stage: StageConfig) -> dict[str, Any]:
    """What decides a training beside the stage and its teachers: for its hash."""
    return {
        "data": shop.dataset.sha256,
        "streams": stream_seed(seed, round_number, stage),
        "machine": [
            *(shop.device.type, torch.get_num_threads(), torch.__version__, shop.config.deterministic, num_ranks()),
        ],
    }


def restore(shop: Workshop, key: str, folder: Path, name: str, seed: int, round_number: int) -> None:
    """Take a training from the store, if it is there."""
    with rank_0_first():
        found = shop.store.restore(key, folder)
    if found:
        shop.progress.say(f"{shop.progress.title(name, {'seed': seed, 'round': round_number})}  from the cache")


def plain_task(
    shop: Workshop,
    seed: int,
    round_number: int,
    stage: StageConfig,
    net: Net,
    upstream: Sequence[Trained],
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
        lists=lists_from(shop, upstream) if draws_from_lists(stage) else None,
        received=received_from(shop, stage, upstream),
        index=stage.index or IndexConfig(),
        optimizer=grown.optimizer if grown is not None else {},
    )


def taught_task(
    shop: Workshop,
    stage: StageConfig,
    net: Net,
    task: Task,
    pairs: Sequence[DistillConfig],
    teachers: Round,
    lists_key: str,
    upstream: Sequence[Trained],
    title: str,
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
        on_lists=list_terms(shop, task, net, pairs, teachers, upstream, title),
    )
    running = [LiveTeacher(name, of.model, of.features, live_layers(pairs, name)) for name, of in live]
    task = with_lessons(task, lessons, running)
    return replace(task, label_weight=stage.label_weight, hint_epochs=hint_epochs(pairs))


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
            found[pair.name] = teacher_logits(logit_stage(teacher), make_sampler(task), shop.store.column(key))
    return found


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


def _origin(shop: Workshop) -> Path:
    assert shop.config.init_from is not None
    return Path(shop.config.init_from) / ORIGIN


def _grown(shop: Workshop, seed: int, round_number: int, stage: StageConfig, model: nn.Module) -> Grown | None:
    if shop.config.init_from is None:
        return None
    earlier = Path(shop.config.init_from) / CHECKPOINTS / str(seed) / str(round_number) / stage.name
    return grow(earlier, _origin(shop) / VOCABULARY, model, shop.dataset)

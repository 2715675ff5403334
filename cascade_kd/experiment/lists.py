"""The lists that a student learns from: what the teacher is asked to order, and its order (floor 8)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cascade_kd.config import ExperimentConfig
from cascade_kd.config.tables import DistillConfig
from cascade_kd.data import Dataset
from cascade_kd.distill import ListsConfig
from cascade_kd.distill.objectives import ObjectiveConfig
from cascade_kd.errors import UserError
from cascade_kd.experiment.nets import Net
from cascade_kd.experiment.store import content_key
from cascade_kd.experiment.upstream import lists_from, upstream_key
from cascade_kd.experiment.workshop import Round, Trained, Workshop
from cascade_kd.stages import RetrievalStage, ScoringStage, Stage
from cascade_kd.streams import stream
from cascade_kd.train import Task, Term
from cascade_kd.train.distributed import rank_0_first
from cascade_kd.train.list_terms import list_term
from cascade_kd.train.lists import end_of_training_requests
from cascade_kd.train.teacher_lists import (
    LoggedLists,
    TeacherLists,
    columns_of,
    logged_lists,
    order_logged,
    teacher_lists,
)
from cascade_kd.types import Candidates, Requests

Listed = ListsConfig | ObjectiveConfig  # a table that learns on lists

LARGE_CATALOGUE = 200_000  # items that no teacher orders for every user unless told to approximate
WIDER = 10  # times `depth`: what an approximate teacher orders
CELLS_PER_BLOCK = 1 << 21  # (list, item) pairs of a block of work


def list_kind(config: ExperimentConfig, dataset: Dataset, pair: Listed) -> str:
    """What the teacher orders, as written or by default."""
    student = config.stage(pair.student)
    alone = student.level == "recall" or student is config.stages[0]
    return pair.kind(has_requests=dataset.events.request_N is not None, alone=alone)


def order_key(shop: Workshop, pair: Listed, teachers: Round, upstream: Sequence[Trained]) -> str:
    """The hash of all that made the lists of one table, so of what a stage has learnt that was taught by them."""
    kind = list_kind(shop.config, shop.dataset, pair)
    teacher = teachers[_teacher_of(pair)]
    before = _stages_before(shop, pair, kind, teachers)
    return content_key(
        order=kind,
        depth=pair.depth_of(kind),
        data=shop.dataset.sha256,
        teacher=None if kind == "log" else teacher.key,
        before=[[trained.key, trained.stage.keep, _weight(trained.stage)] for trained in before],
        weight=_weight(teacher.stage),
        upstream=upstream_key(shop, upstream) if kind == "upstream" else None,
        approximate=teachers[shop.config.stages[0].name].key if pair.approximate else None,
    )


def order_keys(
    shop: Workshop, pairs: Sequence[DistillConfig], teachers: Round, upstream: Sequence[Trained]
) -> list[str]:
    """The same of those pairs of one student that learn on lists."""
    taught = [pair for pair in pairs if isinstance(pair, ListsConfig) and pair.on_lists]
    return [order_key(shop, pair, teachers, upstream) for pair in taught]


def ordered_lists(
    shop: Workshop, pair: Listed, teachers: Round, upstream: Sequence[Trained], title: str
) -> TeacherLists:
    """The lists of one table in its teacher's order, from the store where they were made before.

    The teacher orders as it does when it serves: one with an ``upstream_weight`` is given the scores of the stages
    between. Raises UserError where no list has two places, and for a catalogue too large for every user.
    """
    kind = list_kind(shop.config, shop.dataset, pair)
    stages = [trained.stage for trained in _stages_before(shop, pair, kind, teachers)]
    requests, ordered, width = _work(shop, pair, kind, stages, teachers, upstream, pair.depth_of(kind))
    key = order_key(shop, pair, teachers, upstream)
    lists = kept_lists(shop, key, requests, ordered, width, f"{title}  lists of {pair.teacher}")
    what = f"{len(lists):,} lists in the order of '{pair.teacher}' ({kind}), {lists.dropped:,} shorter than 2 left out"
    if not len(lists):
        raise UserError(f"{pair.shown}: {what}; want other `lists`, or a method that needs none")
    shop.progress.say(f"{title}  {what}")
    return lists


def kept_lists(
    shop: Workshop,
    key: str,
    requests: Requests,
    ordered: Callable[[Tensor], dict[str, Tensor]],
    width: int,
    title: str,
) -> TeacherLists:
    """Lists from the store, made in blocks under a bar where they are not there; each is of up to ``width`` items."""
    with rank_0_first(), shop.progress.work(title) as advance:
        return teacher_lists(
            shop.store.orders(key),
            requests,
            ordered,
            lists_per_block=max(1, CELLS_PER_BLOCK // max(1, width)),
            advance=advance,
        )


def list_terms(
    shop: Workshop,
    task: Task,
    net: Net,
    pairs: Sequence[DistillConfig],
    teachers: Round,
    upstream: Sequence[Trained],
    title: str,
) -> dict[str, Term]:
    """By name of the pair, the terms of those pairs of one student that learn on lists."""
    return {
        pair.name: list_term(
            pair,
            ordered_lists(shop, pair, teachers, upstream, title),
            net.model,
            [feature.name for feature in net.features],
            shop.dataset,
            stream(task.seed, f"lists of {pair.name}"),
            kind=list_kind(shop.config, shop.dataset, pair),
            epochs=task.train.epochs,
        )
        for pair in pairs
        if isinstance(pair, ListsConfig) and pair.on_lists
    }


def _stages_before(shop: Workshop, pair: Listed, kind: str, teachers: Round) -> list[Trained]:
    """The served stages whose scores reach a teacher that counts them in, up to it: none for other teachers."""
    if kind not in ("upstream", "catalogue"):
        return []
    names = [stage.name for stage in shop.config.stages]
    return counted_in(shop.config, teachers, _teacher_of(pair), names.index(pair.student) if kind == "upstream" else 0)


def counted_in(config: ExperimentConfig, teachers: Round, teacher: str, first: int) -> list[Trained]:
    """The served stages from number ``first`` to a teacher that counts in their scores; none for other teachers."""
    if not _weight(teachers[teacher].stage):
        return []
    names = [stage.name for stage in config.stages]
    return [teachers[name] for name in names[first : names.index(teacher)]]


def _teacher_of(pair: Listed) -> str:
    assert pair.teacher is not None, "config wants somebody to order lists"
    return pair.teacher


def _weight(stage: Stage) -> float:
    return stage.upstream_weight if isinstance(stage, ScoringStage) else 0.0


def _work(
    shop: Workshop,
    pair: Listed,
    kind: str,
    before: Sequence[Stage],
    teachers: Round,
    upstream: Sequence[Trained],
    depth: int | None,
) -> tuple[Requests, Callable[[Tensor], dict[str, Tensor]], int]:
    """The requests of the lists, what orders some of them by number, and how many items it is given for each."""
    dataset, teacher = shop.dataset, teachers[_teacher_of(pair)].stage
    if kind in ("requests", "log"):
        logged = logged_lists(dataset, by_position=kind == "log")
        if kind == "log":
            return logged.requests, lambda number_B: as_shown(logged, number_B, depth), logged.item_LK.shape[1]
        return logged.requests, lambda number_B: order_logged(teacher, logged, number_B, depth), logged.item_LK.shape[1]
    requests = end_of_training_requests(dataset)
    scored = "logits" in teacher.signals
    if kind == "upstream":
        received_UK = lists_from(shop, upstream)
        later = [*before, teacher]

        def of_upstream(number_B: Tensor) -> dict[str, Tensor]:
            asked = requests[number_B]
            return columns_of(through(later, asked, received_UK[asked.user_B]), depth, scored=scored)

        return requests, of_upstream, received_UK.width
    assert depth is not None, "settings cut the catalogue"
    if isinstance(teacher, RetrievalStage):
        search = replace(teacher, keep=min(depth, dataset.num_items), mask_seen=True)
        return requests, lambda b: columns_of(search.order(requests[b]), depth, scored=True), dataset.num_items
    catalogue, width = _catalogue(shop, pair, before, teacher, teachers, depth)
    later = [*before[1:], teacher]

    def of_catalogue(number_B: Tensor) -> dict[str, Tensor]:
        asked = requests[number_B]
        return columns_of(through(later, asked, catalogue(asked)), depth, scored=scored)

    return requests, of_catalogue, width


def _catalogue(
    shop: Workshop, pair: Listed, before: Sequence[Stage], teacher: Stage, teachers: Round, depth: int
) -> tuple[Callable[[Requests], Candidates], int]:
    """What gives requests all items that their users have not in training, under the scores that the teacher counts in.

    An approximate teacher is given the first stage's best. Also how many items that are.
    """
    dataset = shop.dataset
    first = teachers[shop.config.stages[0].name].stage
    if pair.approximate and isinstance(first, RetrievalStage):
        width = min(WIDER * depth, dataset.num_items)
        search = replace(first, keep=width, mask_seen=True)
        return search.order, width
    item_I = dataset.item_codes()
    if before and not isinstance(first, RetrievalStage):
        raise UserError(
            f"{pair.shown}: '{teacher.name}' counts in the scores of '{first.name}', which gives none of items "
            'that it does not retrieve; want lists = "upstream", or upstream_weight = 0'
        )

    @functools.cache
    def item_vectors() -> Tensor:  # not read where the lists are in the store
        assert isinstance(first, RetrievalStage)
        return first.item_vectors("valid")

    def of(requests: Requests) -> Candidates:
        item_BI = item_I.expand(len(requests), -1)
        if before and isinstance(first, RetrievalStage):
            score_BI = first.user_vectors(requests) @ item_vectors().T
        else:
            score_BI = torch.zeros(item_BI.shape, device=item_BI.device)
        unseen_BI = ~dataset.is_seen(requests.user_B, item_BI, part=requests.part)
        return Candidates.ranked(item_BI, score_BI, unseen_BI)

    return of, dataset.num_items


def check_lists(config: ExperimentConfig, dataset: Dataset) -> None:
    """Refuse to order a catalogue that is too large for every user, before anything is trained. Raises UserError."""
    pairs = [pair for pair in config.distill if isinstance(pair, ListsConfig) and pair.on_lists]
    for pair in (*pairs, *config.objectives):
        if pair.approximate:
            continue
        if list_kind(config, dataset, pair) == "catalogue" and dataset.num_items > LARGE_CATALOGUE:
            raise UserError(
                f"{pair.shown}: the teacher would order {dataset.num_items:,} items for every training user; at "
                f'most {LARGE_CATALOGUE:,} are ordered in full. Want approximate = true, or lists = "upstream"'
            )


def through(stages: Sequence[Stage], requests: Requests, candidates: Candidates) -> Candidates:
    """What the last stage says when every stage before it keeps everything."""
    for stage in stages:
        candidates = stage.order(requests, candidates)
    return candidates


def as_shown(logged: LoggedLists, number_B: Tensor, depth: int | None) -> dict[str, Tensor]:
    """The columns of some logged lists, in the order in which they stand."""
    return {"item": logged.item_LK[number_B, :depth].int(), "event": logged.event_LK[number_B, :depth]}

"""What several stages learn from the same lists beside their labels (floor 6).

B lists of a step, K places, S stages. All stages score one list; the places stand in the order of the teacher, if any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import final

import torch
from torch import Tensor, nn

from cascade_kd.distill import weight_at
from cascade_kd.distill.objectives import (
    AnyObjective,
    ARFConfig,
    COPRConfig,
    FSConfig,
    ICCConfig,
    LCRONConfig,
    RankFlowConfig,
)
from cascade_kd.losses import (
    arf,
    bce,
    copr,
    draw_chunks,
    icc,
    lcron,
    positions,
    rankflow_tutoring,
    stage_pairwise,
    teacher_order,
    top_places,
)
from cascade_kd.masked import masked_mean
from cascade_kd.metrics import survivors
from cascade_kd.models.modes import evaluating
from cascade_kd.streams import generator_at, seed_at, seed_global, stream
from cascade_kd.train.list_terms import score_items
from cascade_kd.train.task import Student, Task
from cascade_kd.train.teacher_lists import ListBatch, ListOrder, TeacherLists


@dataclass(frozen=True)
class ListsMoment:
    """The lists of one step and what the stages say of them.

    ``truth_BK`` are the places that should come through, ``level_BK`` says how far each should (larger is further);
    ``served`` the scores of the stages of the round before, without gradient.
    """

    lists: ListBatch
    scores: tuple[Tensor, ...]
    served: tuple[Tensor, ...]
    truth_BK: Tensor
    level_BK: Tensor
    weight_S: Tensor | None
    generator: torch.Generator


@final
class PartWeights(nn.Module):
    """Learnt weights of an objective's parts, one a stage, 1 at the start: trained with the stages, never served."""

    def __init__(self, num: int) -> None:
        super().__init__()
        self.weight_S = nn.Parameter(torch.ones(num))


@final
@dataclass(frozen=True)
class Objective:
    """The term of several stages: ``weight`` of (step, total steps), ``loss`` of (step, which stages still learn)."""

    name: str
    weight: Callable[[int, int], float]
    loss: Callable[[int, Sequence[bool]], Tensor]
    weights: PartWeights | None


def make_objective(
    config: AnyObjective, lists: TeacherLists, tasks: Sequence[Task], before: Sequence[Student], seed: int
) -> Objective:
    """The mean over a step's lists of the loss that ``config`` names; ``tasks`` are those of its stages, in order.

    ``before`` are the same stages as the round before left them. Which lists a step takes and all that it draws are
    functions of ``seed`` and the step.
    """
    order = ListOrder(len(lists), config.lists_per_step, stream(seed, "lists"))
    dataset = tasks[0].dataset
    weights = PartWeights(len(tasks)) if isinstance(config, LCRONConfig | ARFConfig) else None
    if weights is not None:
        weights = weights.to(dataset.events.user_N.device)
    loss_of = objective_loss(config)

    def loss(step: int, learning: Sequence[bool]) -> Tensor:
        batch = lists.batch(order.at(step))
        seed_global(seed_at(stream(seed, "model"), step))  # dropout
        scores = tuple(_scores(task, batch, learns) for task, learns in zip(tasks, learning, strict=True))
        served: tuple[Tensor, ...] = ()
        if isinstance(config, RankFlowConfig):
            served = tuple(_served(student, task, batch) for student, task in zip(before, tasks, strict=True))
        truth_BK, level_BK = truths(config, batch, dataset.events.labels)
        generator = generator_at(stream(seed, "draws"), step)
        weight_S = None if weights is None else weights.weight_S
        with torch.autocast(batch.item_BK.device.type, enabled=False):
            return loss_of(ListsMoment(batch, scores, served, truth_BK, level_BK, weight_S, generator)).mean()

    return Objective(config.name, partial(weight_at, config), loss, weights)


def _scores(task: Task, batch: ListBatch, learns: bool) -> Tensor:
    """A stage's logits [B, K]; of one that learns no more as it serves, without gradient."""
    low = torch.autocast(batch.item_BK.device.type, torch.bfloat16, enabled=task.train.precision == "bfloat16")
    with low, nullcontext() if learns else evaluating(task.model):
        return score_items(task.model, task.names, task.dataset, batch, batch.item_BK, batch.event_BK)


def _served(student: Student, task: Task, batch: ListBatch) -> Tensor:
    names = [feature.name for feature in student.features]
    with evaluating(student.model):
        return score_items(student.model, names, task.dataset, batch, batch.item_BK, batch.event_BK)


def truths(config: AnyObjective, batch: ListBatch, labels: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What is true of every place [B, K], and its level, by which equal places are known as such."""
    where_BK = batch.where_BK
    if config.truth == "label":
        assert batch.event_BK is not None, "config wants the rows of requests"
        assert config.label is not None, "config fills it in"
        level_BK = labels[config.label][batch.event_BK.clamp(min=0)].float().masked_fill(~where_BK, 0.0)
        return level_BK > 0, level_BK
    score_BK = -positions(where_BK).float() if batch.score_BK is None else batch.score_BK
    return top_places(where_BK, config.k), score_BK.masked_fill(~where_BK, 0.0)


def objective_loss(config: AnyObjective) -> Callable[[ListsMoment], Tensor]:
    """The loss [B] of every list under one ``[[objective]]`` table."""
    if isinstance(config, LCRONConfig):
        return partial(_lcron, config)
    if isinstance(config, ARFConfig):
        return partial(_arf, config)
    if isinstance(config, ICCConfig):
        return partial(_icc, config)
    if isinstance(config, FSConfig):
        return _fs
    if isinstance(config, COPRConfig):
        return partial(_copr, config)
    return partial(_rankflow, config)


def _lcron(config: LCRONConfig, at: ListsMoment) -> Tensor:
    assert config.budgets is not None, "config fills them in"
    assert at.weight_S is not None
    return lcron(
        at.scores,
        at.truth_BK,
        at.weight_S,
        where_BK=at.lists.where_BK,
        keeps=config.budgets,
        temperature=config.temperature,
    )


def _arf(config: ARFConfig, at: ListsMoment) -> Tensor:
    assert config.budgets is not None, "config fills them in"
    assert at.weight_S is not None
    loss_SB = [
        arf(
            score_BK,
            at.truth_BK,
            weight,
            where_BK=at.lists.where_BK,
            keep=keep,
            temperature=config.temperature,
            two_sided=config.two_sided,
        )
        for score_BK, weight, keep in zip(at.scores, at.weight_S.unbind(), config.budgets, strict=True)
    ]
    return torch.stack(loss_SB).sum(0)


def _icc(config: ICCConfig, at: ListsMoment) -> Tensor:
    assert config.budgets is not None, "config fills them in"
    return icc(
        at.scores,
        at.level_BK,
        where_BK=at.lists.where_BK,
        keeps=config.budgets,
        width=config.width,
        gate=config.gate,
    )


def _fs(at: ListsMoment) -> Tensor:
    where_BK = at.lists.where_BK
    return torch.stack([stage_pairwise(score_BK, at.level_BK, where_BK=where_BK) for score_BK in at.scores]).sum(0)


def _copr(config: COPRConfig, at: ListsMoment) -> Tensor:
    place_BC, where_BC = draw_chunks(at.lists.where_BK, config.chunks, generator=at.generator)
    return torch.stack([copr(score_BK.gather(1, place_BC), where_BC=where_BC) for score_BK in at.scores]).sum(0)


def _rankflow(config: RankFlowConfig, at: ListsMoment) -> Tensor:
    """Self-learning on what the stage before passes, tutoring on what the stage passes itself; summed over stages."""
    budgets = config.budgets
    assert budgets is not None, "config fills them in"
    passed = [at.lists.where_BK]
    for stage, budget in enumerate(budgets[:-1]):
        passed.append(survivors([at.served[stage]], [budget], passed[-1]))
    truth_BK = at.truth_BK.float()
    own = [masked_mean(bce(score_BK, truth_BK), where_BK) for score_BK, where_BK in zip(at.scores, passed, strict=True)]
    tutored = []
    for (stage, tutor), where_BK in zip(pairwise(range(len(budgets))), passed[1:], strict=True):
        place_BK = teacher_order(at.served[tutor], at.lists.item_BK, where_BK)
        by_tutor = (x.gather(1, place_BK) for x in (at.scores[stage], at.served[tutor]))
        k = config.tutor_k or budgets[tutor]
        tutored.append(rankflow_tutoring(*by_tutor, where_BK=where_BK.gather(1, place_BK), k=k, mix=config.mix))
    return torch.stack([*own, *tutored]).sum(0)

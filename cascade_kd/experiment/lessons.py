"""From the ``[[distill]]`` tables of a student to what its training is given (floor 8).

M training rows of the student, S slots of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor, nn

from cascade_kd.config import StageConfig
from cascade_kd.config.tables import DistillConfig
from cascade_kd.data import Dataset
from cascade_kd.distill import (
    Experts,
    HiddenDistillConfig,
    LayersConfig,
    LogitDistillConfig,
    Regressor,
    RelationDistillConfig,
)
from cascade_kd.experiment.nets import Net, layer_shapes, width_of
from cascade_kd.streams import generator_at, stream
from cascade_kd.train import LiveTeacher, Student, Task, Term
from cascade_kd.train.monitor import Received
from cascade_kd.train.terms import (
    AuxiliaryHead,
    Balance,
    cached_logit_term,
    hidden_term,
    live_logit_term,
    relation_term,
)


@dataclass(frozen=True)
class Lessons:
    """What one student learns beside its label: its terms, the adapters they need, and a weighting of all."""

    terms: tuple[Term, ...]
    adapters: nn.ModuleDict
    balance: Balance | None


def make_lessons(
    stage: StageConfig,
    student: Net,
    pairs: Sequence[DistillConfig],
    teachers: Mapping[str, Net],
    cached: Mapping[str, Tensor],
    dataset: Dataset,
    seed: int,
    *,
    munged: Mapping[str, Tensor],
    on_lists: Mapping[str, Term],
) -> Lessons:
    """The terms of ``pairs``, all of one student, in their order.

    ``teachers`` are those that run in the step, by ``source``; ``cached`` the logits [M, S] of the others, by name of
    the pair, ``munged`` those [M, k] of pseudo rows, ``on_lists`` the terms of pairs on lists. Every pair draws its
    adapters from a generator of its own, so that no pair changes another's.
    """
    terms: list[Term] = []
    adapters: dict[str, nn.Module] = {}
    for pair in pairs:
        own_seed = stream(seed, f"adapters of {pair.name}")
        generator = generator_at(own_seed, 0)
        key = f"{pair.teacher}_{pair.method}_{pair.mode}"
        if pair.name in on_lists:
            terms.append(on_lists[pair.name])
        elif isinstance(pair, LogitDistillConfig):
            head = None
            if pair.layer is not None:
                head = adapters[key] = AuxiliaryHead(width_of(layer_shapes(student, dataset)[pair.layer]), generator)
            if pair.mode == "joint":
                terms.append(live_logit_term(pair, head))
            else:
                terms.append(cached_logit_term(pair, cached[pair.name], head, munged.get(pair.name)))
        elif isinstance(pair, HiddenDistillConfig):
            theirs, ours = layer_shapes(teachers[pair.source], dataset), layer_shapes(student, dataset)
            projectors = [
                _projector(pair, width_of(theirs[of_teacher]), width_of(ours[of_student]), generator)
                for of_teacher, of_student in pair.layers
            ]
            adapters |= {f"{key}_{k}": net for k, net in enumerate(projectors) if net is not None}
            terms.append(hidden_term(pair, projectors, stream(own_seed, "noise")))
        else:
            assert isinstance(pair, RelationDistillConfig)
            terms.append(relation_term(pair))
    balance = None
    if stage.label_weight == "learned":
        balance = adapters["balance"] = Balance(["label", *(term.name for term in terms)])
    return Lessons(tuple(terms), nn.ModuleDict(adapters).to(dataset.events.user_N.device), balance)


def with_lessons(task: Task, lessons: Lessons, live: Sequence[LiveTeacher]) -> Task:
    """The task of one student with its terms; what is trained beside the model is its adapters."""
    return replace(
        task,
        terms=lessons.terms,
        balance=lessons.balance,
        teachers=tuple(live),
        beside=lessons.adapters if len(lessons.adapters) else None,
    )


def live_layers(pairs: Sequence[DistillConfig], source: str) -> tuple[str, ...]:
    """The hidden states that the pairs ask of the net ``source``."""
    asked = (pair.layers for pair in pairs if pair.source == source and isinstance(pair, LayersConfig))
    return tuple(dict.fromkeys(of_teacher for of_teacher, _ in chain.from_iterable(asked)))


def hint_epochs(pairs: Sequence[DistillConfig]) -> int:
    """Epochs of the first phase of FitNets, 0 without one, or where it weighs nothing."""
    hints = (pair.hint_epochs or 0 for pair in pairs if isinstance(pair, HiddenDistillConfig) and pair.weight)
    return max(hints, default=0)


def _projector(pair: HiddenDistillConfig, teacher: int, student: int, generator: torch.Generator) -> nn.Module | None:
    if pair.projector == "linear":
        return Regressor(student, teacher, generator=generator)
    if pair.projector == "mlp":
        return Regressor(student, teacher, hidden=(student + teacher) // 2, generator=generator)
    if pair.projector == "experts":
        assert pair.experts is not None, "settings fill it in"
        return Experts(student, teacher, experts=pair.experts, generator=generator)
    return None


def student_of(stage: StageConfig, net: Net, lessons: Lessons, received: Received | None) -> Student:
    """One of the students of a joint group."""
    return Student(stage.name, net.model, net.features, stage.label_weight, lessons.terms, lessons.balance, received)

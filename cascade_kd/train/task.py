"""What ``fit`` trains, and the two functions it is made of: batches by step, loss by batch (floor 6).

R rows of a batch, M training rows, S slots of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

import torch
from torch import Tensor, nn

from cascade_kd.data import Dataset
from cascade_kd.models import Model, TowerModel
from cascade_kd.retrieval import IndexConfig
from cascade_kd.streams import stream
from cascade_kd.train.columns import StatisticColumns, StreamColumns
from cascade_kd.train.contrast import batch_columns, catalogue_loss, contrast_loss, log_popularity, row_columns
from cascade_kd.train.exchange import Exchange
from cascade_kd.train.hard import HardNegatives
from cascade_kd.train.monitor import Received
from cascade_kd.train.objective import auxiliary_losses, heads_of, pointwise_loss, row_inputs, row_labels
from cascade_kd.train.samples import Batch, Sampler, shared_negatives
from cascade_kd.train.sequences import SequenceSampler
from cascade_kd.train.settings import TrainConfig
from cascade_kd.train.stream import StreamSampler
from cascade_kd.train.terms import Balance, LiveTeacher, Moment, Term
from cascade_kd.types import Candidates, Feature, Inputs, Output

Batches = Sampler | StreamSampler | SequenceSampler
LossParts = dict[str, Tensor]
OnBatch = Callable[[Batch, int, int], LossParts]
UNREAD = Output(torch.empty(0))  # where no term reads rows of the batch
LABEL = "label"  # the part of the loss that the label gives


@dataclass(frozen=True)
class Student:
    """A model that learns from its label and from teachers; ``balance`` is learnt with it where its weights are."""

    stage: str
    model: Model
    features: tuple[Feature, ...]
    label_weight: float | Literal["rest", "learned"] = 1.0
    terms: tuple[Term, ...] = ()
    balance: Balance | None = None
    received: Received | None = None  # where the monitor is of a later stage's order


@dataclass(frozen=True)
class Task:
    """All that ``fit`` needs to train one stage, or a joint group: ``others`` learn in the same steps.

    ``beside`` holds what is trained with the model: adapters, a joint teacher, the other students. In the first
    ``hint_epochs`` a student that has terms that are ``hint_only`` learns from them alone.
    """

    stage: str
    model: Model
    features: tuple[Feature, ...]
    dataset: Dataset
    train: TrainConfig
    rows_M: Tensor | None  # event rows; None: all of a data set that is larger than memory
    seed: int  # of this stage's streams
    lists: Candidates | None = None
    label_weight: float | Literal["rest", "learned"] = 1.0
    terms: tuple[Term, ...] = ()
    index: IndexConfig = field(default_factory=IndexConfig)
    optimizer: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # state to continue from
    balance: Balance | None = None
    teachers: tuple[LiveTeacher, ...] = ()
    others: tuple[Student, ...] = ()
    beside: nn.ModuleDict | None = None
    hint_epochs: int = 0
    pairs: int = 0  # unlabelled rows added to every training row
    munged: Callable[[Tensor], Inputs] | None = None  # pseudo rows [K * B] of training rows [B], copy after copy
    received: Received | None = None  # where the monitor is of a later stage's order
    exchange: Exchange | None = None  # with the other peers of a codistilled stage

    @property
    def names(self) -> list[str]:
        """The names of the features the model reads."""
        return [feature.name for feature in self.features]

    @property
    def students(self) -> tuple[Student, ...]:
        """All that learn in a step, the stage's own model first."""
        own = Student(self.stage, self.model, self.features, self.label_weight, self.terms, self.balance, self.received)
        return (own, *self.others)


def make_sampler(task: Task) -> Sampler | StreamSampler:
    """The batches of a task: logged events, or those whose label is true alone, and their negatives."""
    rows_M, train = task.rows_M, task.train
    anew = train.loss != "bce"  # only teachers of models that learn row by row keep their scores of negatives
    positives = not any(source.source == "impressions" for source in train.samples)
    if rows_M is None:
        return StreamSampler(
            task.dataset,
            train.label,
            batch_size=train.batch_size,
            seed=task.seed,
            positives=positives,
            sources=train.samples,
            lists=task.lists,
            anew=anew,
        )
    if positives:
        rows_M = rows_M[task.dataset.events.labels[train.label][rows_M] > 0]
    return Sampler(
        task.dataset,
        rows_M,
        train.label,
        batch_size=train.batch_size,
        seed=task.seed,
        sources=train.samples,
        lists=task.lists,
        pairs=task.pairs,
        anew=anew,
    )


def make_batches(task: Task, sampler: Sampler | StreamSampler) -> Batches:
    """What a step trains on: the sampler's batches, or its rows along users' histories."""
    if not task.train.sequences:
        return sampler
    assert isinstance(sampler, Sampler), "config lets no stream train along histories"
    (history,) = (feature for feature in task.features if feature.kind == "history")
    return SequenceSampler(sampler, history, batch_size=task.train.batch_size, seed=task.seed)


def make_loss(task: Task, sampler: Sampler | StreamSampler) -> OnBatch:
    """(batch, step, total steps) -> the weighted terms of the loss by name; their sum is minimised.

    Every net that reads rows is given the same :class:`Inputs`, looked up once, the students before the teachers.
    """
    nets: tuple[Student | LiveTeacher, ...] = (*task.students, *task.teachers)
    features = {feature.name: feature for feature in chain.from_iterable(net.features for net in nets)}
    label_on_rows = task.train.loss == "bce" or not isinstance(task.model, TowerModel)
    on_rows = label_on_rows or any(term.on_rows for student in task.students for term in student.terms)
    known = _known_columns(task, sampler, features.values()) if on_rows else None
    contrast = None if task.train.loss == "bce" else _contrast(task, sampler, known)
    hint_steps = task.hint_epochs * sampler.steps_per_epoch
    hard = make_hard_negatives(task, sampler)

    def on_batch(batch: Batch, step: int, total_steps: int) -> LossParts:
        if hard is not None:
            batch = hard.added_to(batch, step)
        in_hints = step < hint_steps
        running = [_running(student.terms, step, total_steps, in_hints=in_hints) for student in task.students]
        taught_on_rows = any(term.on_rows for terms in running for term in terms)
        if not taught_on_rows:
            batch = batch.labelled()
        if contrast is not None and not any(running):
            return contrast(batch, step)
        inputs: Inputs | None = None
        if contrast is None or taught_on_rows:
            assert known is not None
            inputs = row_inputs(
                task.dataset, list(features), batch, known=known.of(batch), known_user=known.of_requests(batch)
            )
        outputs = [
            UNREAD if inputs is None else _read(student, terms, inputs)
            for student, terms in zip(task.students, running, strict=True)
        ]
        pseudo: Inputs | None = None
        if task.munged is not None and any(term.munged for terms in running for term in terms):
            pseudo = task.munged(batch.sample_R[: len(batch.requests)])
        needed = {term.teacher for terms in running for term in terms}
        asked = [] if inputs is None else [t for t in task.teachers if t.train is not None or t.name in needed]
        taught = {} if inputs is None else {t.name: t.output(inputs) for t in asked}
        parts: LossParts = {}
        for student, terms, output in zip(task.students, running, outputs, strict=True):
            label: LossParts = {}
            if not any(term.hint_only for term in terms):
                label = contrast(batch, step) if contrast is not None else _label_parts(task, student, output, batch)
            munged = None if pseudo is None else _read(student, terms, pseudo)
            moment = Moment(batch, output, taught, step, total_steps, munged)
            with torch.autocast(batch.item_R.device.type, enabled=False):
                own = _weighted(student, label, {term: term.loss(moment) for term in terms}, terms)
            prefix = "" if student.stage == task.stage else f"{student.stage} "
            parts |= {name if name in {t.name for t in terms} else prefix + name: part for name, part in own.items()}
        for teacher in task.teachers:
            if teacher.train is not None:
                label_R = row_labels(task.dataset, teacher.train.label, batch)
                output = taught[teacher.name]
                own = {LABEL: pointwise_loss(output.logits_R, label_R, batch.label_weight_R)}
                own |= auxiliary_losses(teacher.model, output, task.dataset, batch)
                parts |= {f"{teacher.name} {name}": part for name, part in own.items()}
        return parts

    return on_batch


def _running(terms: Iterable[Term], step: int, total_steps: int, *, in_hints: bool) -> dict[Term, float]:
    """The terms of a step and their weights, those of weight 0 left out: hints alone, or all but hints."""
    weights = {term: weight for term in terms if (weight := term.weight(step, total_steps))}
    hints = {term: weight for term, weight in weights.items() if term.hint_only and in_hints}
    return hints or {term: weight for term, weight in weights.items() if not term.hint_only}


def _read(student: Student, terms: Iterable[Term], inputs: Inputs) -> Output:
    layers = [layer for term in terms for layer in term.layers]
    return student.model(inputs, dict.fromkeys([*heads_of(student.model), *layers]))


def _label_parts(task: Task, student: Student, output: Output, batch: Batch) -> LossParts:
    label_loss = pointwise_loss(output.logits_R, batch.label_R, batch.label_weight_R)
    return {LABEL: label_loss} | auxiliary_losses(student.model, output, task.dataset, batch)


def _weighted(student: Student, label: LossParts, losses: dict[Term, Tensor], weights: dict[Term, float]) -> LossParts:
    """The label's parts and the terms, each with its weight."""
    terms = {term.name: weights[term] * loss for term, loss in losses.items()}
    if student.label_weight == "learned":
        assert student.balance is not None
        heads = {name: part for name, part in label.items() if name != LABEL}
        own = {name: part for name, part in label.items() if name == LABEL}
        return student.balance(own | terms) | heads
    factor = 1.0 - sum(weights.values()) if student.label_weight == "rest" else student.label_weight
    if factor != 1.0 and LABEL in label:
        label = {**label, LABEL: factor * label[LABEL]}
    return label | terms


def make_hard_negatives(task: Task, sampler: Sampler | StreamSampler) -> HardNegatives | None:
    """What adds hard negatives to the sampler's batches; None where the task has no such source."""
    for source in task.train.samples:
        if source.source == "hard":
            seed = stream(task.seed, "hard negatives")
            return HardNegatives(source, task.model, task.features, task.dataset, seed, sampler.num_slots)
    return None


def _contrast(
    task: Task, sampler: Sampler | StreamSampler, known: StatisticColumns | StreamColumns | None
) -> Callable[[Batch, int], LossParts]:
    """Every positive against negatives: by vectors where the model has them, else row by row, of ``known`` columns."""
    model, dataset, names, train = task.model, task.dataset, task.names, task.train
    num_drawn = sum(source.per_positive for source in train.samples)
    if not isinstance(model, TowerModel):
        assert train.loss == "bpr", "config lets only tower models train with the other losses"
        assert known is not None

        def by_rows(batch: Batch, step: int) -> LossParts:
            inputs = row_inputs(dataset, names, batch, known=known.of(batch), known_user=known.of_requests(batch))
            return {LABEL: contrast_loss(row_columns(model(inputs).logits_R.float(), batch, num_drawn), train)}

        return by_rows
    if train.loss == "full-softmax":
        return lambda batch, step: {LABEL: catalogue_loss(model, dataset, names, batch)}
    in_batch = any(source.source == "in-batch" for source in train.samples)
    log_q_I1 = log_popularity(sampler.item_counts()) if in_batch else None
    shared = shared_negatives(dataset, train.samples, task.seed)

    def by_vectors(batch: Batch, step: int) -> LossParts:
        columns = batch_columns(
            model,
            dataset,
            names,
            batch,
            log_q_I1=log_q_I1,
            num_drawn=num_drawn,
            shared=shared.draw(step) if shared.num else None,
            cosine=train.loss == "ccl",
        )
        return {LABEL: contrast_loss(columns, train)}

    return by_vectors


def _known_columns(
    task: Task, sampler: Sampler | StreamSampler, features: Iterable[Feature]
) -> StatisticColumns | StreamColumns:
    """The columns of training rows that need no look-up any more."""
    if isinstance(sampler, StreamSampler):
        return StreamColumns(task.dataset, tuple(features))
    return StatisticColumns(sampler, tuple(features))

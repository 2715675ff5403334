"""What ``fit`` trains, and the two functions it is made of: batches by step, loss by batch (floor 6).

R rows of a batch, M training rows, S slots of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from cascade_kd.data import Dataset
from cascade_kd.models import Model, TowerModel
from cascade_kd.models.multi_task import HEAD
from cascade_kd.retrieval import IndexConfig
from cascade_kd.streams import stream
from cascade_kd.train.columns import StatisticColumns, StreamColumns
from cascade_kd.train.contrast import batch_columns, catalogue_loss, contrast_loss, log_popularity, row_columns
from cascade_kd.train.hard import HardNegatives
from cascade_kd.train.objective import auxiliary_losses, pointwise_loss, row_output, weighted_mean
from cascade_kd.train.samples import Batch, Sampler, shared_negatives
from cascade_kd.train.sequences import SequenceSampler
from cascade_kd.train.settings import TrainConfig
from cascade_kd.train.stream import StreamSampler
from cascade_kd.types import Candidates, Feature

Batches = Sampler | StreamSampler | SequenceSampler
LossParts = dict[str, Tensor]


@dataclass(frozen=True)
class Term:
    """One distillation term of a student's loss.

    ``teacher_MS`` are the teacher's cached logits of all the student's training rows and their negatives, in the
    sampler's order. ``weight`` is a function of (step, total steps); where it is 0 the term is not computed, so
    nothing of it can leak into the step.
    """

    name: str
    loss: Callable[[Tensor, Tensor], Tensor]
    weight: Callable[[int, int], float]
    teacher_MS: Tensor


@dataclass(frozen=True)
class Task:
    """All that ``fit`` needs to train one stage."""

    stage: str
    model: Model
    features: tuple[Feature, ...]
    dataset: Dataset
    train: TrainConfig
    rows_M: Tensor | None  # event rows; None: all of a data set that is larger than memory
    seed: int  # of this stage's streams
    lists: Candidates | None = None
    label_weight: float | Literal["rest"] = 1.0
    terms: tuple[Term, ...] = ()
    index: IndexConfig = field(default_factory=IndexConfig)
    optimizer: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # state to continue from

    @property
    def names(self) -> list[str]:
        """The names of the features the model reads."""
        return [feature.name for feature in self.features]


def make_sampler(task: Task) -> Sampler | StreamSampler:
    """The batches of a task: logged events, or those whose label is true alone, and their negatives."""
    rows_M, train = task.rows_M, task.train
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
    )


def make_batches(task: Task, sampler: Sampler | StreamSampler) -> Batches:
    """What a step trains on: the sampler's batches, or its rows along users' histories."""
    if not task.train.sequences:
        return sampler
    assert isinstance(sampler, Sampler), "config lets no stream train along histories"
    (history,) = (feature for feature in task.features if feature.kind == "history")
    return SequenceSampler(sampler, history, batch_size=task.train.batch_size, seed=task.seed)


def make_loss(task: Task, sampler: Sampler | StreamSampler) -> Callable[[Batch, int, int], LossParts]:
    """(batch, step, total steps) -> the weighted terms of the loss by name; their sum is minimised."""
    on_batch = _pointwise(task, sampler) if task.train.loss == "bce" else _contrast(task, sampler)
    hard = make_hard_negatives(task, sampler)
    if hard is None:
        return on_batch
    return lambda batch, step, total_steps: on_batch(hard.added_to(batch, step), step, total_steps)


def make_hard_negatives(task: Task, sampler: Sampler | StreamSampler) -> HardNegatives | None:
    """What adds hard negatives to the sampler's batches; None where the task has no such source."""
    for source in task.train.samples:
        if source.source == "hard":
            seed = stream(task.seed, "hard negatives")
            return HardNegatives(source, task.model, task.features, task.dataset, seed, sampler.num_slots)
    return None


def _contrast(task: Task, sampler: Sampler | StreamSampler) -> Callable[[Batch, int, int], LossParts]:
    """Every positive against negatives: by vectors where the model has them, else row by row."""
    model, dataset, names, train = task.model, task.dataset, task.names, task.train
    num_drawn = sum(source.per_positive for source in train.samples)
    if not isinstance(model, TowerModel):
        assert train.loss == "bpr", "config lets only tower models train with the other losses"
        known = _known_columns(task, sampler)

        def by_rows(batch: Batch, step: int, total_steps: int) -> LossParts:
            output = row_output(
                model, dataset, names, batch, known=known.of(batch), known_user=known.of_requests(batch)
            )
            return {"label": contrast_loss(row_columns(output.logits_R.float(), batch, num_drawn), train)}

        return by_rows
    if train.loss == "full-softmax":
        return lambda batch, step, total_steps: {"label": catalogue_loss(model, dataset, names, batch)}
    in_batch = any(source.source == "in-batch" for source in train.samples)
    log_q_I1 = log_popularity(sampler.item_counts()) if in_batch else None
    shared = shared_negatives(dataset, train.samples, task.seed)

    def by_vectors(batch: Batch, step: int, total_steps: int) -> LossParts:
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
        return {"label": contrast_loss(columns, train)}

    return by_vectors


def _known_columns(task: Task, sampler: Sampler | StreamSampler) -> StatisticColumns | StreamColumns:
    """The columns of training rows that need no look-up any more."""
    if isinstance(sampler, StreamSampler):
        return StreamColumns(task.dataset, task.features)
    return StatisticColumns(sampler, task.features)


def _pointwise(task: Task, sampler: Sampler | StreamSampler) -> Callable[[Batch, int, int], LossParts]:
    known = _known_columns(task, sampler)
    auxiliary: dict[str, float] = getattr(task.model, "auxiliary", {})

    def loss_parts(batch: Batch, step: int, total_steps: int) -> LossParts:
        output = row_output(
            task.model,
            task.dataset,
            task.names,
            batch,
            hidden=[HEAD + label for label in auxiliary],
            known=known.of(batch),
            known_user=known.of_requests(batch),
        )
        logits_R = output.logits_R.float()
        label_loss = pointwise_loss(logits_R, batch.label_R, batch.weight_R)
        weights = {term.name: term.weight(step, total_steps) for term in task.terms}
        label_weight = 1.0 - sum(weights.values()) if task.label_weight == "rest" else task.label_weight
        parts = {"label": label_loss if label_weight == 1.0 else label_weight * label_loss}
        parts |= auxiliary_losses(output, auxiliary, task.dataset, batch)
        for term in task.terms:
            if weights[term.name]:
                loss_R = term.loss(logits_R, term.teacher_MS[batch.sample_R, batch.slot_R])
                parts[term.name] = weights[term.name] * weighted_mean(loss_R, batch.weight_R)
        return parts

    return loss_parts

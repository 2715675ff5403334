"""The terms of a student's loss that a teacher adds (floor 6).

A :class:`Moment` is all that one step knows; a :class:`Term` makes a number of it. R rows of a batch, M training rows,
S slots of a row, N rows of a hidden state, W its width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from torch import Tensor, nn

from cascade_kd.distill import Experts, HiddenDistillConfig, PairConfig, gumbel_temperature, logit_loss, weight_at
from cascade_kd.distill.logit import LogitLoss
from cascade_kd.distill.settings import LogitDistillConfig, RelationDistillConfig
from cascade_kd.losses import attention_transfer, hint, relational, teachers_learn, uncertainty_weighting
from cascade_kd.models import Model
from cascade_kd.models.modes import evaluating
from cascade_kd.streams import generator_at
from cascade_kd.train.distributed import mean_over_all, num_ranks, total
from cascade_kd.train.objective import heads_of, weighted_mean
from cascade_kd.train.samples import Batch
from cascade_kd.train.settings import TrainConfig
from cascade_kd.types import Feature, Inputs, Output

Learner = Callable[[Output, Tensor], Tensor]  # (what the student says, the request of every row) -> logits [R]

RELATED_ROWS = 1024  # rows of a batch whose relations are compared: their number squared is computed


@dataclass(frozen=True)
class Moment:
    """One step: its batch, what the student and the teachers that run in the step say of it.

    ``munged`` is what the student says of the pseudo rows of the batch's logged events, copy after copy.
    """

    batch: Batch
    output: Output
    taught: Mapping[str, Output]
    step: int
    total_steps: int
    munged: Output | None = None

    @property
    def progress(self) -> float:
        """The share of the longest training that is over."""
        return self.step / max(1, self.total_steps - 1)


@dataclass(frozen=True)
class Term:
    """One distillation term of a student's loss, a mean over the rows of the batch.

    Where its ``weight`` of (step, total steps) is 0 the term is not computed, so nothing of it can leak into the step.
    ``layers`` are the student's hidden states that it reads, ``teacher`` the live teacher it needs, if any.
    ``hint_only`` terms are those of a first phase that trains by them alone; ``munged`` ones read pseudo rows, too;
    those that are not ``on_rows`` have rows of their own and read nothing of the batch.
    """

    name: str
    loss: Callable[[Moment], Tensor]
    weight: Callable[[int, int], float]
    layers: tuple[str, ...] = ()
    teacher: str | None = None
    hint_only: bool = False
    munged: bool = False
    on_rows: bool = True


@final
@dataclass(frozen=True)
class LiveTeacher:
    """A teacher whose forward pass runs in the student's step: one with hidden states to teach, or a joint one.

    An offline one runs in evaluation mode without gradient. A joint one is trained in the step, on the label and by the
    optimiser of its own ``train``.
    """

    name: str
    model: Model
    features: tuple[Feature, ...]
    layers: tuple[str, ...] = ()
    train: TrainConfig | None = None

    def output(self, inputs: Inputs) -> Output:
        """What it says of the rows; one that is trained, of its auxiliary labels, too."""
        if self.train is not None:
            return self.model(inputs, dict.fromkeys([*self.layers, *heads_of(self.model)]))
        with evaluating(self.model):
            return self.model(inputs, self.layers)


@final
class AuxiliaryHead(nn.Module):
    """A second logit on a hidden layer of the student: trained with it, never served."""

    def __init__(self, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight_W = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.zeros(()))
        nn.init.normal_(self.weight_W, std=width**-0.5, generator=generator)

    def forward(self, state_NW: Tensor) -> Tensor:
        """[N]."""
        return state_NW @ self.weight_W + self.bias


@final
class Balance(nn.Module):
    """Weights of the terms of one student's loss, learnt with it; ``names`` fixes their places."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.log_sd_M = nn.Parameter(torch.zeros(len(self.names)))

    def __call__(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parts of this step, weighted; those that take no part in it leave their weights alone."""
        at = [self.names.index(name) for name in parts]
        weighted_M = uncertainty_weighting(torch.stack(list(parts.values())), self.log_sd_M[at])
        return dict(zip(parts, weighted_M.unbind(), strict=True))


def cached_logit_term(
    pair: LogitDistillConfig, teacher_MS: Tensor, head: AuxiliaryHead | None, munged_MK: Tensor | None = None
) -> Term:
    """On the teacher's logits of all the student's training rows and their negatives, computed before.

    ``munged_MK`` are those of the rows' pseudo copies. Rows without a logit (NaN: the user's own scores cover logged
    events only) take no part.
    """
    mean, sd = 0.0, 1.0
    if pair.loss == "mimic":
        known = teacher_MS[~teacher_MS.isnan()].double()
        mean, sd = float(known.mean()), float(known.std()) or 1.0
    on = on_cached(logit_loss(pair, mean=mean, sd=sd), teacher_MS, partial(_learner, pair, head), munged_MK)
    return _term(pair, on, layers=() if pair.layer is None else (pair.layer,), munged=munged_MK is not None)


def on_cached(
    loss: LogitLoss,
    teacher_MS: Tensor,
    learner: Learner = lambda output, row_R: output.logits_R.float(),
    munged_MK: Tensor | None = None,
) -> Callable[[Moment], Tensor]:
    """The weighted mean of a loss over the rows whose teacher logit is known, pseudo rows among them; 0 where none is.

    ``learner`` gives the logits that learn.
    """

    def on(moment: Moment) -> Tensor:
        batch = moment.batch
        logits_R = learner(moment.output, batch.row_R)
        teacher_R, weight_R = teacher_MS[batch.sample_R, batch.slot_R], batch.weight_R
        if munged_MK is not None:
            assert moment.munged is not None, "the step runs the pseudo rows of such a term"
            teacher_KB = munged_MK[batch.sample_R[: len(batch.requests)]].T
            row_R = torch.arange(teacher_KB.numel(), device=teacher_KB.device)
            logits_R = torch.cat([logits_R, learner(moment.munged, row_R)])
            teacher_R = torch.cat([teacher_R, teacher_KB.flatten()])
            weight_R = torch.cat([weight_R, weight_R.new_ones(teacher_KB.numel())])
        known_R = ~teacher_R.isnan()
        loss_R = loss(logits_R, torch.where(known_R, teacher_R, logits_R.detach()))
        weight_R = weight_R * known_R
        return (loss_R * weight_R).sum() / total(weight_R.sum()).clamp(min=torch.finfo(torch.float32).tiny)

    return on


def live_logit_term(pair: LogitDistillConfig, head: AuxiliaryHead | None) -> Term:
    """On the logits of the teacher that is trained in the same step."""
    loss = logit_loss(pair)

    def on(moment: Moment) -> Tensor:
        teacher_R = blocked(moment.taught[pair.source].logits_R.float(), pair)
        logits_R = _learner(pair, head, moment.output, moment.batch.row_R)
        return weighted_mean(loss(logits_R, teacher_R), moment.batch.weight_R)

    return _term(pair, on, layers=() if pair.layer is None else (pair.layer,), teacher=pair.source)


def hidden_term(pair: HiddenDistillConfig, projectors: Sequence[nn.Module | None], noise_seed: int) -> Term:
    """On pairs of hidden layers, each through its projector; the sum over the pairs."""

    def on(moment: Moment) -> Tensor:
        loss = moment.output.logits_R.new_zeros((), dtype=torch.float32)
        for (of_teacher, of_student), projector in zip(pair.layers, projectors, strict=True):
            student, teacher = states(moment, pair, of_teacher, of_student)
            if pair.loss == "attention":
                loss_N = attention_transfer(student, teacher)
            else:
                student, teacher = student.flatten(1), teacher.flatten(1)
                if isinstance(projector, Experts):
                    temperature = gumbel_temperature(moment.progress)
                    generator = generator_at(noise_seed, moment.step)
                    student = projector(student, teacher, temperature=temperature, generator=generator)
                elif projector is not None:
                    student = projector(student)
                loss_N = hint(student, teacher)
            rows = len(loss_N) == len(moment.batch.weight_R)
            loss = loss + (weighted_mean(loss_N, moment.batch.weight_R) if rows else mean_over_all(loss_N))
        return loss

    layers = tuple(of_student for _, of_student in pair.layers)
    return _term(pair, on, layers=layers, teacher=pair.source, hint_only="hint" in pair.phases)


def relation_term(pair: RelationDistillConfig) -> Term:
    """On the cosines between the states of up to 1,024 rows of the batch, evenly spaced; the sum over the layers.

    Several ranks compare the rows of each one's share, and take the mean.
    """

    def on(moment: Moment) -> Tensor:
        loss = moment.output.logits_R.new_zeros((), dtype=torch.float32)
        for of_teacher, of_student in pair.layers:
            student, teacher = states(moment, pair, of_teacher, of_student)
            every = -(-len(student) // RELATED_ROWS)
            student, teacher = student[::every].flatten(1), teacher[::every].flatten(1)
            where = torch.ones(len(student), dtype=torch.bool, device=student.device)
            loss = loss + relational(student, teacher, where_N=where).mean()
        return loss / num_ranks()

    return _term(pair, on, layers=tuple(of_student for _, of_student in pair.layers), teacher=pair.source)


def states(moment: Moment, pair: PairConfig, of_teacher: str, of_student: str) -> tuple[Tensor, Tensor]:
    """The two hidden states, float32: of the rows of the batch, or of its requests where both are of a user tower."""
    student = moment.output.hidden[of_student].float()
    teacher = blocked(moment.taught[pair.source].hidden[of_teacher].float(), pair)
    if len(student) != len(teacher):
        row_R = moment.batch.row_R
        student = student if len(student) == len(row_R) else student.index_select(0, row_R)
        teacher = teacher if len(teacher) == len(row_R) else teacher.index_select(0, row_R)
    return student, teacher


def blocked(teacher: Tensor, pair: PairConfig) -> Tensor:
    """The teacher's tensor without its gradient, unless the pair lets it through."""
    return teacher.detach() if pair.block else teacher


def _learner(pair: LogitDistillConfig, head: AuxiliaryHead | None, output: Output, row_R: Tensor) -> Tensor:
    """The logits that learn: the served ones, or the auxiliary head's; a user's state is repeated for its rows."""
    if head is None:
        return output.logits_R.float()
    assert pair.layer is not None
    logits: Tensor = head(output.hidden[pair.layer].float().flatten(1))
    return logits if len(logits) == len(row_R) else logits.index_select(0, row_R)


def _term(
    pair: PairConfig,
    loss: Callable[[Moment], Tensor],
    *,
    layers: tuple[str, ...] = (),
    teacher: str | None = None,
    hint_only: bool = False,
    munged: bool = False,
) -> Term:
    def unblocked(moment: Moment) -> Tensor:
        with teachers_learn():
            return loss(moment)

    on = loss if pair.block else unblocked
    return Term(pair.name, on, partial(weight_at, pair), layers, teacher, hint_only, munged)

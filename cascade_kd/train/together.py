"""Several stages trained in the same steps, each by its own rows, label and optimiser (floor 6).

In a step every stage takes the batch that it would take alone, and all of them the lists of their objective; the sum of
all losses has one backward pass. A stage ends its training when it would alone, and stands still as it will serve while
the others go on. So without an objective's weight each is trained bit for bit as by ``fit``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from cascade_kd.interrupt import GOES_ON, DeferredInterrupt, Interrupted
from cascade_kd.models import TowerModel
from cascade_kd.streams import scoped_seed, seed_at, seed_global, stream
from cascade_kd.train.cascade_terms import Objective
from cascade_kd.train.checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimizer_state,
    restore_optimizer,
    save_checkpoint,
)
from cascade_kd.train.checks import check_rows
from cascade_kd.train.loop import flushed_denormals, scale_rates, sum_of, task_monitor, trained_beside
from cascade_kd.train.monitor import Monitor
from cascade_kd.train.norms import gradient_norms
from cascade_kd.train.optimizers import make_optimizers
from cascade_kd.train.progress import ProgressLog, StageProgress
from cascade_kd.train.state import BEST_FILE, State, end_epoch, rate_factor, save, state_dict
from cascade_kd.train.task import Batches, LossParts, OnBatch, Task, make_batches, make_loss, make_sampler

TOGETHER_FILE = "together.safetensors"  # of all stages, in the folder of the first, until they are done


@dataclass
class Course:
    """One stage's training within a group."""

    task: Task
    folder: Path
    about: dict[str, Any]
    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    batches: Batches
    loss_parts: OnBatch
    monitor: Monitor
    more_is_better: bool
    total_steps: int
    last_step: int
    state: State

    @property
    def epoch_end(self) -> int:
        """The step after the last one of the epoch."""
        steps = self.batches.steps_per_epoch
        return min((self.state.step // steps + 1) * steps, self.last_step)


def fit_together(
    tasks: Sequence[Task],
    objective: Objective,
    folders: Sequence[Path],
    progress: ProgressLog,
    *,
    abouts: Sequence[dict[str, Any]],
) -> None:
    """Train the stages of ``tasks`` with their objective and leave each with its best weights.

    Each of ``folders`` receives ``best`` and, when its stage is done, ``last``, as ``fit`` leaves them; while they are
    trained, the first folder holds one checkpoint of all, from which a resume goes on to the same weights. Raises
    DataError and Interrupted as ``fit`` does.
    """
    for task in tasks:
        check_rows(task.stage, task.dataset, task.rows_M, task.train, tower=isinstance(task.model, TowerModel))
    with ExitStack() as stack:
        for task in tasks:
            stack.enter_context(trained_beside(cast(nn.Module, task.model), task.beside))
        courses = [_course(*one) for one in zip(tasks, folders, abouts, strict=True)]
        whole = nn.ModuleDict({f"stage_{c.task.stage}": c.model for c in courses})
        learnt: list[torch.optim.Optimizer] = []
        if objective.weights is not None:
            whole["objective"] = objective.weights
            train = tasks[0].train.model_copy(
                update={"weight_decay": 0.0}
            )  # decay would draw them to 0, and log with it
            learnt = make_optimizers(objective.weights, train)
        path = folders[0] / TOGETHER_FILE
        step = _resume(path, whole, courses, learnt)
        bars = [
            stack.enter_context(
                progress.stage(
                    c.task.stage, c.task.train.epochs, c.batches.steps_per_epoch, c.task.train.monitor, c.about
                )
            )
            for c in courses
        ]
        while not all(c.state.finished for c in courses):
            with DeferredInterrupt() as interrupt:
                with scoped_seed(), flushed_denormals():
                    step = _train(courses, bars, objective, learnt, step, interrupt)
                for course, bar in zip(courses, bars, strict=True):
                    _close(course, bar)
                _save(path, whole, courses, learnt, step)
            if interrupt.signum is not None:
                names = " and ".join(f"'{c.task.stage}'" for c in courses)
                message = f"stopped in stages {names} at step {step}; {GOES_ON}"
                raise Interrupted(interrupt.signum, message)
        for suffix in (".safetensors", ".json"):
            path.with_suffix(suffix).unlink(missing_ok=True)


def _course(task: Task, folder: Path, about: dict[str, Any]) -> Course:
    train, model = task.train, cast(nn.Module, task.model)
    sampler = make_sampler(task)
    batches = make_batches(task, sampler)
    monitor, more_is_better = task_monitor(task)
    total_steps = train.epochs * batches.steps_per_epoch
    return Course(
        task,
        folder,
        about,
        model,
        make_optimizers(model, train),
        batches,
        make_loss(task, sampler),
        monitor,
        more_is_better,
        total_steps,
        min(total_steps, train.max_steps or total_steps),
        State(),
    )


def _train(
    courses: Sequence[Course],
    bars: Sequence[StageProgress],
    objective: Objective,
    learnt: Sequence[torch.optim.Optimizer],
    step: int,
    interrupt: DeferredInterrupt,
) -> int:
    """Steps up to the end of an epoch of some stage, or to an interrupt; returns the step that comes next."""
    live = [course for course in courses if not course.state.finished]
    learning = [not course.state.finished for course in courses]
    total_steps = max(course.total_steps for course in courses)
    for course in live:
        factor = rate_factor(course.state, course.task.train, course.batches.steps_per_epoch)
        scale_rates(course.optimizers, factor)
        course.model.train()
    optimizers = [*(o for course in live for o in course.optimizers), *learnt]
    end = min(course.epoch_end for course in live)
    while (at := live[0].state.step) < end and interrupt.signum is None:
        assert at == step, "all that still learn have taken every step"
        weight = objective.weight(step, total_steps)
        parts = [{} if weight and _is_silent(course.task) else _label_parts(course) for course in live]
        shared: LossParts = {}
        if weight:
            shared = {objective.name: weight * objective.loss(step, learning)}
        for course, own in zip(live, parts, strict=True):
            if course.task.train.gradient_norms and step == course.epoch_end - 1:
                course.state.norms = gradient_norms(own | shared, course.model)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        sum_of([*(part for own in parts for part in own.values()), *shared.values()]).backward()
        for optimizer in optimizers:
            optimizer.step()
        for course, bar, own in zip(live, (b for b, on in zip(bars, learning, strict=True) if on), parts, strict=True):
            learnt_from = own | shared
            value = sum_of(list(learnt_from.values())).item()
            course.state.note(course.task.stage, value, {name: part.item() for name, part in learnt_from.items()})
            bar.step(value, course.state.step, course.batches.batch_size)
        step += 1
    return step


def _is_silent(task: Task) -> bool:
    """Whether the stage learns from its objective alone, so that its own rows need not be read."""
    return task.label_weight == 0.0 and not task.terms


def _label_parts(course: Course) -> LossParts:
    """What the stage would learn from alone; dropout is a function of its own step."""
    state, task = course.state, course.task
    seed_global(seed_at(stream(task.seed, "model"), state.step))
    batch = course.batches.batch(state.step)
    low = task.train.precision == "bfloat16"
    with torch.autocast(batch.item_R.device.type, torch.bfloat16, enabled=low):
        return course.loss_parts(batch, state.step, course.total_steps)


def _close(course: Course, bar: StageProgress) -> None:
    """The end of an epoch, where it is one, as in ``fit``; a stage that is done is left as it will serve."""
    state = course.state
    steps = course.batches.steps_per_epoch
    if state.finished or not (state.step % steps == 0 or state.step == course.last_step) or state.step == 0:
        return
    if state.curve and state.curve[-1]["step"] == state.step:
        return  # closed already: an epoch of another stage ended
    end_epoch(
        course.task,
        course.model,
        course.folder,
        state,
        course.monitor(),
        more_is_better=course.more_is_better,
        steps_per_epoch=steps,
        last_step=course.last_step,
        about=course.about,
    )
    bar.epoch(state.curve[-1])
    if state.finished:
        save(course.folder / "last.safetensors", course.model, course.optimizers, state, course.about)
        _take_best(course)


def _take_best(course: Course) -> None:
    course.model.load_state_dict(dict(load_checkpoint(course.folder / BEST_FILE).model), strict=False)


def _save(
    path: Path, whole: nn.ModuleDict, courses: Sequence[Course], learnt: Sequence[torch.optim.Optimizer], step: int
) -> None:
    """All that a resume needs, in one file, so that no stage is ever ahead of another."""
    saved: dict[str, dict[str, Tensor]] = {}
    for optimizer in (*(o for course in courses for o in course.optimizers), *learnt):
        saved |= optimizer_state(whole, optimizer)
    states = {course.task.stage: vars(course.state) for course in courses}
    about = {key: courses[0].about[key] for key in ("seed", "round")}
    save_checkpoint(path, Checkpoint(state_dict(whole), about | {"step": step, "states": states}, saved))


def _resume(
    path: Path, whole: nn.ModuleDict, courses: Sequence[Course], learnt: Sequence[torch.optim.Optimizer]
) -> int:
    """The step that comes next, every stage as it was then; 0 where there is no checkpoint."""
    if not path.exists():
        return 0
    checkpoint = load_checkpoint(path)
    whole.load_state_dict(dict(checkpoint.model))
    for optimizer in (*(o for course in courses for o in course.optimizers), *learnt):
        restore_optimizer(whole, optimizer, checkpoint.optimizer)
    for course in courses:
        course.state = State(**checkpoint.meta["states"][course.task.stage])
    step: int = checkpoint.meta["step"]
    return step

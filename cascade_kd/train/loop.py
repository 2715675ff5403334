"""One training loop in plain torch for every model (floor 6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from cascade_kd.interrupt import GOES_ON, DeferredInterrupt, Interrupted
from cascade_kd.models import Table, TowerModel
from cascade_kd.streams import scoped_seed, seed_at, seed_global, stream
from cascade_kd.train.checkpoint import load_checkpoint, restore_optimizer
from cascade_kd.train.checks import check_rows
from cascade_kd.train.distributed import (
    agreed,
    barrier,
    check_ranks,
    num_ranks,
    rank,
    signal_of_any,
    signals_noted,
    sum_gradients,
)
from cascade_kd.train.monitor import make_monitor
from cascade_kd.train.norms import gradient_norms
from cascade_kd.train.optimizers import joint_optimizers
from cascade_kd.train.progress import ProgressLog, StageProgress
from cascade_kd.train.row_optimizers import RowAdagrad, RowAdam
from cascade_kd.train.samples import Batch
from cascade_kd.train.state import (
    BESIDE_FILE,
    State,
    end_epoch,
    load_best,
    own_state,
    rate_factor,
    resume,
    save,
)
from cascade_kd.train.task import Batches, LossParts, Task, make_batches, make_loss, make_sampler


def fit(task: Task, folder: Path, progress: ProgressLog, *, about: dict[str, Any]) -> list[dict[str, Any]]:
    """Train ``task.model`` and leave it with its best weights; returns the learning curve, one point an epoch.

    ``folder`` receives ``last`` (every epoch and on an interrupt, with optimiser state) and ``best``; if it holds a
    ``last`` of this task, training goes on from there and ends in the weights of an uninterrupted run. ``about`` goes
    into both files (seed, round, key). Early stopping: ``patience`` epochs without a better monitor.
    Raises DataError where there is nothing to learn from, and Interrupted after saving on SIGINT and SIGTERM.
    """
    for _ in fit_in_turns(task, folder, progress, about=about):
        pass
    assert isinstance(task.model, nn.Module)
    return load_best(task.model, folder)


def fit_in_turns(task: Task, folder: Path, progress: ProgressLog, *, about: dict[str, Any]) -> Iterator[int]:
    """:func:`fit` of one of several peers: at an exchange it publishes its weights and yields its step.

    It reads the others' weights and trains on when it is asked for its next step. The weights are the last at the end.
    """
    model, train = task.model, task.train
    assert isinstance(model, nn.Module)
    check_rows(task.stage, task.dataset, task.rows_M, train, tower=isinstance(model, TowerModel))
    with trained_beside(model, task.beside):
        check_ranks(task.stage, model, learned=any(student.balance is not None for student in task.students))
        yield from _fit(task, model, folder, progress, about)
        for module in model.modules():
            if isinstance(module, Table):
                module.make_whole()
    barrier()  # the best weights are in their file
    if task.beside is not None and (folder / BESIDE_FILE).exists():
        task.beside.load_state_dict(dict(load_checkpoint(folder / BESIDE_FILE).model), strict=False)


def _fit(task: Task, model: nn.Module, folder: Path, progress: ProgressLog, about: dict[str, Any]) -> Iterator[int]:
    train, exchange = task.train, task.exchange
    optimizers = _optimizers(task, model)
    for optimizer in optimizers:
        restore_optimizer(model, optimizer, own_state(model, task.optimizer))
    state = resume(folder / "last.safetensors", model, optimizers)
    if exchange is not None and state.step:
        exchange.restore(state.peers)
    elif exchange is not None:
        exchange.clear()
    sampler = make_sampler(task)
    batches = make_batches(task, sampler)
    monitor, more_is_better = task_monitor(task)
    loss_parts = make_loss(task, sampler)
    total_steps = train.epochs * batches.steps_per_epoch
    last_step = min(total_steps, train.max_steps or total_steps)
    model_seed = stream(task.seed, "model") if rank() == 0 else stream(task.seed, "model", rank())

    late: int | None = None  # a signal noted after the ranks had told each other of theirs
    with progress.stage(task.stage, train.epochs, batches.steps_per_epoch, train.monitor, about) as bar:
        while not state.finished:
            if exchange is not None and exchange.is_due(state.step):
                exchange.publish(state.step, model)
                barrier()
                yield state.step
                exchange.read(state.step)
                state.peers = {str(peer): step for peer, step in exchange.used.items()}
                bar.exchanged(state.step, state.peers)
            scale_rates(optimizers, rate_factor(state, train, batches.steps_per_epoch))
            # Around the monitor too: an interrupt then costs no epoch, at the price of waiting for its value.
            with DeferredInterrupt(late) as interrupt:
                with scoped_seed(), flushed_denormals():
                    ended = train_epoch(
                        task, model, optimizers, batches, loss_parts, state, last_step, model_seed, bar, interrupt
                    )
                if ended:
                    end_epoch(
                        task,
                        model,
                        folder,
                        state,
                        agreed(monitor()),
                        more_is_better=more_is_better,
                        steps_per_epoch=batches.steps_per_epoch,
                        last_step=last_step,
                        about=about,
                    )
                    # Logged before it is saved: a kill in between costs a line that the resume trims and logs again.
                    bar.epoch(state.curve[-1])
                save(folder / "last.safetensors", model, optimizers, state, about)
                if exchange is not None:
                    exchange.settle()
                signum = signal_of_any(interrupt.signum)
            late = interrupt.signum
            if signum is None and state.finished:
                signum = late
            if signum is not None:
                raise Interrupted(signum, f"stopped in stage '{task.stage}' at step {state.step}; {GOES_ON}")
    if exchange is not None:
        exchange.publish(state.step, model, finished=True)


@contextmanager
def trained_beside(model: nn.Module, beside: nn.Module | None) -> Iterator[None]:
    """Inside the block ``beside`` is a part of the model: its parameters are trained and saved with the model's."""
    if beside is None:
        yield
        return
    model.add_module("beside", beside)
    try:
        yield
    finally:
        del model.beside


def _optimizers(task: Task, model: nn.Module) -> list[torch.optim.Optimizer]:
    students = [cast(nn.Module, student.model) for student in task.students]
    teachers = {cast(nn.Module, teacher.model): teacher.train for teacher in task.teachers if teacher.train is not None}
    return joint_optimizers(model, task.train, students, teachers)


def task_monitor(task: Task) -> tuple[Callable[[], float], bool]:
    """The mean over the students of what ``[train] monitor`` names."""
    made = [
        make_monitor(
            task.train.monitor,
            s.model,
            task.dataset,
            s.features,
            task.train.label,
            index=task.index,
            received=s.received,
        )
        for s in task.students
    ]
    return lambda: sum(measure() for measure, _ in made) / len(made), made[0][1]


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Decayed Adam moments become denormal numbers, which cost a multiple of the step on most CPUs: flush them."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def scale_rates(optimizers: Sequence[torch.optim.Optimizer], factor: float) -> None:
    """Set every learning rate to ``factor`` times what the optimiser was made with."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def train_epoch(
    task: Task,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    batches: Batches,
    loss_parts: Callable[[Batch, int, int], LossParts],
    state: State,
    last_step: int,
    model_seed: int,
    bar: StageProgress,
    interrupt: DeferredInterrupt,
) -> bool:
    """Steps up to the end of the epoch, ``last_step``, an exchange or an interrupt; whether the epoch is over."""
    steps = batches.steps_per_epoch
    end = min((state.step // steps + 1) * steps, last_step)
    pause = end if task.exchange is None else task.exchange.next_after(state.step)
    total_steps = task.train.epochs * steps
    low = task.train.precision == "bfloat16"
    model.train()
    signum = interrupt.signum if num_ranks() == 1 else None
    while state.step < min(end, pause) and signum is None:
        seed_global(seed_at(model_seed, state.step))  # dropout: a function of the step, so a resume repeats it
        batch = batches.batch(state.step)
        with torch.autocast(batch.item_R.device.type, torch.bfloat16, enabled=low):
            parts = loss_parts(batch, state.step, total_steps)
            loss = sum_of(list(parts.values()))
        if task.train.gradient_norms and state.step == end - 1:
            state.norms = gradient_norms(parts, model)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        told, signum = sum_over_ranks(optimizers, torch.stack([loss, *parts.values()]).detach(), interrupt)
        for optimizer in optimizers:
            optimizer.step()
        value, *values = told.tolist()
        state.note(task.stage, value, dict(zip(parts, values, strict=True)))
        bar.step(value, state.step, batches.batch_size)
    return state.step == end


def sum_over_ranks(
    optimizers: Sequence[torch.optim.Optimizer], losses: Tensor, interrupt: DeferredInterrupt
) -> tuple[Tensor, int | None]:
    """Sum dense gradients and losses over the ranks; also the signal that any has received, told in one message.

    Row-sparse optimisers sum the gradients of their rows themselves.
    """
    if num_ranks() == 1:
        return losses, interrupt.signum
    dense = [optimizer for optimizer in optimizers if not isinstance(optimizer, RowAdam | RowAdagrad)]
    parameters = [p for optimizer in dense for group in optimizer.param_groups for p in group["params"]]
    told = sum_gradients(parameters, torch.cat([losses.float(), signals_noted(interrupt.signum)]))
    losses, noted = told.split([len(losses), len(told) - len(losses)])
    return losses, signal_of_any(None, noted=noted)


def sum_of(parts: Sequence[Tensor]) -> Tensor:
    """Their sum, left to right; a single part is returned as it is."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total

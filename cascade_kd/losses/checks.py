"""What every loss refuses, in one place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor


def check_same_shape(first: Tensor, second: Tensor, names: str) -> None:
    """Raise ValueError unless both tensors have one shape: broadcasting would mix rows silently."""
    if first.shape != second.shape:
        raise ValueError(f"{names} must have one shape, got {tuple(first.shape)} and {tuple(second.shape)}")


_teachers_learn: ContextVar[bool] = ContextVar("_teachers_learn", default=False)


@contextmanager
def teachers_learn() -> Iterator[None]:
    """Inside the block a teacher may carry a gradient: joint training without the gradient block, which asks for it."""
    token = _teachers_learn.set(True)
    try:
        yield
    finally:
        _teachers_learn.reset(token)


def check_no_gradient(teacher: Tensor, what: str = "logits") -> None:
    """Raise ValueError for a teacher's tensor that carries a gradient; ``what`` names it in the error."""
    if teacher.requires_grad and not _teachers_learn.get():
        raise ValueError(f"the teacher's {what} carry a gradient; compute them under torch.no_grad() or detach() them")


def check_teacher(student: Tensor, teacher: Tensor, what: str = "logits") -> None:
    """Raise ValueError for a teacher that carries a gradient or has another shape than the student."""
    check_no_gradient(teacher, what)
    check_same_shape(student, teacher, f"student's and teacher's {what}")


def check_temperature(temperature: float) -> None:
    """Raise ValueError unless the temperature is a positive number."""
    if not 0.0 < temperature < float("inf"):
        raise ValueError(f"temperature must be a finite number > 0, got {temperature}")

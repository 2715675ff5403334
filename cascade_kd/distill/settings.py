"""The ``[[distill]]`` table, one pydantic model a method.

``needs`` names the signals that the teacher must give, ``student_losses`` the label losses that a student may have.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator


class LogitDistillConfig(BaseModel):
    """The student's logits are drawn to the teacher's, row by row."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    needs: ClassVar[tuple[str, ...]] = ("logits",)
    student_losses: ClassVar[tuple[str, ...]] = ("bce",)

    teacher: str
    """The stage that teaches."""
    student: str
    """The stage that learns."""
    method: Literal["logit"]
    """The distiller."""
    mode: Literal["offline"] = "offline"
    """`offline`: the teacher is trained first and frozen."""
    loss: Literal["kl", "mse", "prob-mse"] = "kl"
    """`kl`: Bernoulli KL at `temperature`, times its square; `mse` on logits; `prob-mse` on probabilities."""
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Softens both sides; for loss `kl` only."""
    weight: float = Field(default=0.5, ge=0, allow_inf_nan=False)
    """Factor of the distillation loss in the student's loss."""
    warmup_steps: int = Field(default=0, ge=0)
    """The weight is 0 for so many optimiser steps."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the weight goes from `weight` to `end_weight`."""
    end_weight: float | None = Field(default=None, ge=0, allow_inf_nan=False, validate_default=True)
    """The weight at the last step; for schedules `linear` and `cosine` only."""

    @field_validator("temperature")
    @classmethod
    def _temperature_is_for_kl(cls, value: float, info: ValidationInfo) -> float:
        loss = info.data.get("loss")
        if loss in ("mse", "prob-mse") and value != 1:
            raise ValueError(f'loss = "{loss}" has no temperature, got {value:g}; leave it out or choose loss = "kl"')
        return value

    @field_validator("end_weight")
    @classmethod
    def _end_weight_fits_the_schedule(cls, value: float | None, info: ValidationInfo) -> float | None:
        schedule = info.data.get("schedule")
        if schedule == "constant" and value is not None:
            raise ValueError('schedule = "constant" has no end_weight; leave it out or choose "linear" or "cosine"')
        if schedule in ("linear", "cosine") and value is None:
            raise ValueError(f'schedule = "{schedule}" needs end_weight, the weight at the last step')
        return value

"""The ``[train]`` table of a stage: loss, samples, optimiser and stopping (a pydantic model, nothing else)."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Loss = Literal["bce", "sampled-softmax"]
Source = Literal["impressions", "upstream", "uniform"]

_MONITOR = re.compile(r"auc|logloss|recall@[1-9][0-9]*")


def _default_monitor(data: dict[str, Any]) -> str:
    return "recall@50" if data.get("loss") == "sampled-softmax" else "auc"


class SampleSource(BaseModel):
    """Where training rows come from: logged events, or negatives drawn for every positive event."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, use_attribute_docstrings=True)

    source: Source = Field(validation_alias="from", serialization_alias="from")
    """`impressions`: the logged events; `upstream`: the list of the stage before; `uniform`: the whole catalogue."""
    per_positive: int = Field(default=0, validate_default=True)
    """Negatives drawn for every event whose label is true, >= 1; for `upstream` and `uniform` only."""

    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Weight of each of these rows in the losses, which are weighted means over the rows of a batch."""

    @field_validator("per_positive")
    @classmethod
    def _fits_the_source(cls, value: int, info: ValidationInfo) -> int:
        source = info.data.get("source")
        if source == "impressions" and value != 0:
            raise ValueError('from = "impressions" takes every logged event and no per_positive; leave it out')
        if source in ("upstream", "uniform") and value < 1:
            got = f", got {value}" if value else ""
            raise ValueError(f'from = "{source}" needs per_positive >= 1, the negatives of a positive event{got}')
        return value


class TrainConfig(BaseModel):
    """How one stage is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    label: str
    """The label that the stage learns: a key of the data set's `[labels]`."""
    loss: Loss = "bce"
    """`bce`: log loss on every row; `sampled-softmax`: in-batch negatives, on the events whose label is true."""
    samples: tuple[SampleSource, ...] = Field(default=(SampleSource(source="impressions"),), min_length=1)
    """The rows of an epoch, drawn anew every epoch."""
    optimizer: Literal["adam"] = "adam"
    """The optimiser; embedding rows that a batch does not touch are not updated."""
    learning_rate: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    """Step size of the optimiser."""
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Weight decay of the optimiser (Adam: an L2 penalty)."""
    batch_size: int = Field(default=4096, ge=1)
    """Rows of a step."""
    epochs: int = Field(default=20, ge=1)
    """Passes over the training rows, at most."""
    patience: int = Field(default=2, ge=0)
    """Stop after so many epochs in a row without a better `monitor`; 0 never stops early."""
    monitor: str = Field(default_factory=_default_monitor)
    """`auc`, `logloss` or `recall@K` on the validation part; the default is auc, recall@50 with sampled-softmax."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after so many optimiser steps, for a quick trial."""

    @field_validator("samples")
    @classmethod
    def _one_entry_a_source(cls, value: tuple[SampleSource, ...]) -> tuple[SampleSource, ...]:
        sources = [entry.source for entry in value]
        twice = sorted({source for source in sources if sources.count(source) > 1})
        if twice:
            raise ValueError(f"'{twice[0]}' is listed twice; give one entry a source")
        return value

    @field_validator("monitor")
    @classmethod
    def _known_monitor(cls, value: str) -> str:
        if not _MONITOR.fullmatch(value):
            raise ValueError(f"want 'auc', 'logloss' or 'recall@K' with a whole number K >= 1, got '{value}'")
        return value

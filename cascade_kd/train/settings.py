"""The ``[train]`` table of a stage: loss, samples, optimiser and stopping (a pydantic model, nothing else)."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Loss = Literal["bce", "sampled-softmax"]
Source = Literal["impressions", "in-batch", "uniform", "popularity", "upstream", "hard"]

NOT_DRAWN = ("impressions", "in-batch")  # sources whose rows are there already
POOL_PER_NEGATIVE = 20

# The remedy for rows that are all positive.
DRAW = 'draw some: samples = [{ from = "impressions" }, { from = "uniform", per_positive = 4 }]'

_MONITOR = re.compile(r"auc|logloss|recall@[1-9][0-9]*")


def _default_monitor(data: dict[str, Any]) -> str:
    return "recall@50" if data.get("loss") == "sampled-softmax" else "auc"


def other_monitor(*, tower: bool) -> str:
    """The remedy where a monitor is not defined: recall@K, which takes user and item vectors, or logloss."""
    return 'set monitor = "recall@50"' if tower else 'set monitor = "logloss"'


def _default_samples(data: dict[str, Any]) -> tuple[SampleSource, ...]:
    softmax = data.get("loss") == "sampled-softmax"
    return (SampleSource(source="in-batch" if softmax else "impressions"),)


class SampleSource(BaseModel):
    """Where training rows come from: logged events, or negatives drawn for every positive event."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, use_attribute_docstrings=True)

    source: Source = Field(validation_alias="from", serialization_alias="from")
    """Where they come from. `impressions`: the logged events; unlisted, only those whose label is true are trained on.
    `in-batch`: the items of the batch's other positive events, for sampled-softmax. `uniform`: the whole catalogue.
    `popularity`: the catalogue in proportion to its training events. `upstream`: the list of the stage before.
    `hard`: what the model as it stands scores best of `pool` uniform candidates, drawn anew every step."""
    per_positive: int = Field(default=0, validate_default=True)
    """Negatives drawn for every event whose label is true, >= 1; not for `impressions` and `in-batch`."""
    power: float | None = Field(default=None, gt=0, allow_inf_nan=False, validate_default=True)
    """For `popularity`: an item is drawn in proportion to (its training events) ** power, > 0; 1 unless given."""
    pool: int | None = Field(default=None, ge=1, validate_default=True)
    """For `hard`: candidates of a positive event, >= per_positive; 20 x per_positive unless given. Every step scores
    `pool` more rows a positive event than it trains on."""

    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Weight of each of these rows in the losses, which are weighted means over the rows of a batch; not with
    sampled-softmax."""

    @field_validator("per_positive")
    @classmethod
    def _fits_the_source(cls, value: int, info: ValidationInfo) -> int:
        source = info.data.get("source")
        if source in NOT_DRAWN and value != 0:
            takes = "every logged event" if source == "impressions" else "the batch's own items"
            raise ValueError(f'from = "{source}" takes {takes} and no per_positive; leave it out')
        if source is not None and source not in NOT_DRAWN and value < 1:
            got = f", got {value}" if value else ""
            raise ValueError(f'from = "{source}" needs per_positive >= 1, the negatives of a positive event{got}')
        return value

    @field_validator("power")
    @classmethod
    def _power_is_for_popularity(cls, value: float | None, info: ValidationInfo) -> float | None:
        source = info.data.get("source")
        if source == "popularity":
            return 1.0 if value is None else value
        if source is not None and value is not None:
            raise ValueError(f'from = "{source}" has no power, got {value:g}; leave it out or take from = "popularity"')
        return value

    @field_validator("pool")
    @classmethod
    def _pool_is_for_hard(cls, value: int | None, info: ValidationInfo) -> int | None:
        source, per_positive = info.data.get("source"), info.data.get("per_positive")
        if source is not None and source != "hard" and value is not None:
            raise ValueError(f'from = "{source}" has no pool, got {value}; leave it out or take from = "hard"')
        if source != "hard" or per_positive is None:
            return value
        if value is not None and value < per_positive:
            raise ValueError(
                f"the pool holds the candidates that the {per_positive} hardest are taken from, so it must be "
                f">= per_positive, got {value}; {POOL_PER_NEGATIVE * per_positive} is the default"
            )
        return POOL_PER_NEGATIVE * per_positive if value is None else value


class TrainConfig(BaseModel):
    """How one stage is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    label: str
    """The label that the stage learns: a key of the data set's `[labels]`."""
    loss: Loss = "bce"
    """`bce`: log loss on every row; `sampled-softmax`: the events whose label is true, each against the negatives of
    `samples`, corrected for the probability of drawing them."""
    samples: tuple[SampleSource, ...] = Field(default_factory=_default_samples, min_length=1)
    """The rows of an epoch; the default is impressions, in-batch with sampled-softmax."""
    optimizer: Literal["adam", "adagrad"] = "adam"
    """The optimiser. With `adam`, embedding rows that a batch does not read still move, by their moments."""
    learning_rate: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    """Step size of the optimiser."""
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """L2 penalty: a term weight_decay / 2 * (sum of squares) of all weights in the loss of every step."""
    embedding_optimizer: Literal["same", "sparse-adam", "sparse-adagrad", "rowwise-adagrad"] = "same"
    """Of the embedding tables. `same` updates every row in every step, at a cost that grows with the table. The others
    update the rows that the batch reads and no other; `rowwise-adagrad` keeps one accumulator a row."""
    embedding_learning_rate: float = Field(
        default_factory=lambda data: data["learning_rate"], gt=0, allow_inf_nan=False
    )
    """Step size of the embedding tables; `learning_rate` unless given."""
    embedding_l2: float = Field(default_factory=lambda data: data["weight_decay"], ge=0, allow_inf_nan=False)
    """L2 penalty of the embedding tables, in the place of `weight_decay`, which it is unless given. With `same` of all
    rows in every step; with the others of the rows that the batch reads."""
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

    @property
    def lacks_negatives(self) -> bool:
        """Whether events whose label is false are the only negatives."""
        return all(source.source == "impressions" for source in self.samples)

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

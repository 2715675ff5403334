"""The ``[train]`` table of a stage: loss, samples, optimiser and stopping (a pydantic model, nothing else)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationInfo, field_validator

Loss = Literal["bce", "sampled-softmax", "full-softmax", "bpr", "ccl"]
Source = Literal["impressions", "in-batch", "uniform", "popularity", "upstream", "hard"]

BY_VECTORS: tuple[Loss, ...] = ("sampled-softmax", "full-softmax", "ccl")  # losses of user and item vectors
ON_POSITIVES: tuple[Loss, ...] = (*BY_VECTORS, "bpr")  # losses of the events whose label is true
SHARED = ("uniform", "popularity")  # sources that can draw for a whole batch
NOT_DRAWN = ("impressions", "in-batch")  # sources whose rows are there already
POOL_PER_NEGATIVE = 20
CCL = {"ccl_margin": 0.9, "ccl_weight": 150.0}  # of SimpleX on Gowalla
MUNGE = {"swap": 0.5, "variance": 1.0}  # of Bucila et al.

# The remedy for rows that are all positive.
DRAW = 'draw some: samples = [{ from = "impressions" }, { from = "uniform", per_positive = 4 }]'

_MONITOR = re.compile(r"auc|logloss|recall@[1-9][0-9]*")


def _default_monitor(data: dict[str, Any]) -> str:
    return "recall@50" if data.get("loss") in BY_VECTORS else "auc"


def _default_batch_size(data: dict[str, Any]) -> int:
    return 32 if data.get("sequences") else 4096


def other_monitor(*, recall: bool) -> str:
    """The remedy where a monitor is not defined: recall@K, where that is, or logloss."""
    return 'set monitor = "recall@50"' if recall else 'set monitor = "logloss"'


def _default_samples(data: dict[str, Any]) -> tuple[SampleSource, ...]:
    loss = data.get("loss")
    if loss == "full-softmax":
        return ()
    if loss == "bpr":
        return (SampleSource(source="uniform", per_positive=1),)
    return (SampleSource(source="in-batch" if loss in BY_VECTORS else "impressions"),)


def _filled_for(
    owner: str, key: str, defaults: Mapping[str, float], value: float | None, info: ValidationInfo
) -> float | None:
    """A number that belongs to the choice ``owner`` of ``key``: its default there, refused with any other choice."""
    chosen = info.data.get(key)
    if chosen == owner:
        return defaults[str(info.field_name)] if value is None else value
    if chosen is not None and value is not None:
        raise ValueError(f"{key} '{chosen}' has no {info.field_name}, got {value:g}; leave it out")
    return value


class SampleSource(BaseModel):
    """Where training rows come from: logged events, or negatives drawn for every positive event."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, use_attribute_docstrings=True)

    source: Source = Field(validation_alias="from", serialization_alias="from")
    """Where they come from. `impressions`: the logged events; unlisted, only those whose label is true are trained on.
    `in-batch`: the items of the batch's other positive events, by their vectors. `uniform`: the whole catalogue.
    `popularity`: the catalogue in proportion to its training events. `upstream`: the list of the stage before.
    `hard`: what the model as it stands scores best of `pool` uniform candidates, drawn anew every step."""
    per_batch: int | None = Field(default=None, ge=1)
    """In the place of per_positive, for `uniform` and `popularity`: negatives drawn for all positive events of a batch
    together, anew every step; with losses of user and item vectors."""
    per_positive: int = Field(default=0, validate_default=True)
    """Negatives drawn for every event whose label is true, >= 1; not for `impressions` and `in-batch`."""
    power: float | None = Field(default=None, gt=0, allow_inf_nan=False, validate_default=True)
    """For `popularity`: an item is drawn in proportion to (its training events) ** power, > 0; 1 unless given."""
    pool: int | None = Field(default=None, ge=1, validate_default=True)
    """For `hard`: candidates of a positive event, >= per_positive; 20 x per_positive unless given. Every step scores
    `pool` more rows a positive event than it trains on."""

    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Weight of each of these rows in a loss that is a weighted mean over rows, which is bce."""

    @field_validator("per_positive")
    @classmethod
    def _fits_the_source(cls, value: int, info: ValidationInfo) -> int:
        source, per_batch = info.data.get("source"), info.data.get("per_batch")
        if per_batch is not None:
            if source not in SHARED:
                raise ValueError(f'from = "{source}" takes no per_batch; only "uniform" and "popularity" do')
            if value != 0:
                raise ValueError("per_batch and per_positive are two sources; give each an entry of its own kind")
            return value
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
    """`bce`: log loss on every row. The others take the events whose label is true, each against negatives:
    `sampled-softmax` those of `samples`, corrected for the probability of drawing them; `full-softmax` the whole
    catalogue; `bpr` those of `samples`, pair by pair; `ccl` those of `samples` by the cosine of user and item vectors:
    1 - cosine + ccl_weight x the mean excess of the negatives over ccl_margin. All but bce and bpr need vectors."""
    ccl_margin: float | None = Field(default=None, ge=-1, le=1, allow_inf_nan=False, validate_default=True)
    """For `ccl`: a negative whose cosine is below costs nothing; .9 unless given."""
    ccl_weight: float | None = Field(default=None, gt=0, allow_inf_nan=False, validate_default=True)
    """For `ccl`: weight of the negatives against the positive; 150 unless given."""
    samples: tuple[SampleSource, ...] = Field(default_factory=_default_samples)
    """The rows of an epoch; the default is impressions with bce, one uniform negative with bpr, none with full-softmax,
    in-batch with the others."""
    optimizer: Literal["adam", "adagrad"] = "adam"
    """The optimiser. With `adam`, embedding rows that a batch does not read still move, by their moments."""
    learning_rate: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    """Step size of the optimiser."""
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """L2 penalty: a term weight_decay / 2 * (sum of squares) of all weights in the loss of every step."""
    embedding_optimizer: Literal["same", "sparse-adam", "sparse-adagrad", "rowwise-adagrad"] = "same"
    """Of the embedding tables. `same` updates every row in every step, at a cost that grows with the table. The others
    update the rows that the batch reads and no other; `rowwise-adagrad` keeps one accumulator a row."""
    max_gradient_norm: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Before a step the gradients, without those of the L2 penalties, are scaled down to this norm over all weights of
    the stage; none: they are taken as they are. Needs `embedding_optimizer = "same"`."""
    shard_rows: int | None = Field(default=None, ge=1)
    """Embedding tables of so many rows or more are shared out over the ranks of `torchrun` while they are trained,
    their optimiser's state with them. Needs an `embedding_optimizer` that updates single rows."""
    embedding_learning_rate: float = Field(
        default_factory=lambda data: data["learning_rate"], gt=0, allow_inf_nan=False
    )
    """Step size of the embedding tables; `learning_rate` unless given."""
    embedding_l2: float = Field(default_factory=lambda data: data["weight_decay"], ge=0, allow_inf_nan=False)
    """L2 penalty of the embedding tables, in the place of `weight_decay`, which it is unless given. With `same` of all
    rows in every step; with the others of the rows that the batch reads."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products in training. `bfloat16` is mixed precision: weights, optimiser and losses stay in float32. It
    pays where the processor multiplies 16-bit numbers faster."""
    sequences: bool = False
    """Train along histories: one causal pass over a stretch of a user's history, as long as the history feature, gives
    the user's vector at every event in it, in the place of a pass an event. For losses of positives, on a tower whose
    features hold one history, read as its mean, by `last` or by `transformer`."""
    batch_size: int = Field(default_factory=_default_batch_size, ge=1)
    """Rows of a step, 4096 unless given; with `sequences` stretches of a history, 32 unless given."""
    epochs: int = Field(default=20, ge=1)
    """Passes over the training rows, at most."""
    patience: int = Field(default=2, ge=0)
    """Stop after so many epochs in a row without a better `monitor`; 0 never stops early."""
    plateau_factor: float = Field(default=1.0, gt=0, le=1)
    """Learning rates are multiplied by it after every epoch without a better `monitor`; 1 keeps them."""
    milestones: tuple[PositiveInt, ...] = ()
    """Learning rates are multiplied by `plateau_factor` after these epochs and no other, whatever the monitor does, so
    that a student and its distilled self have the same rates. Wants `patience = 0`, or a run may end before."""
    monitor: str = Field(default_factory=_default_monitor)
    """`auc`, `logloss` or `recall@K` on the validation part; the default is auc with bce and bpr, else recall@50.
    `recall@K` is of the whole catalogue for a first stage, and of what the stages before hand on for a later one, in
    the order in which it serves them; a `[[teacher]]` orders what the last stage receives."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after so many optimiser steps, for a quick trial."""
    gradient_norms: bool = False
    """Log at the end of every epoch how strongly each term of the loss pulls at the weights: a backward pass a term."""

    @property
    def lacks_negatives(self) -> bool:
        """Whether events whose label is false are the only negatives."""
        return self.loss != "full-softmax" and all(source.source == "impressions" for source in self.samples)

    @field_validator("max_gradient_norm")
    @classmethod
    def _norm_of_dense_gradients(cls, value: float | None, info: ValidationInfo) -> float | None:
        kind = info.data.get("embedding_optimizer", "same")
        if value is not None and kind != "same":
            raise ValueError(
                f"embedding_optimizer '{kind}' sums the gradients of rows as it applies them, after the norm would be "
                "taken; leave it out, or want embedding_optimizer = 'same'"
            )
        return value

    @field_validator("ccl_margin", "ccl_weight")
    @classmethod
    def _belongs_to_ccl(cls, value: float | None, info: ValidationInfo) -> float | None:
        return _filled_for("ccl", "loss", CCL, value, info)

    @field_validator("samples")
    @classmethod
    def _fit_the_loss(cls, value: tuple[SampleSource, ...], info: ValidationInfo) -> tuple[SampleSource, ...]:
        full = info.data.get("loss") == "full-softmax"
        if full and value:
            raise ValueError("with loss 'full-softmax' every item of the catalogue is a negative; leave samples out")
        if not full and not value:
            raise ValueError('name a source of rows, such as { from = "impressions" }, or leave samples out')
        sources = [entry.source for entry in value]
        twice = sorted({source for source in sources if sources.count(source) > 1})
        if twice:
            raise ValueError(f"'{twice[0]}' is listed twice; give one entry a source")
        return value

    @field_validator("milestones")
    @classmethod
    def _rates_fall_in_time(cls, value: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        if list(value) != sorted(set(value)):
            raise ValueError(f"want epochs in ascending order, each once, got {list(value)}")
        epochs = info.data.get("epochs")
        if value and epochs is not None and value[-1] >= epochs:
            raise ValueError(f"the rates would fall after the last of {epochs} epochs, got {list(value)}")
        if value and info.data.get("plateau_factor") == 1:
            raise ValueError("plateau_factor is 1, so rates do not fall; want one below 1 beside milestones")
        return value

    @field_validator("monitor")
    @classmethod
    def _known_monitor(cls, value: str) -> str:
        if not _MONITOR.fullmatch(value):
            raise ValueError(f"want 'auc', 'logloss' or 'recall@K' with a whole number K >= 1, got '{value}'")
        return value


class TransferConfig(BaseModel):
    """Rows without a label, added to the training of every student of a `logit` distiller: the teacher labels them."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    method: Literal["pairs", "munge"]
    """`pairs`: the user and moment of a training row with an item that the user has not in training, drawn alike;
    `munge`: pseudo rows by swapping attributes with the nearest row (Bucila et al., KDD 2006)."""
    copies: int = Field(default=1, ge=1)
    """Rows added to every training row."""
    swap: float | None = Field(default=None, ge=0, le=1, validate_default=True)
    """For `munge`: probability that an attribute is swapped; .5 unless given."""
    variance: float | None = Field(default=None, gt=0, allow_inf_nan=False, validate_default=True)
    """For `munge`: a swapped number is drawn about its neighbour's with their distance over this as the deviation; 1
    unless given."""

    @field_validator("swap", "variance")
    @classmethod
    def _belongs_to_munge(cls, value: float | None, info: ValidationInfo) -> float | None:
        return _filled_for("munge", "method", MUNGE, value, info)

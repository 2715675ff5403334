"""The label loss of a batch row by row (floor 6). B impressions, R rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from cascade_kd.data import Dataset
from cascade_kd.losses import bce
from cascade_kd.models import Model
from cascade_kd.models.multi_task import HEAD
from cascade_kd.train.distributed import total
from cascade_kd.train.samples import Batch
from cascade_kd.types import Inputs, Output


def row_inputs(
    dataset: Dataset,
    names: Sequence[str],
    batch: Batch,
    *,
    known: Mapping[str, Tensor] | None = None,
    known_user: Mapping[str, Tensor] | None = None,
) -> Inputs:
    """The columns ``names`` of all rows.

    ``known`` holds item or pair columns [R], ``known_user`` user or context columns [B], that need no look-up any more.
    """
    known, known_user = known or {}, known_user or {}
    inputs = dataset.inputs(
        [name for name in names if name not in known and name not in known_user],
        batch.requests,
        batch.item_R,
        batch.row_R,
        part=batch.requests.part,
        event_R=batch.event_R,
    )
    return replace(inputs, user={**inputs.user, **known_user}, item={**inputs.item, **known})


def pointwise_loss(logits_R: Tensor, label_R: Tensor, weight_R: Tensor) -> Tensor:
    """Binary cross entropy, the weighted mean over the rows."""
    return weighted_mean(bce(logits_R.float(), label_R), weight_R)


def heads_of(model: Model) -> list[str]:
    """The hidden states that are the logits of a model's auxiliary labels."""
    return [HEAD + label for label in _auxiliary(model)]


def auxiliary_losses(model: Model, output: Output, dataset: Dataset, batch: Batch) -> dict[str, Tensor]:
    """The weighted losses of a model's auxiliary labels, as ``head.LABEL``."""
    losses: dict[str, Tensor] = {}
    for label, weight in _auxiliary(model).items():
        label_R = row_labels(dataset, label, batch)
        losses[HEAD + label] = weight * pointwise_loss(output.hidden[HEAD + label], label_R, batch.label_weight_R)
    return losses


def _auxiliary(model: Model) -> dict[str, float]:
    auxiliary: dict[str, float] = getattr(model, "auxiliary", {})
    return auxiliary


def row_labels(dataset: Dataset, label: str, batch: Batch) -> Tensor:
    """[R] a label of the rows; of a sampled row every label is false."""
    sampled_R, event_R = batch.event_R < 0, batch.event_R.clamp(min=0)
    return dataset.events.labels[label].index_select(0, event_R).float().masked_fill(sampled_R, 0.0)


def weighted_mean(loss_R: Tensor, weight_R: Tensor) -> Tensor:
    """sum(w * loss) / sum(w), the divisor over all ranks: their shares add up to the mean of the whole batch."""
    return (loss_R * weight_R).sum() / total(weight_R.sum())

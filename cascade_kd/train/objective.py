"""The label loss of a batch row by row (floor 6). B impressions, R rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from cascade_kd.data import Dataset
from cascade_kd.losses import bce
from cascade_kd.models import Model
from cascade_kd.train.samples import Batch


def pointwise_loss(
    model: Model,
    dataset: Dataset,
    names: Sequence[str],
    batch: Batch,
    *,
    known: Mapping[str, Tensor] | None = None,
    known_user: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Binary cross entropy, the weighted mean over the rows, and the rows' logits [R]; see :func:`row_logits`."""
    logits_R = row_logits(model, dataset, names, batch, known=known, known_user=known_user)
    return weighted_mean(bce(logits_R, batch.label_R), batch.weight_R), logits_R


def row_logits(
    model: Model,
    dataset: Dataset,
    names: Sequence[str],
    batch: Batch,
    *,
    known: Mapping[str, Tensor] | None = None,
    known_user: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Logits [R] of all rows, float32.

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
    inputs = replace(inputs, user={**inputs.user, **known_user}, item={**inputs.item, **known})
    return model(inputs).logits_R.float()


def weighted_mean(loss_R: Tensor, weight_R: Tensor) -> Tensor:
    """sum(w * loss) / sum(w)."""
    return (loss_R * weight_R).sum() / weight_R.sum()

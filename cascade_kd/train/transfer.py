"""An unlabelled transfer set of munged training rows, and a teacher's logits on it (floor 6).

M training rows, k copies, B rows of a batch, R = k B pseudo rows, T codes of a list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from cascade_kd.data import Dataset, munge
from cascade_kd.errors import SignalError, UserError
from cascade_kd.models.modes import evaluating
from cascade_kd.stages import EnsembleStage, LogitStage, RetrievalStage, ScoringStage
from cascade_kd.stages.ensemble import mean_probability_logit
from cascade_kd.stages.scoring import ROWS_PER_CALL
from cascade_kd.streams import stream
from cascade_kd.train.neighbours import nearest_other
from cascade_kd.types import ITEM_ID, USER_ID, Feature, Inputs

NOMINAL = ("categorical", "tags")


@final
@dataclass(frozen=True, eq=False)
class MungedRows:
    """``copies`` pseudo versions of a student's M training rows. They have no labels: a teacher's are all there are.

    ``munged`` holds the columns that differ from copy to copy: codes as int32, numbers as float32, a statistic too,
    which is a munged number and not looked up. Ids, histories and vectors are those of the row, read when asked for.
    Memory: k M (4 bytes for each code and number); 10 copies of 800,000 rows of 5 codes, 5 numbers and lists of 6 take
    0.5 GB.
    """

    dataset: Dataset
    features: tuple[Feature, ...]
    rows_M: Tensor  # event rows, as a sampler's
    copies: int
    munged: Mapping[str, Tensor] = field(repr=False)  # [k, M] or [k, M, T]

    def inputs(self, sample_B: Tensor) -> Inputs:
        """All copies of the training rows numbered ``sample_B``: R = k B rows, copy c of row b in row c B + b.

        Both sides have one row each, ``row_R`` is 0..R-1.
        """
        event_B = self.rows_M.index_select(0, sample_B)
        kept = [f for f in self.features if f.name not in self.munged]
        own = event_inputs(self.dataset, kept, event_B)
        user, item = _repeated(own.user, self.copies), _repeated(own.item, self.copies)
        for f in self.features:
            if f.name in self.munged:
                column_R = self.munged[f.name].index_select(1, sample_B).flatten(0, 1)
                (user if on_user_side(f) else item)[f.name] = column_R if f.is_number else column_R.long()
        return Inputs(user, item, torch.arange(self.copies * len(sample_B), device=sample_B.device))


def munged_rows(
    dataset: Dataset,
    rows_M: Tensor | None,
    features: Sequence[Feature],
    *,
    copies: int,
    swap: float,
    variance: float,
    seed: int,
) -> MungedRows:
    """The pseudo rows of the training events ``rows_M``, for ``features``: all that teacher and student read.

    Categorical features and tags are munged as nominal attributes, numeric features and statistics as continuous ones,
    whatever their side, see :func:`~cascade_kd.data.munging.munge`; never ``user_id``, ``item_id``, a history, a
    vector or a label. Neighbours are looked up once, over the munged attributes alone; every copy draws anew.

    Raises ``UserError`` for a data set that is larger than memory, features of which none is munged, fewer than 2 rows.
    """
    refuse_stream(dataset, rows_M)
    assert rows_M is not None
    assert copies >= 1, "config checks it"
    munged = [f for f in features if is_munged(f)]
    if not munged:
        names = ", ".join(f"'{f.name}'" for f in features)
        raise UserError(
            "[transfer] method 'munge' changes categorical, numeric, statistic and tags features other than the ids, "
            f"and teacher and student read none: {names}; give them such features, or leave out [transfer]"
        )
    if len(rows_M) < 2:
        raise UserError(
            f"[transfer] method 'munge' swaps values between training rows, and there are {len(rows_M)}; it takes at "
            "least 2: give more events, or leave out [transfer]"
        )
    columns = training_columns(dataset, munged, rows_M)
    nominal = {f.name: columns[f.name] for f in munged if f.kind in NOMINAL}
    continuous = {f.name: columns[f.name] for f in munged if f.kind not in NOMINAL}
    neighbour_M = nearest_other(nominal, continuous, seed=stream(seed, "neighbours"))
    made = {
        name: torch.empty((copies, *column.shape), dtype=column.dtype, device=column.device)
        for name, column in columns.items()
    }
    for copy in range(copies):
        pseudo = munge(nominal, continuous, neighbour_M, swap=swap, variance=variance, seed=stream(seed, "copy", copy))
        for name, column in (pseudo[0] | pseudo[1]).items():
            made[name][copy] = column
    return MungedRows(dataset, tuple(features), rows_M, copies, made)


def score(stage: LogitStage, rows: MungedRows) -> Tensor:
    """Logits [M, k] float32 of a teacher on every pseudo row, in evaluation mode, without gradient.

    An ensemble's are those of the mean probability of its members. A bounded number of rows is scored at a time.
    Raises ``SignalError`` for a teacher that is no model, such as a column of scores.
    """
    size = len(rows.rows_M)
    logits_Mk = torch.empty(size, rows.copies, device=rows.rows_M.device)
    step = max(1, ROWS_PER_CALL // rows.copies)
    for sample_B in torch.arange(size, device=rows.rows_M.device).split(step):
        logits_R = _logits(stage, rows.inputs(sample_B))
        start = int(sample_B[0])
        logits_Mk[start : start + len(sample_B)] = logits_R.view(rows.copies, len(sample_B)).T
    return logits_Mk


def is_munged(feature: Feature) -> bool:
    """Whether a pseudo row has a value of its own of this feature."""
    return feature.kind in (*NOMINAL, "numeric", "statistic") and feature.name not in (USER_ID, ITEM_ID)


def on_user_side(feature: Feature) -> bool:
    """Whether :class:`~cascade_kd.types.Inputs` hold the feature in ``user``."""
    return feature.side in ("user", "context")


def refuse_stream(dataset: Dataset, rows_M: Tensor | None) -> None:
    """Raise ``UserError`` for a data set that is larger than memory."""
    if rows_M is None or dataset.stream is not None:
        raise UserError(
            "[transfer] method 'munge' keeps copies of the training rows in memory, and data set "
            f'\'{dataset.name}\' is larger than memory ([storage] layout = "stream"); give it layout = "memory", or '
            "leave out [transfer]"
        )


def training_columns(dataset: Dataset, features: Sequence[Feature], rows_M: Tensor) -> dict[str, Tensor]:
    """The columns of the training events, [M] or [M, T]: codes int32, numbers float32."""
    prepared = dataset.events.statistics
    columns = {f.name: prepared[f.name].index_select(0, rows_M) for f in features if f.name in prepared}
    missing = [f for f in features if f.name not in prepared]
    blocks = [event_inputs(dataset, missing, event_B) for event_B in rows_M.split(ROWS_PER_CALL)]
    for f in missing:
        column = torch.cat([(block.user if on_user_side(f) else block.item)[f.name] for block in blocks])
        columns[f.name] = column if f.is_number else column.int()
    return columns


def event_inputs(dataset: Dataset, features: Sequence[Feature], event_B: Tensor) -> Inputs:
    """The features of logged training events, one request a row."""
    row_B = torch.arange(len(event_B), device=event_B.device)
    requests = dataset.requests_of(event_B, part="train")
    item_B = dataset.events.item_N.index_select(0, event_B)
    return dataset.inputs([f.name for f in features], requests, item_B, row_B, part="train", event_R=event_B)


def _repeated(columns: Mapping[str, Tensor], times: int) -> dict[str, Tensor]:
    return {name: column.repeat(times, *[1] * (column.ndim - 1)) for name, column in columns.items()}


def _logits(stage: LogitStage, inputs: Inputs) -> Tensor:
    """[R]."""
    if isinstance(stage, EnsembleStage):
        return mean_probability_logit(torch.stack([_logits(member, inputs) for member in stage.members]))
    if not isinstance(stage, ScoringStage | RetrievalStage):
        raise SignalError(
            f"teacher '{stage.name}' gives no logits of rows that were never logged, and [transfer] method 'munge' "
            "makes such rows; take a teacher that is a model, or an ensemble of models, or leave out [transfer]"
        )
    with evaluating(stage.model):
        return stage.model(inputs).logits_R.float()

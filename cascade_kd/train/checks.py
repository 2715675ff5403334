"""What training asks of the rows it is given, said before the first step (floor 6). M training rows."""

from __future__ import annotations

from torch import Tensor

from cascade_kd.data import Dataset
from cascade_kd.errors import DataError
from cascade_kd.train.settings import DRAW, TrainConfig, other_monitor


def check_rows(stage: str, dataset: Dataset, rows_M: Tensor | None, train: TrainConfig, *, tower: bool) -> None:
    """Raise DataError where the rows (None: all training events) teach nothing, or validation has nothing to monitor.

    Rows need an event whose label is true and a negative, logged or drawn. ``auc`` needs both classes among the
    validation events, ``recall@K`` one that is true, ``logloss`` any. ``tower``: recall@K could be monitored.
    """
    label_N, part_N = dataset.events.labels[train.label], dataset.events.part_N
    who = f"stage '{stage}' learns label '{train.label}'"
    if rows_M is None:
        rows, positives = int((part_N == 0).sum()), int(((part_N == 0) & (label_N > 0)).sum())
    else:
        rows, positives = len(rows_M), int((label_N[rows_M] > 0).sum())
    if positives == 0:
        raise DataError(
            f"{who}, which is true for none of {rows} training events; correct its expression in [labels], or "
            "learn another label"
        )
    if positives == rows and train.lacks_negatives:
        raise DataError(f"{who}, which is true for all {rows} training events: no row is a negative; {DRAW}")
    label_V = label_N[dataset.rows("valid")]
    true = int((label_V > 0).sum())
    found = f"{who} and watches {train.monitor} on the validation part, which has it in {true} of {len(label_V)} events"
    if len(label_V) == 0:
        raise DataError(f"{found}; enlarge the part by [split] valid")
    if train.monitor == "auc" and true in (0, len(label_V)):
        raise DataError(f"{found}, so auc is not defined; {other_monitor(recall=tower and true > 0)}")
    if train.monitor.startswith("recall@") and true == 0:
        raise DataError(f"{found}, so recall is not defined; {other_monitor(recall=False)}, or enlarge the part")

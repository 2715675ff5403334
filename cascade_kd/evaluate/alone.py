"""How well one feature by itself orders the test rows (floor 6). R rows, V codes, T tags or history, W vector width."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cascade_kd.data import Dataset
from cascade_kd.metrics import Metric, auc
from cascade_kd.types import Feature, Part

SMOOTHING = 10.0  # rows of the average label that every code starts from


@dataclass(frozen=True)
class Rows:
    """Event rows of one part and their labels."""

    part: Part
    row_R: Tensor
    label_R: Tensor


def column_of(dataset: Dataset, name: str, row_R: Tensor, *, part: Part) -> Tensor:
    """One feature of logged events, each as of its own moment: [R], [R, T] codes or [R, W] numbers."""
    requests = dataset.requests_of(row_R, part=part)
    item_R = dataset.events.item_N[row_R]
    inputs = dataset.inputs(
        [name], requests, item_R, torch.arange(len(row_R), device=row_R.device), part=part, event_R=row_R
    )
    return inputs.user[name] if name in inputs.user else inputs.item[name]


def auc_alone(dataset: Dataset, feature: Feature, train: Rows, test: Rows) -> Metric:
    """AUC of the test rows under a score made of one feature; what has to be learned is learned on the train rows.

    A number x is its own score, or -x where that is better in training. A code scores the smoothed mean label of its
    train rows (``(clicks + 10 * rate) / (rows + 10)``), tags and histories the mean over their codes; having no
    value is a code of its own. A vector scores by a logistic regression.
    """
    fit = column_of(dataset, feature.name, train.row_R, part=train.part)
    asked = column_of(dataset, feature.name, test.row_R, part=test.part)
    if not fit.is_floating_point():
        rate_V = _mean_labels(fit, train.label_R, feature.size)
        return auc(_rates(rate_V, asked), test.label_R)
    if fit.dim() == 2:
        return auc(_logistic(fit, train.label_R, asked), test.label_R)
    upward = auc(fit, train.label_R).mean
    return auc(-asked if upward is not None and upward < 0.5 else asked, test.label_R)


def _mean_labels(code: Tensor, label_R: Tensor, size: int) -> Tensor:
    """Smoothed mean label [V] of the rows with each code; of code 0 that of the rows without any."""
    code_RT = code if code.dim() == 2 else code[:, None]
    none_R = (code_RT == 0).all(1)
    held_RT = (code_RT > 0).double()
    count_V = torch.bincount(code_RT.flatten(), held_RT.flatten(), size)
    clicks_V = torch.bincount(code_RT.flatten(), (held_RT * label_R[:, None]).flatten(), size)
    count_V[0], clicks_V[0] = none_R.sum(), label_R[none_R].sum()
    return (clicks_V + SMOOTHING * label_R.double().mean()) / (count_V + SMOOTHING)


def _rates(rate_V: Tensor, code: Tensor) -> Tensor:
    """The mean rate [R] of each row's codes; that of code 0 where it has none."""
    code_RT = code if code.dim() == 2 else code[:, None]
    held_RT = (code_RT > 0).double()
    mean_R = (rate_V[code_RT] * held_RT).sum(1) / held_RT.sum(1).clamp(min=1)
    return torch.where(held_RT.sum(1) > 0, mean_R, rate_V[0])


def _logistic(fit_RW: Tensor, label_R: Tensor, asked_RW: Tensor) -> Tensor:
    """Logits [R] of a logistic regression on standardised components; 0 where training has one class."""
    from sklearn.linear_model import LogisticRegression

    if len(label_R.unique()) < 2:
        return torch.zeros(len(asked_RW))
    mean_W, std_W = fit_RW.mean(0), fit_RW.std(0).clamp(min=1e-6)
    model = LogisticRegression(max_iter=1000)
    model.fit(((fit_RW - mean_W) / std_W).numpy(), label_R.numpy())
    return torch.from_numpy(model.decision_function(((asked_RW - mean_W) / std_W).numpy()))

"""Metrics of predicted probabilities, from logits: log loss, calibration, Platt scaling.

Axes: N rows, R runs of equal logits, b bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cascade_kd.metrics.metric import Metric, mean_and_stderr
from cascade_kd.metrics.rows import check_rows, tie_runs, why_undefined


def logloss(logits_N: Tensor, label_N: Tensor) -> Metric:
    """Mean cross entropy ``-y log p - (1 - y) log(1 - p)``, ``p = sigmoid(logit)``, natural log; n = rows.

    Exact at any finite logit (no clipping). The standard error is of the mean over rows, taken as independent.
    """
    check_rows(logits_N, label_N)
    why = why_undefined(logits_N)
    if why:
        return Metric(None, None, len(logits_N), why)
    loss_N = F.binary_cross_entropy_with_logits(logits_N.double(), label_N.double(), reduction="none")
    return mean_and_stderr(loss_N)


def churn(logits_N: Tensor, others: Sequence[Tensor]) -> Metric:
    """Prediction churn ``mean |sigmoid(z) - sigmoid(z_o)|`` over rows and ``others`` (other trainings' logits [N]).

    Symmetric for one other, 0 for equal models; n = rows. Source: Anil et al., ICLR 2018, section 4.3. The standard
    error is of the mean over rows, taken as independent: it says nothing of how trainings differ.
    """
    if not others:
        return Metric(None, None, 0, "no other training to compare with")
    why = next(filter(None, map(why_undefined, (logits_N, *others))), "")
    if why:
        return Metric(None, None, len(logits_N), why)
    p_N = logits_N.double().sigmoid()
    apart_N = sum((p_N - other_N.double().sigmoid()).abs() for other_N in others) / len(others)
    assert isinstance(apart_N, Tensor)
    return mean_and_stderr(apart_N)


@dataclass(frozen=True)
class CalibrationCurve:
    """What was predicted and what happened, in bins of ascending prediction; bins without a row are left out."""

    predicted_b: Tensor  # mean predicted probability
    observed_b: Tensor  # share of rows with label 1
    count_b: Tensor  # rows, int64


def calibration_curve(logits_N: Tensor, label_N: Tensor, bins: int = 20) -> CalibrationCurve:
    """Cut the rows, sorted by logit, into ``bins`` bins of equal count.

    A row goes to bin ``floor(bins (start + end) / 2N)``, where ``[start, end)`` are the ranks of all rows with its
    logit: without ties bins differ by one row at most, and equal predictions are never split, so that the order of
    the rows does not matter. Logits must not be NaN.
    """
    check_rows(logits_N, label_N)
    if len(logits_N) == 0:
        return CalibrationCurve(logits_N.double(), logits_N.double(), logits_N.long())
    runs = tie_runs(logits_N.double(), label_N)
    size_R = runs.positives_R + runs.negatives_R
    bin_R = (bins * (2 * size_R.cumsum(0) - size_R)) // (2 * len(logits_N))
    zero_b = torch.zeros(bins, dtype=torch.float64, device=logits_N.device)
    count_b = zero_b.long().index_add(0, bin_R, size_R)
    predicted_b = zero_b.index_add(0, bin_R, size_R * runs.score_R.sigmoid()) / count_b
    observed_b = zero_b.index_add(0, bin_R, runs.positives_R.double()) / count_b
    some_b = count_b > 0
    return CalibrationCurve(predicted_b[some_b], observed_b[some_b], count_b[some_b])


def ece(logits_N: Tensor, label_N: Tensor, bins: int = 20) -> Metric:
    """Expected calibration error ``sum_b n_b / N |mean prediction_b - observed rate_b|``; n = rows, no stderr.

    Bins of equal count as in :func:`calibration_curve`. Source: Naeini et al., AAAI 2015. Differs: equal count, not
    equal width.
    """
    check_rows(logits_N, label_N)
    why = why_undefined(logits_N)
    if why:
        return Metric(None, None, len(logits_N), why)
    curve = calibration_curve(logits_N, label_N, bins)
    gap_b = (curve.predicted_b - curve.observed_b).abs()
    return Metric(float((curve.count_b * gap_b).sum()) / len(logits_N), None, len(logits_N))


def platt(logits_valid_N: Tensor, label_valid_N: Tensor) -> tuple[float, float]:
    """Slope a and intercept b of Platt scaling: ``p = sigmoid(a logit + b)``, fitted by Newton's method.

    Minimises the log loss against Platt's targets, ``(m + 1) / (m + 2)`` for the m positives and ``1 / (k + 2)`` for
    the k negatives, which keep a and b finite when the classes are separable or one is missing; no other
    regularisation. Raises ValueError for no rows and for logits that are not finite.

    Source: Platt 1999; Lin, Lin, Weng, Machine Learning 2007, for the targets and the line search.
    """
    check_rows(logits_valid_N, label_valid_N)
    x_N, y_N = logits_valid_N.double().cpu(), label_valid_N.double().cpu()
    if len(x_N) == 0 or not bool(x_N.isfinite().all()):
        raise ValueError(f"Platt scaling needs finite logits and at least one, got {len(x_N)} rows")
    centre, scale = float(x_N.mean()), float(x_N.std(correction=0))
    if scale <= 1e-12 * float(x_N.abs().max()):
        scale = 1.0  # constant scores, up to rounding: the slope has nothing to hold on to and stays near 0
    x_N = (x_N - centre) / scale  # Newton then starts well conditioned whatever the unit of the scores
    positives = float(y_N.sum())
    negatives = len(y_N) - positives
    target_N = y_N * ((positives + 1) / (positives + 2)) + (1 - y_N) * (1 / (negatives + 2))
    columns_N2 = torch.stack([x_N, torch.ones_like(x_N)], dim=1)

    def loss(theta_2: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(columns_N2 @ theta_2, target_N)

    theta_2 = torch.tensor([0.0, (positives + 1) / (negatives + 1)], dtype=torch.float64)
    theta_2[1] = theta_2[1].log()
    for _ in range(100):
        p_N = (columns_N2 @ theta_2).sigmoid()
        gradient_2 = columns_N2.T @ (p_N - target_N) / len(x_N)
        hessian_22 = (columns_N2 * (p_N * (1 - p_N))[:, None]).T @ columns_N2 / len(x_N)
        step_2 = torch.linalg.solve(hessian_22 + 1e-12 * torch.eye(2, dtype=torch.float64), -gradient_2)
        gain = -float(gradient_2 @ step_2)  # twice what the step lowers the loss by, if that were quadratic
        if gain < 1e-12:
            theta_2 = theta_2 + step_2  # the last step doubles the digits; the loss is too coarse to check it
            break
        size, now = 1.0, float(loss(theta_2))
        while size > 1e-10 and float(loss(theta_2 + size * step_2)) > now - 1e-4 * size * gain:
            size /= 2
        theta_2 = theta_2 + size * step_2
    slope_a = float(theta_2[0]) / scale
    return slope_a, float(theta_2[1]) - slope_a * centre

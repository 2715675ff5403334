"""Area under the ROC curve, over all rows and per group; exact, ties one half, by sorting.

Axes: N rows, R runs of equal score, G groups (users).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cascade_kd.metrics.metric import Metric
from cascade_kd.metrics.rows import check_rows, tie_runs, why_undefined


def auc(score_N: Tensor, label_N: Tensor) -> Metric:
    """Share of (positive, negative) pairs of rows in which the positive scores higher, ties one half; n = rows.

    The standard error is DeLong's: ``sqrt(var(V10) / m + var(V01) / k)``, V10 of a positive the share of the k
    negatives below it, V01 of a negative the share of the m positives above it, ties one half, sample variances.
    It takes rows as independent. None with the reason for one class or NaN. Cost O(N log N).

    Source: DeLong, DeLong, Clarke-Pearson, Biometrics 1988; Sun and Xu, IEEE SPL 2014 for the fast form. Differs:
    counts per run of equal scores take the place of midranks.
    """
    check_rows(score_N, label_N)
    why = why_undefined(score_N)
    if why:
        return Metric(None, None, len(score_N), why)
    runs = tie_runs(score_N, label_N)
    positives, negatives = int(runs.positives_R.sum()), int(runs.negatives_R.sum())
    if positives == 0 or negatives == 0:
        return Metric(None, None, len(score_N), f"all {len(score_N)} rows have label {int(positives > 0)}")
    above_R = positives - runs.positives_R.cumsum(0)
    wins_R = (runs.negatives_below_R.double() + runs.negatives_R / 2.0) / negatives  # V10 of the run's positives
    losses_R = (above_R.double() + runs.positives_R / 2.0) / positives  # V01 of the run's negatives
    mean = float((runs.positives_R * wins_R).sum()) / positives
    if positives == 1 or negatives == 1:
        return Metric(mean, None, len(score_N), "the standard error needs 2 rows of each label")
    var_wins = float((runs.positives_R * (wins_R - mean).square()).sum()) / (positives - 1)
    var_losses = float((runs.negatives_R * (losses_R - mean).square()).sum()) / (negatives - 1)
    return Metric(mean, math.sqrt(var_wins / positives + var_losses / negatives), len(score_N))


@dataclass(frozen=True)
class GroupAUC:
    """AUC of every group, groups ascending; NaN where a group has one class only."""

    group_G: Tensor
    auc_G: Tensor
    rows_G: Tensor


def group_auc(score_N: Tensor, label_N: Tensor, group_N: Tensor) -> GroupAUC:
    """AUC within every group of rows (users), ties one half, in one sorted pass. Scores must not be NaN."""
    check_rows(score_N, label_N, group_N)
    if len(score_N) == 0:
        return GroupAUC(group_N, score_N.double(), group_N.long())
    runs = tie_runs(score_N, label_N, group_N)
    zero_G = torch.zeros_like(runs.group_G, dtype=torch.int64)
    twice_wins_R = runs.positives_R * (2 * runs.negatives_below_R + runs.negatives_R)  # of the pairs, ties 1 of 2
    twice_wins_G = zero_G.index_add(0, runs.group_R, twice_wins_R)
    positives_G = zero_G.index_add(0, runs.group_R, runs.positives_R)
    negatives_G = zero_G.index_add(0, runs.group_R, runs.negatives_R)
    auc_G = twice_wins_G.double() / (2 * positives_G * negatives_G).double()
    return GroupAUC(runs.group_G, auc_G, positives_G + negatives_G)


def gauc(score_N: Tensor, label_N: Tensor, group_N: Tensor) -> Metric:
    """AUC per group (user) averaged with the group's rows as weight: ``g = sum_u w_u AUC_u / sum_u w_u``.

    Groups of one class are left out: ``left_out_share`` of the groups and ``left_out_rows_share`` of the rows;
    n = groups counted. The standard error is that of a ratio estimator over groups,
    ``sqrt(n / (n - 1) sum_u w_u^2 (AUC_u - g)^2) / sum_u w_u``. None with the reason for NaN or no group counted.

    Source: Zhu et al., "Optimized cost per click in Taobao display advertising", KDD 2017.
    """
    check_rows(score_N, label_N, group_N)
    why = why_undefined(score_N)
    if why:
        return Metric(None, None, 0, why)
    per_group = group_auc(score_N, label_N, group_N)
    counts_G = ~per_group.auc_G.isnan()
    auc_G, weight_G = per_group.auc_G[counts_G], per_group.rows_G[counts_G].double()
    n = len(auc_G)
    extra = {
        "left_out_share": 1.0 - n / len(counts_G),
        "left_out_rows_share": 1.0 - float(weight_G.sum()) / len(score_N),
    }
    if n == 0:
        return Metric(None, None, 0, f"none of {len(counts_G)} groups has both labels", extra)
    mean = float((weight_G * auc_G).sum() / weight_G.sum())
    if n == 1:
        return Metric(mean, None, 1, "one group has no standard error", extra)
    spread = float((weight_G * (auc_G - mean)).square().sum())
    return Metric(mean, math.sqrt(n / (n - 1) * spread) / float(weight_G.sum()), n, "", extra)

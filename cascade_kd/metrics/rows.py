"""Rows with a score and a 0/1 label: what is refused, and rows sorted into runs of equal score.

Axes: N rows, R runs (rows of one group with one score), G groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def check_rows(score_N: Tensor, label_N: Tensor, group_N: Tensor | None = None) -> None:
    """Raise ValueError unless the columns are as long as each other and all labels are 0 or 1."""
    if score_N.ndim != 1 or score_N.shape != label_N.shape or (group_N is not None and score_N.shape != group_N.shape):
        raise ValueError("scores, labels and groups must be columns of one length")
    if not bool(((label_N == 0) | (label_N == 1)).all()):
        raise ValueError("labels must be 0 or 1")


def why_undefined(score_N: Tensor) -> str:
    """Why no metric of these scores is defined: no rows, or NaN among them. Empty if one is."""
    if len(score_N) == 0:
        return "no rows"
    nans = int(score_N.isnan().sum())
    return f"{nans} of {len(score_N)} scores are NaN" if nans else ""


@dataclass(frozen=True)
class TieRuns:
    """Runs of rows of equal group and score, groups ascending, scores ascending in a group; counts are int64."""

    score_R: Tensor  # in the type of the scores given
    positives_R: Tensor  # rows with label 1 in the run
    negatives_R: Tensor
    negatives_below_R: Tensor  # rows with label 0 and a smaller score in the run's group
    group_R: Tensor  # 0, 1, ...: number of the group in ascending order
    group_G: Tensor  # the groups themselves


def tie_runs(score_N: Tensor, label_N: Tensor, group_N: Tensor | None = None) -> TieRuns:
    """Sort the rows by group and score and count labels per run; all rows are one group, 0, if ``group_N`` is None.

    There must be at least one row, and no score may be NaN.
    """
    score_N, order_N = score_N.sort()
    if group_N is not None:
        group_N, by_group_N = group_N[order_N].sort(stable=True)
        score_N, order_N = score_N[by_group_N], order_N[by_group_N]
    positives_N = label_N.to(torch.int8)[order_N].cumsum(0)  # int64: torch sums small integers there
    negatives_N = torch.arange(1, len(score_N) + 1, device=score_N.device) - positives_N
    starts_run_N = score_N[1:] != score_N[:-1]  # for rows 1..N-1
    starts_group_N = torch.zeros_like(starts_run_N) if group_N is None else group_N[1:] != group_N[:-1]
    yes = torch.ones(1, dtype=torch.bool, device=score_N.device)
    end_R = torch.cat([starts_run_N | starts_group_N, yes]).nonzero().squeeze(1)  # last row of each run
    end_G = torch.cat([starts_group_N, yes]).nonzero().squeeze(1)
    group_R = torch.cat([~yes, starts_group_N]).cumsum(0)[end_R]
    zero = end_R.new_zeros(1)
    before_R = torch.cat([zero, negatives_N[end_R]])[:-1]  # negatives up to the run, of all groups
    before_G = torch.cat([zero, negatives_N[end_G]])[:-1]
    return TieRuns(
        score_R=score_N[end_R],
        positives_R=positives_N[end_R].diff(prepend=zero),
        negatives_R=negatives_N[end_R].diff(prepend=zero),
        negatives_below_R=before_R - before_G[group_R],
        group_R=group_R,
        group_G=group_R.new_zeros(1) if group_N is None else group_N[end_G],
    )

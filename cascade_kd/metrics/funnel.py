"""What every stage of a cascade keeps and loses of the positives. Axis: B users."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cascade_kd.metrics.metric import Metric, mean_and_stderr

GRAIN = 2.0**40  # shares are multiples of 1 / GRAIN: sums of them up to 1 are exact in float64, in any order


class Funnel(NamedTuple):
    """Shares of the positives, one metric a stage: still there after it, lost by it; and found at the end."""

    survival: list[Metric]
    lost: list[Metric]
    found: Metric


def _rounded(metric: Metric) -> float:
    assert metric.mean is not None
    return round(metric.mean * GRAIN) / GRAIN


def survival(stage_hits: Sequence[Tensor], num_positives_B: Tensor) -> Funnel:
    """Follow the positives of every user through the stages.

    ``stage_hits[s]`` [B] counts the user's positives among the items that stage s kept. Survival of a stage is the
    mean over users of hits / positives, lost is the survival before it (1 before the first) minus its own, found is
    the last survival. Means are rounded to multiples of 2^-40, so that ``sum(lost) + found == 1`` exactly. Standard
    errors are over users; n = users with a positive, the others are counted in ``without_positives``. Raises
    ValueError if a stage has more hits than the stage before it or than there are positives.
    """
    counts_B = num_positives_B > 0
    extra = {"without_positives": int((~counts_B).sum())}
    num_B = num_positives_B[counts_B]
    before_B, before, kept, lost = num_B, 1.0, list[Metric](), list[Metric]()
    for number, hits_B in enumerate(stage_hits):
        after_B = hits_B[counts_B]
        if bool((after_B > before_B).any()):
            raise ValueError(f"stage {number} keeps positives that did not reach it")
        raw_kept = mean_and_stderr(after_B.double() / num_B, extra=extra, none="no user has a positive")
        raw_lost = mean_and_stderr((before_B - after_B).double() / num_B, extra=extra, none=raw_kept.why)
        if raw_kept.mean is None:
            kept.append(raw_kept)
            lost.append(raw_lost)
            continue
        after = _rounded(raw_kept)
        kept.append(Metric(after, raw_kept.stderr, raw_kept.n, raw_kept.why, extra))
        lost.append(Metric(before - after, raw_lost.stderr, raw_lost.n, raw_lost.why, extra))
        before_B, before = after_B, after
    found = kept[-1] if kept else mean_and_stderr(torch.ones(len(num_B)), extra=extra, none="no user has a positive")
    return Funnel(kept, lost, found)

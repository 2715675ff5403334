"""One measured number with its standard error and what it runs over."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Metric:
    """A mean over ``n`` things (rows or users, as the metric says) and its standard error.

    ``mean`` is None where it is not defined, and ``why`` then says why; NaN and infinity become None. ``extra``
    holds what else the metric reports, such as shares left out.
    """

    mean: float | None
    stderr: float | None
    n: int
    why: str = ""
    extra: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mean is not None and not math.isfinite(self.mean):
            object.__setattr__(self, "why", self.why or f"the mean is {self.mean}")
            object.__setattr__(self, "mean", None)
        if self.mean is None or (self.stderr is not None and not math.isfinite(self.stderr)):
            object.__setattr__(self, "stderr", None)

    def as_dict(self) -> dict[str, float | int | str | None]:
        """The metric as it stands in ``metrics.json``: mean, stderr, n, why if there is one, and the extras."""
        why = {"why": self.why} if self.why else {}
        return {"mean": self.mean, "stderr": self.stderr, "n": self.n, **why, **self.extra}


def mean_and_stderr(value_N: Tensor, *, extra: Mapping[str, float] | None = None, none: str = "no values") -> Metric:
    """Mean of N values and its standard error ``sd / sqrt(N)`` (sample sd, N - 1); ``none`` is the why at N = 0.

    Computed in float64. One value has no standard error.
    """
    extra = extra or {}
    num = value_N.numel()
    if num == 0:
        return Metric(None, None, 0, none, extra)
    value_N = value_N.double()
    if num == 1:
        return Metric(float(value_N), None, 1, "one value has no standard error", extra)
    return Metric(float(value_N.mean()), float(value_N.std()) / math.sqrt(num), num, "", extra)

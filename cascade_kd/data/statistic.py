"""One statistic of the log: which earlier events it takes, and its number once they are totalled (floor 2).

The pass that prepares training rows (NumPy) and the look-up of any (user, candidate) pair (torch) both end in
``Statistic.formula``: in float64, of which the feature keeps 24 bits, so that a last bit of log1p is no difference.

Axes: R rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from cascade_kd.types import Part

if TYPE_CHECKING:
    from torch import Tensor


class Term(NamedTuple):
    """A total over the earlier events of a group: which, of which label, how many seconds back (None: all)."""

    of: Literal["count", "sum", "age"]
    value: str | None
    window: int | None


@dataclass(frozen=True)
class Statistic:
    """A count, sum, mean or recency over the earlier events that share the keys.

    ``value`` names a label: a sum and a mean are of it, a count and a recency take only the events with it true.
    Events are those with ``t - window <= time < t``, in seconds; ``window`` None: all before t.
    """

    name: str
    keys: tuple[str, ...]
    aggregate: str  # count, sum, mean or recency
    value: str | None
    smoothing: float  # of a mean
    prior: float  # the label's mean over the train part
    window: int | None = None  # seconds
    span: int = 0  # seconds, stands for the age where there is no event: the window, else the train part's length

    def number(self, count_R: Tensor | None, sum_R: Tensor | None = None, age_R: Tensor | None = None) -> Tensor:
        """The feature, float32; see :meth:`formula`."""
        import torch

        number_R: Tensor = self.formula(torch, count_R, sum_R, age_R)
        return number_R.float()

    def formula(self, xp: Any, count_R: Any, sum_R: Any, age_R: Any) -> Any:
        """The feature, float64, from the events of the window; what it does not read may be None.

        ``count_R`` of all of them, ``sum_R`` of the label over them, and ``age_R`` the seconds from the last of them
        (with the label true, if ``value`` is given) to t, inf where there is none; each float64, arrays of ``xp``
        (NumPy or torch).

            count    log1p(count), with a value log1p(sum)
            sum      log1p(sum)
            mean     (sum + smoothing * prior) / (count + smoothing), the prior where that is 0 / 0
            recency  log1p(age), log1p(span) where there is no event
        """
        if self.aggregate == "recency":
            return xp.log1p(xp.where(xp.isinf(age_R), float(self.span), age_R))
        if self.aggregate != "mean":
            return xp.log1p(count_R if self.value is None else sum_R)
        over_R = count_R + self.smoothing
        return xp.where(over_R > 0, (sum_R + self.smoothing * self.prior) / over_R.clip(min=1e-300), self.prior)


def log_of(split: str, part: Part) -> str:
    """The log that a look-up for ``part`` may read: ``all``, ``train`` or ``train+valid``."""
    if split == "time":
        return "all"
    return "train+valid" if part == "test" else "train"


def ordered_keys(keys: Sequence[str]) -> tuple[str, ...]:
    """Keys of one set in one order, those of the item last."""
    return tuple(sorted(keys, key=lambda key: (key.startswith("item"), key)))


def statistics_of(meta: Mapping[str, Any]) -> dict[str, Statistic]:
    """The statistics of a ``meta.json``, by name."""
    return {
        s["name"]: Statistic(
            name=s["name"],
            keys=tuple(s["keys"]),
            aggregate=s["aggregate"],
            value=s["value"],
            smoothing=s["smoothing"],
            prior=s["prior"],
            window=s["window"],
            span=s["span"],
        )
        for s in meta["statistics"]
    }


def terms_of(statistic: Statistic) -> list[Term]:
    """The totals that the statistic's number is made of."""
    aggregate, value, window = statistic.aggregate, statistic.value, statistic.window
    if aggregate == "recency":
        return [Term("age", value, window)]
    sums = [] if value is None else [Term("sum", value, window)]
    return [Term("count", None, window), *sums] if aggregate == "mean" or value is None else sums

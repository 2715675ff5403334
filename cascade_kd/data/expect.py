"""Whether the data comes to what ``[expect]`` of its TOML says (floor 2)."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from cascade_kd.data.schema import ExpectDefinition
from cascade_kd.errors import DataError


def check_expected(expect: ExpectDefinition, counts: Mapping[str, int], label_rate: Mapping[str, float]) -> None:
    """Compare events, users and items exactly, label rates as rounded to the digits that ``expect`` gives.

    Raises ``DataError`` with every difference.
    """
    wrong = [
        f"{name}: got {counts[name]}, expected {want}"
        for name in ("events", "users", "items")
        if (want := getattr(expect, name)) is not None and counts[name] != want
    ]
    for label, rate in expect.label_rate.items():
        digits = _digits(rate)
        if abs(label_rate[label] - rate) > 0.5 * 10**-digits + 1e-12:
            wrong.append(f"label rate of {label}: got {label_rate[label]:.{digits + 2}f}, expected {rate}")
    if wrong:
        raise DataError(
            f"the data differs from [expect]: {'; '.join(wrong)}; if these are the right files, complete and unchanged "
            "(the TOML says where they are had), correct [expect]"
        )


def _digits(rate: float) -> int:
    """The decimal places that a number is written with."""
    exponent = Decimal(repr(rate)).as_tuple().exponent
    return -exponent if isinstance(exponent, int) else 0

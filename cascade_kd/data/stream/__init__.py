"""Data larger than memory: bounded preparation of the log, and the training reader over it (floor 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cascade_kd.lazy import lazy

if TYPE_CHECKING:
    from cascade_kd.data.stream.reader import StreamReader
else:
    __getattr__ = lazy(__name__, {"StreamReader": "reader"})

__all__ = ["StreamReader"]

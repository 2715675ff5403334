"""Huge pages for tensors that are read and written row by row at random (floor 3)."""

from __future__ import annotations

import ctypes
import sys

from torch import Tensor

_MADV_HUGEPAGE = 14
_HUGE = 1 << 21


def on_huge_pages(fresh: Tensor) -> Tensor:
    """``fresh``, its memory marked for pages of 2 MB; call before anything is written to it.

    With pages of 4 kB a random row of a table of gigabytes costs a walk through the page tables beside the row itself:
    measured, twice the time. Linux alone; where the kernel declines, nothing happens.
    """
    if sys.platform == "linux" and fresh.device.type == "cpu":
        first = -(-fresh.data_ptr() // _HUGE) * _HUGE
        last = (fresh.data_ptr() + fresh.nbytes) // _HUGE * _HUGE
        if last > first:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _MADV_HUGEPAGE)
    return fresh

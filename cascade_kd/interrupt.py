"""Ctrl-C and SIGTERM at a step boundary, so that a checkpoint is whole (floor 1)."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from cascade_kd.errors import CascadeKDError

GOES_ON = "`--resume` goes on from there"


class Interrupted(CascadeKDError):
    """The user or the system asked to stop; a checkpoint was left. Exit code 130 (SIGINT) or 143 (SIGTERM)."""

    def __init__(self, signum: int, message: str) -> None:
        self.exit_code = 128 + signum
        super().__init__(message)


class Terminated(CascadeKDError):
    """SIGTERM where nothing defers it, as Ctrl-C is a KeyboardInterrupt there. Exit code 143."""

    exit_code = 128 + signal.SIGTERM


class DeferredInterrupt:
    """Inside the block the first SIGINT or SIGTERM is only noted in ``signum``; a second one stops at once.

    Outside the main thread, where Python delivers no signals, it notes nothing. ``signum``: one noted before.
    """

    def __init__(self, signum: int | None = None) -> None:
        self.signum = signum
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> DeferredInterrupt:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._previous[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            raise KeyboardInterrupt
        self.signum = signum

"""The command line, called in this process or started as its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from cascade_kd.cli import main


@dataclass(frozen=True)
class Done:
    """What a command left."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """``command("check", file)`` as the entry point runs it, without the seconds that a process takes to start."""
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["cascade-kd", *map(str, arguments)])
        before = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as caught:
                main()
        finally:
            signal.signal(signal.SIGTERM, before)
            torch.set_flush_denormal(False)  # training sets it for the whole process, and hypothesis refuses it
        assert isinstance(caught.value.code, int)
        return Done(caught.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def process() -> Callable[..., Done]:
    """``process("check", file)``: the same as a process of its own."""

    def run(*arguments: str | Path, **env: str) -> Done:
        done = subprocess.run(
            [sys.executable, "-m", "cascade_kd", *map(str, arguments)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", **env},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return run

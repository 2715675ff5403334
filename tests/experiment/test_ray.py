"""The Ray Train example of the docs, run once where Ray is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

LIMIT = 280  # seconds


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed; it is no dependency of the library")
def test_the_example_trains_over_two_workers(tiny: Callable[..., Path], tmp_path: Path, repository: Path) -> None:
    file = tiny(distill="", epochs=1)
    out = tmp_path / "out"
    command = [sys.executable, str(repository / "docs" / "examples" / "ray_train.py"), str(file), str(out), "2"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert json.loads((out / "metrics.json").read_text("utf-8"))["run"]["ranks"] == 2

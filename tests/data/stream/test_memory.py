"""The benchmark of a log larger than memory, at a size that a test can afford."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "speed" / "stream.py"), "--folder", str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_million_rows_stay_within_the_limits(tmp_path: Path) -> None:
    out = tmp_path / "stream.jsonl"
    done = run(tmp_path, "--rows", "1000000", "--bucket-rows", "100000", "--max-rss-gib", "1", "--out", str(out))
    assert done.returncode == 0, done.stderr
    (line,) = [json.loads(text) for text in out.read_text().splitlines()]
    assert 0.75e6 < line["trained_rows"] < 0.85e6
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.slow
def test_the_limits_bind(tmp_path: Path) -> None:
    done = run(tmp_path, "--rows", "20000", "--max-rss-gib", "0.01")
    assert done.returncode == 1
    assert "GiB of memory" in done.stderr

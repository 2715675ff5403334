"""Rewrites the outputs in docs/datasets.md: what `data describe` and `data audit` print of every catalogue set.

    CASCADE_KD_DATA=... python benchmarks/datasets.py [NAME ...]

The prose of the page is kept; a block is the text after its marker ``<!-- cascade-kd data audit frappe -->``. A set
that is not under $CASCADE_KD_DATA keeps the output that it has.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "datasets.md"
BLOCK = re.compile(r"(<!-- cascade-kd (data \w+ (\S+)) -->\n```text\n)(.*?)(```\n)", re.DOTALL)
FLAGGED = 3  # exit code of `data audit`


def printed(command: str) -> str | None:
    """What a command of ``cascade-kd`` prints; None, and its message on stderr, where it cannot run."""
    done = subprocess.run(
        [sys.executable, "-m", "cascade_kd", *command.split()],
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, FLAGGED):
        print(f"{command}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    lines = [line.rstrip() for line in done.stdout.strip().splitlines()]
    # The hash of what was prepared names the library's version too: another one with every release.
    return "\n".join(line for line in lines if not line.startswith("sha256 ")) + "\n"


def block(found: re.Match[str]) -> str:
    """The same block with what is printed now."""
    start, command, name, before, end = found.groups()
    if len(sys.argv) > 1 and name not in sys.argv[1:]:
        return found[0]
    text = printed(command)
    return start + (before if text is None else text) + end


if __name__ == "__main__":
    PAGE.write_text(BLOCK.sub(block, PAGE.read_text("utf-8")), "utf-8")

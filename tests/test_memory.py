"""Freed memory is kept inside the block, and given back behind it."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest

SCRIPT = """
import resource
import torch
from cascade_kd.memory import kept_memory

def faults():
    def steps():
        for _ in range(5):
            (torch.ones(16 << 20) + 1).sum()  # 64 MiB each, more than glibc ever learns to keep by itself
    steps()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    steps()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1])

torch.set_num_threads(1)
before = faults()
with kept_memory():
    inside = faults()
    big = [torch.ones(16 << 20) for _ in range(3)]
    del big
    held = resident()
print(before, inside, held - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_pages_are_not_asked_for_again() -> None:
    pages = (16 << 20) * 4 // resource.getpagesize()
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    before, inside, given_back = map(int, done.stdout.split())
    if before < 5 * pages:
        pytest.skip("this allocator keeps memory by itself")
    assert inside < before / 4  # heap layouts differ: now and then a block of the ten is made anew
    assert given_back > 3 * pages * 0.9

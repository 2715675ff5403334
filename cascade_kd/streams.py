"""Named random streams (floor 1): every draw is a function of a name and a step, never of what ran before.

A stream is named by (seed, round, stage, purpose), so adding a stage or a distiller changes no other's draws, and a
run that resumes at step n draws what the uninterrupted run drew at step n: nothing but the step has to be saved.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

_MASK = (1 << 64) - 1


def stream(*names: object) -> int:
    """A 64-bit seed for the stream with these names, e.g. ``stream(seed, round, "rank", "order")``."""
    digest = hashlib.sha256("/".join(str(name) for name in names).encode()).digest()
    return int.from_bytes(digest[:8], "little")


def seed_at(stream_seed: int, step: int) -> int:
    """The seed of one step of a stream (SplitMix64, Steele et al. 2014), so neighbouring steps are unrelated."""
    z = (stream_seed + (step + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return (z ^ (z >> 31)) >> 1  # torch wants a seed that fits a signed 64-bit integer


def generator_at(stream_seed: int, step: int = 0) -> torch.Generator:
    """A CPU generator for one step of a stream; draws are made on the CPU so that devices agree."""
    return torch.Generator().manual_seed(seed_at(stream_seed, step))


def hashed(stream_seed: int, index_N: Tensor) -> Tensor:
    """[N] pseudo-random int64 in [0, 2^62): one draw for each number, whatever is asked beside it or before.

    SplitMix64's finaliser as in :func:`seed_at`, on tensors (int64 products wrap; shifts are made logical by a mask).
    """
    z = index_N * -0x61C8864680B583EB + _signed(stream_seed)  # 0x9E3779B97F4A7C15 as a signed number
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
    return ((z ^ ((z >> 31) & ((1 << 33) - 1))) >> 2) & ((1 << 62) - 1)


def _signed(seed: int) -> int:
    return seed - (1 << 64) if seed >= 1 << 63 else seed


def seed_global(seed: int) -> None:
    """Seed torch's global generators of the devices in use: ``torch.manual_seed`` without its cost, .2 ms a call."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


@contextlib.contextmanager
def scoped_seed(seed: int | None = None) -> Iterator[None]:
    """Give the block torch's global generators to itself, seeded if asked, and restore them afterwards.

    Initialisers and dropout of plain ``nn.Module`` code draw from the global generator; this keeps them on a stream
    without touching the caller's.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        if seed is not None:
            torch.manual_seed(seed)
        yield

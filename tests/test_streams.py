"""Draws are functions of names and steps."""

from __future__ import annotations

import torch

from cascade_kd.streams import generator_at, scoped_seed, seed_at, stream


def test_names_separate_streams() -> None:
    seeds = {stream(s, r, stage, p) for s in range(3) for r in range(2) for stage in ("a", "b") for p in ("x", "y")}
    assert len(seeds) == 24
    assert stream(0, 1, "a") == stream(0, 1, "a")


def test_steps_separate_draws_and_repeat() -> None:
    one = [torch.rand(4, generator=generator_at(7, step)) for step in range(50)]
    again = [torch.rand(4, generator=generator_at(7, step)) for step in range(50)]
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert len({tuple(x.tolist()) for x in one}) == 50
    assert len({seed_at(7, step) & 0xFFFFFFFF for step in range(10_000)}) > 9_990  # the generator reads 32 bits


def test_scoped_seed_gives_the_global_generator_back() -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    with scoped_seed(11):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with scoped_seed(11):
        assert torch.equal(torch.rand(3), inside)

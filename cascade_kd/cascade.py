"""A cascade: a tuple of stages, each ordering what the one before kept (floor 5). B requests."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import final

import torch

from cascade_kd.stages import Stage
from cascade_kd.types import Candidates, Requests

REQUESTS_PER_CALL = 1024


def batches_of(num_requests: int) -> list[slice]:
    """Slices of at most ``REQUESTS_PER_CALL`` requests; one empty slice where there are none, so shapes stay."""
    return [slice(i, i + REQUESTS_PER_CALL) for i in range(0, max(1, num_requests), REQUESTS_PER_CALL)]


@dataclass(frozen=True)
class Step:
    """What one stage did: what it received, how it ordered it, what it kept, and the seconds that took."""

    stage: str
    keep: int
    received: Candidates | None
    ordered: Candidates
    seconds: float

    @property
    def kept(self) -> Candidates:
        """The stage's output, what the next stage receives."""
        return self.ordered.top(self.keep)


@dataclass(frozen=True)
class Trace:
    """One pass of the requests through all stages; every metric reads this."""

    requests: Requests
    steps: tuple[Step, ...]

    def step(self, stage: str) -> Step:
        """The step of the stage with this name."""
        return next(step for step in self.steps if step.stage == stage)


@final
@dataclass(frozen=True)
class Cascade:
    """``Cascade((recall,)) >> prerank >> rank``; call it for the last stage's output, ``[:n]`` for the first n."""

    stages: tuple[Stage, ...]

    def __rshift__(self, stage: Stage) -> Cascade:
        return Cascade((*self.stages, stage))

    def __getitem__(self, part: slice) -> Cascade:
        return Cascade(self.stages[part])

    def __call__(self, requests: Requests) -> Candidates:
        """The best items of every request, as the last stage orders them."""
        candidates: Candidates | None = None
        for stage in self.stages:
            candidates = stage(requests, candidates)
        assert candidates is not None, "a cascade has at least one stage"
        return candidates

    def trace(self, requests: Requests) -> Trace:
        """Run all requests in batches and keep what every stage received and ordered."""
        batches = [self._steps(requests[rows]) for rows in batches_of(len(requests))]
        steps = []
        received: Candidates | None = None
        for column in zip(*batches, strict=True):
            ordered = Candidates.concat([step.ordered for step in column])
            seconds = sum(step.seconds for step in column)
            steps.append(Step(column[0].stage, column[0].keep, received, ordered, seconds))
            received = steps[-1].kept
        return Trace(requests, tuple(steps))

    def _steps(self, requests: Requests) -> list[Step]:
        steps: list[Step] = []
        received: Candidates | None = None
        for stage in self.stages:
            start = time.perf_counter()
            ordered = stage.order(requests, received)
            if ordered.item_BK.is_cuda:
                torch.cuda.synchronize(ordered.item_BK.device)  # until then it is only asked for
            steps.append(Step(stage.name, stage.keep, received, ordered, time.perf_counter() - start))
            received = steps[-1].kept
        return steps

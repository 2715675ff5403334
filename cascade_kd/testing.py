"""Conformance tests that a stage of your own inherits (floor 9); needs pytest.

class TestMyStage(StageConformance):
    @pytest.fixture
    def stage(self): return MyStage(...)

    @pytest.fixture
    def requests(self): return Requests(user_B=torch.tensor([1, 2]), time_B=torch.tensor([0, 0]))

    @pytest.fixture
    def received(self): return Candidates.ranked(item_BK, score_BK)     # None for a recall stage
"""

from __future__ import annotations

import torch
from torch import Tensor

from cascade_kd.stages import LogitStage, Stage
from cascade_kd.types import Candidates, Requests


class StageConformance:
    """What every stage must satisfy; give the fixtures ``stage``, ``requests`` and ``received``."""

    def test_leaves_what_it_received_as_it_was(
        self, stage: Stage, requests: Requests, received: Candidates | None
    ) -> None:
        """Candidates are values: a stage returns new ones."""
        if received is None:
            return
        before = [tensor.clone() for tensor in (received.item_BK, received.score_BK, received.valid_BK)]
        stage(requests, received)
        for held, tensor in zip(before, (received.item_BK, received.score_BK, received.valid_BK), strict=True):
            assert torch.equal(held, tensor)

    def test_keeps_its_budget(self, stage: Stage, requests: Requests, received: Candidates | None) -> None:
        """At most ``keep`` candidates a request, one row a request."""
        kept = stage(requests, received)
        assert len(kept) == len(requests)
        assert kept.width <= stage.keep

    def test_rows_are_sorted_and_distinct(self, stage: Stage, requests: Requests, received: Candidates | None) -> None:
        """Best first, ties by smaller code, padding last with item 0 and score -inf, no item twice."""
        for candidates in (stage(requests, received), stage.order(requests, received)):
            again = Candidates.ranked(candidates.item_BK, candidates.score_BK, candidates.valid_BK)
            assert torch.equal(candidates.item_BK, again.item_BK)
            assert torch.equal(candidates.score_BK, again.score_BK)
            assert torch.equal(candidates.valid_BK, again.valid_BK)
            assert all(len(set(row)) == len(row) for row in _items(candidates))
            assert bool((candidates.item_BK[candidates.valid_BK] > 0).all())

    def test_hands_on_only_what_it_received(
        self, stage: Stage, requests: Requests, received: Candidates | None
    ) -> None:
        """A later stage invents no item; ``order`` drops none."""
        if received is None:
            return
        for before, kept in zip(_items(received), _items(stage(requests, received)), strict=True):
            assert set(kept) <= set(before)
        for before, ordered in zip(_items(received), _items(stage.order(requests, received)), strict=True):
            assert set(ordered) == set(before)

    def test_call_is_the_top_of_order(self, stage: Stage, requests: Requests, received: Candidates | None) -> None:
        """``stage(...)`` is the first ``keep`` places of ``stage.order(...)``."""
        assert torch.equal(stage(requests, received).item_BK, stage.order(requests, received).top(stage.keep).item_BK)

    def test_is_deterministic(self, stage: Stage, requests: Requests, received: Candidates | None) -> None:
        """The same question has the same answer."""
        first, second = stage(requests, received), stage(requests, received)
        assert torch.equal(first.item_BK, second.item_BK)
        assert torch.equal(first.score_BK, second.score_BK)

    def test_requests_do_not_see_each_other(
        self, stage: Stage, requests: Requests, received: Candidates | None
    ) -> None:
        """One request asked alone has the items that it has in company."""
        together = stage(requests, received)
        for row in range(len(requests)):
            alone = stage(requests[row : row + 1], None if received is None else received[row : row + 1])
            assert torch.equal(alone.item_BK, together.item_BK[row : row + 1])

    def test_signals_are_there(self, stage: Stage, requests: Requests, received: Candidates | None) -> None:
        """A stage that names the signal ``logits`` gives finite logits."""
        assert "ranking" in stage.signals
        if "logits" not in stage.signals:
            return
        assert isinstance(stage, LogitStage)
        item_R = stage(requests, received).item_BK[:, 0]
        logits_R: Tensor = stage.logits(requests, item_R, torch.arange(len(requests)))
        assert logits_R.shape == item_R.shape
        assert bool(logits_R.isfinite().all())


def _items(candidates: Candidates) -> list[list[int]]:
    rows = zip(candidates.item_BK, candidates.valid_BK, strict=True)
    return [item_K[valid_K].tolist() for item_K, valid_K in rows]

"""The shipped conformance class: sound stages pass it, and every kind of broken stage fails the test named for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cascade_kd.data import Dataset
from cascade_kd.models.dcnv2 import DCNv2, DCNv2Config
from cascade_kd.models.two_tower import TwoTower, TwoTowerConfig
from cascade_kd.retrieval import IndexConfig
from cascade_kd.stages import LogitStage, RetrievalStage, ScoringStage, Stage
from cascade_kd.streams import scoped_seed
from cascade_kd.testing import StageConformance
from cascade_kd.types import Candidates, Requests

NUM_ITEMS = 80


@pytest.fixture
def requests(dataset: Dataset) -> Requests:
    return dataset.requests_of(dataset.rows("test")[::80], part="test")


@pytest.fixture
def received() -> Candidates:
    """Lists of 12, 11, ..., 5 items for eight requests."""
    generator = torch.Generator().manual_seed(0)
    item_BK = torch.stack([torch.randperm(NUM_ITEMS, generator=generator)[:12] + 1 for _ in range(8)])
    valid_BK = torch.arange(12) < torch.arange(12, 4, -1).unsqueeze(1)
    return Candidates.ranked(item_BK, torch.randn(8, 12, generator=generator), valid_BK)


# -- sound stages


def two_tower(dataset: Dataset) -> TwoTower:
    with scoped_seed(3):
        model = TwoTower(TwoTowerConfig(embedding_size=4, hidden=(8,), output_size=4), dataset.online("recall"))
        nn.init.normal_(model.fields.table.weight)
    return model


def retrieval_stage(dataset: Dataset, kind: str, *, mask_seen: bool) -> RetrievalStage:
    features, index = dataset.online("recall"), IndexConfig(kind=kind)
    return RetrievalStage("recall", "recall", 20, features, two_tower(dataset), dataset, index, mask_seen=mask_seen)


class TestRetrievalWithFaiss(StageConformance):
    @pytest.fixture
    def stage(self, dataset: Dataset) -> Stage:
        return retrieval_stage(dataset, "flat", mask_seen=True)

    @pytest.fixture
    def received(self) -> None:
        return None


class TestRetrievalWithTorch(StageConformance):
    @pytest.fixture
    def stage(self, dataset: Dataset) -> Stage:
        return retrieval_stage(dataset, "torch", mask_seen=False)

    @pytest.fixture
    def received(self) -> None:
        return None


class TestRetrievalOrdersWhatItReceives(StageConformance):
    """What a recall teacher does."""

    @pytest.fixture
    def stage(self, dataset: Dataset) -> Stage:
        return replace(retrieval_stage(dataset, "torch", mask_seen=True), keep=7)


class TestScoringWithTwoTower(StageConformance):
    @pytest.fixture
    def stage(self, dataset: Dataset) -> Stage:
        return ScoringStage("prerank", "prerank", 7, dataset.online("recall"), two_tower(dataset), dataset)


class TestScoringWithDCNv2(StageConformance):
    @pytest.fixture
    def stage(self, dataset: Dataset) -> Stage:
        with scoped_seed(3):
            model = DCNv2(DCNv2Config(embedding_size=4, hidden=(8,), dropout=0.5), dataset.online("rank"))
        return ScoringStage("rank", "rank", 7, dataset.online("rank"), model, dataset)


@dataclass(frozen=True)
class Popularity:
    """A stage of one's own in a few lines: the most clicked items first."""

    counts_I1: Tensor
    keep: int = 9
    name: str = "popularity"
    level: str = "recall"
    signals: frozenset[str] = frozenset({"ranking"})

    def order(self, requests: Requests, candidates: Candidates | None = None) -> Candidates:
        if candidates is not None:
            return candidates.with_scores(self.counts_I1[candidates.item_BK])
        item_BK = torch.arange(1, len(self.counts_I1)).expand(len(requests), -1)
        return Candidates.ranked(item_BK, self.counts_I1[item_BK]).top(self.keep)

    def __call__(self, requests: Requests, candidates: Candidates | None = None) -> Candidates:
        return self.order(requests, candidates).top(self.keep)


def popularity() -> Popularity:
    """Few enough counts that most items are tied."""
    return Popularity((torch.arange(NUM_ITEMS + 1) * 7 % 10).float())


class TestPopularityAsRecall(StageConformance):
    @pytest.fixture
    def stage(self) -> Stage:
        return popularity()

    @pytest.fixture
    def received(self) -> None:
        return None


class TestPopularityAsLaterStage(StageConformance):
    @pytest.fixture
    def stage(self) -> Stage:
        return popularity()


def test_the_stages_are_stages(dataset: Dataset) -> None:
    stages = (popularity(), retrieval_stage(dataset, "flat", mask_seen=True))
    assert all(isinstance(stage, Stage) for stage in stages)
    assert [isinstance(stage, LogitStage) for stage in stages] == [False, True]


# -- broken stages

Change = Callable[[Candidates], Candidates]
LAWS = sorted(name for name in vars(StageConformance) if name.startswith("test_"))


def same(candidates: Candidates) -> Candidates:
    return candidates


@dataclass(frozen=True)
class Broken:
    """A sound stage whose answers are changed before they are handed out."""

    order_change: Change = same
    call_change: Change = same
    inner: Popularity = field(default_factory=popularity)
    signals: frozenset[str] = frozenset({"ranking"})
    name: str = "broken"
    level: str = "recall"

    @property
    def keep(self) -> int:
        return self.inner.keep

    def order(self, requests: Requests, candidates: Candidates | None = None) -> Candidates:
        return self.order_change(self.inner.order(requests, candidates))

    def __call__(self, requests: Requests, candidates: Candidates | None = None) -> Candidates:
        return self.call_change(self.order(requests, candidates).top(self.keep))


@dataclass(frozen=True)
class BrokenLogits(Broken):
    """A stage with logits as ``of`` gives them."""

    signals: frozenset[str] = frozenset({"ranking", "logits"})
    of: Callable[[Tensor], Tensor] = torch.Tensor.float

    def logits(self, requests: Requests, item_R: Tensor, row_R: Tensor, event_R: Tensor | None = None) -> Tensor:
        return self.of(item_R)


def with_item(candidates: Candidates, column: int, item: int | Tensor) -> Candidates:
    item_BK = candidates.item_BK.clone()
    item_BK[:, column] = item
    return replace(candidates, item_BK=item_BK)


def repeats(candidates: Candidates) -> Candidates:
    """The best item takes the second place too, with its score."""
    score_BK = candidates.score_BK.clone()
    score_BK[:, 1] = score_BK[:, 0]
    return with_item(replace(candidates, score_BK=score_BK), 1, candidates.item_BK[:, 0])


def larger_code_first(candidates: Candidates) -> Candidates:
    """All scores equal, the items in the wrong order."""
    score_BK = torch.zeros_like(candidates.score_BK).masked_fill(~candidates.valid_BK, -torch.inf)
    item_BK = candidates.item_BK.sort(dim=1, descending=True).values
    return replace(candidates, item_BK=item_BK, score_BK=score_BK)


def padding_first(candidates: Candidates) -> Candidates:
    return Candidates(candidates.item_BK.flip(1), candidates.score_BK.flip(1), candidates.valid_BK.flip(1))


def padding_keeps_a_score(candidates: Candidates) -> Candidates:
    return replace(candidates, score_BK=candidates.score_BK.masked_fill(~candidates.valid_BK, -1e9))


def padding_keeps_an_item(candidates: Candidates) -> Candidates:
    return replace(candidates, item_BK=candidates.item_BK.masked_fill(~candidates.valid_BK, NUM_ITEMS))


def one_without_a_score(candidates: Candidates) -> Candidates:
    score_BK = candidates.score_BK.clone()
    score_BK[0, 0] = torch.nan
    return replace(candidates, score_BK=score_BK)


def invents(candidates: Candidates) -> Candidates:
    """An item that nobody received takes the best place; rows stay sorted."""
    score_BK = candidates.score_BK.clone()
    score_BK[:, 0] = 1e9
    return with_item(replace(candidates, score_BK=score_BK), 0, NUM_ITEMS + 1)


def all_that_came(candidates: Candidates) -> Candidates:
    """Twice the budget, were it not for the cut: pads each list to 14 places."""
    pad = (0, 14 - candidates.width)
    return Candidates(
        nn.functional.pad(candidates.item_BK, pad),
        nn.functional.pad(candidates.score_BK, pad, value=-torch.inf),
        nn.functional.pad(candidates.valid_BK, pad),
    )


def worst_first(candidates: Candidates) -> Candidates:
    return candidates.with_scores(-candidates.score_BK)


def by_company(candidates: Candidates) -> Candidates:
    """Sorted one way alone, the other way in company."""
    return candidates if len(candidates) == 1 else worst_first(candidates)


def centred_on_the_batch(candidates: Candidates) -> Candidates:
    """Scores that lean on those of the other requests."""
    mean = candidates.score_BK[candidates.valid_BK].mean()
    return candidates.with_scores((candidates.score_BK - mean).square())


def every_other_call(change: Change) -> Change:
    calls: Iterator[int] = count()
    return lambda candidates: candidates if next(calls) % 2 else change(candidates)


def failures(stage: Any, requests: Requests, received: Candidates | None) -> set[str]:
    """The laws that the stage breaks, by the name of their test."""
    broken = set()
    for law in LAWS:
        given = None
        if received is not None:
            given = Candidates(received.item_BK.clone(), received.score_BK.clone(), received.valid_BK.clone())
        try:
            getattr(StageConformance(), law)(stage, requests, given)
        except AssertionError:
            broken.add(law)
    return broken


BROKEN: dict[str, tuple[Broken, str]] = {
    "repeats an item": (Broken(order_change=repeats), "test_rows_are_sorted_and_distinct"),
    "unsorted": (Broken(order_change=lambda c: with_item(c, 0, c.item_BK[:, 4])), "test_rows_are_sorted_and_distinct"),
    "larger code first": (Broken(order_change=larger_code_first), "test_rows_are_sorted_and_distinct"),
    "worst first": (
        Broken(order_change=lambda c: replace(c, score_BK=-c.score_BK)),
        "test_rows_are_sorted_and_distinct",
    ),
    "padding first": (Broken(order_change=padding_first), "test_rows_are_sorted_and_distinct"),
    "NaN": (Broken(order_change=one_without_a_score), "test_rows_are_sorted_and_distinct"),
    "exceeds its budget": (Broken(call_change=all_that_came), "test_keeps_its_budget"),
    "loses a request": (Broken(order_change=lambda c: c[1:]), "test_keeps_its_budget"),
    "call is not order": (Broken(call_change=lambda c: invents(c)), "test_call_is_the_top_of_order"),
    "keeps less than it may": (Broken(call_change=lambda c: c.top(3)), "test_call_is_the_top_of_order"),
    "not deterministic": (Broken(order_change=every_other_call(worst_first)), "test_is_deterministic"),
    "other items of equal scores": (
        Broken(order_change=every_other_call(lambda c: with_item(c, 0, NUM_ITEMS))),
        "test_is_deterministic",
    ),
    "looks at its neighbours": (Broken(order_change=by_company), "test_requests_do_not_see_each_other"),
    "no ranking": (Broken(signals=frozenset()), "test_signals_are_there"),
    "no logits": (Broken(signals=frozenset({"ranking", "logits"})), "test_signals_are_there"),
    "NaN logits": (BrokenLogits(of=lambda item_R: item_R / 0 - item_R / 0), "test_signals_are_there"),
    "logits of another shape": (BrokenLogits(of=lambda item_R: item_R.float()[:, None]), "test_signals_are_there"),
}
BROKEN_LATER: dict[str, tuple[Broken, str]] = {
    "invents an item": (Broken(order_change=invents), "test_hands_on_only_what_it_received"),
    "drops what it received": (Broken(order_change=lambda c: c.top(7)), "test_hands_on_only_what_it_received"),
    "padding keeps a score": (Broken(order_change=padding_keeps_a_score), "test_rows_are_sorted_and_distinct"),
    "padding keeps an item": (Broken(order_change=padding_keeps_an_item), "test_rows_are_sorted_and_distinct"),
    "leans on the batch": (Broken(order_change=centred_on_the_batch), "test_requests_do_not_see_each_other"),
}


@pytest.mark.parametrize("name", [*BROKEN, *BROKEN_LATER])
def test_a_broken_later_stage_is_caught(name: str, requests: Requests, received: Candidates) -> None:
    stage, law = (BROKEN | BROKEN_LATER)[name]
    assert law in failures(stage, requests, received)


@pytest.mark.parametrize("name", [name for name in BROKEN if name != "padding first"])
def test_a_broken_recall_stage_is_caught(name: str, requests: Requests) -> None:
    stage, law = BROKEN[name]
    assert law in failures(stage, requests, None)


def test_the_unbroken_wrapper_breaks_no_law(requests: Requests, received: Candidates) -> None:
    assert len(LAWS) >= 7
    for stage in (Broken(), BrokenLogits()):
        assert failures(stage, requests, received) == set()
        assert failures(stage, requests, None) == set()


def test_a_stage_that_recommends_the_padding_is_caught(requests: Requests) -> None:
    def padding(candidates: Candidates) -> Candidates:
        score_BK = candidates.score_BK.clone()
        score_BK[:, 0] = 1e9
        return with_item(replace(candidates, score_BK=score_BK), 0, 0)

    assert "test_rows_are_sorted_and_distinct" in failures(Broken(order_change=padding), requests, None)


def test_a_stage_that_changes_what_it_received_is_caught(requests: Requests, received: Candidates) -> None:
    @dataclass(frozen=True)
    class Meddler(Broken):
        def order(self, requests: Requests, candidates: Candidates | None = None) -> Candidates:
            ordered = self.inner.order(requests, candidates)
            if candidates is not None:
                candidates.score_BK.copy_(ordered.score_BK)
                candidates.item_BK.copy_(ordered.item_BK)
            return ordered

    assert failures(Meddler(), requests, received) == {"test_leaves_what_it_received_as_it_was"}

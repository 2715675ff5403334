"""Cascades: composition, traces in batches, padding, seen items, and recommendations from them."""

from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl
import pytest
import torch
from torch import nn

from cascade_kd import cascade as cascade_module
from cascade_kd.cascade import Cascade
from cascade_kd.data import Dataset
from cascade_kd.errors import UserError
from cascade_kd.models.dcnv2 import DCNv2, DCNv2Config
from cascade_kd.models.two_tower import TwoTower, TwoTowerConfig
from cascade_kd.serve import recommend
from cascade_kd.stages import RetrievalStage, ScoringStage
from cascade_kd.streams import scoped_seed
from cascade_kd.types import ITEM_ID, USER_ID, Candidates, Requests

NUM_ITEMS = 40


@dataclass(frozen=True)
class Formula:
    """Orders by (factor * item + user) mod 17; a first stage gives user u no more than u items."""

    name: str
    keep: int
    factor: int
    level: str = "rank"
    signals: frozenset[str] = frozenset({"ranking"})
    widths: list[tuple[int, int]] = field(default_factory=list)  # requests and places of every call

    def order(self, requests: Requests, candidates: Candidates | None) -> Candidates:
        self.widths.append((len(requests), candidates.width if candidates is not None else 0))
        first = candidates is None
        if candidates is None:
            item_BK = torch.arange(1, NUM_ITEMS + 1).expand(len(requests), -1)
            valid_BK = item_BK <= requests.user_B.unsqueeze(1)
            candidates = Candidates.ranked(item_BK, torch.zeros(item_BK.shape), valid_BK)
        score_BK = (self.factor * candidates.item_BK + requests.user_B.unsqueeze(1)) % 17
        ordered = candidates.with_scores(score_BK.float())
        return ordered.top(self.keep) if first else ordered

    def __call__(self, requests: Requests, candidates: Candidates | None) -> Candidates:
        return self.order(requests, candidates).top(self.keep)


def in_python(user: int, stages: list[Formula]) -> list[list[int]]:
    """What every stage keeps."""
    items = [item for item in range(1, NUM_ITEMS + 1) if item <= user]
    kept = []
    for stage in stages:
        items = sorted(items, key=lambda item: (-((stage.factor * item + user) % 17), item))[: stage.keep]
        kept.append(items)
    return kept


def make_stages() -> list[Formula]:
    return [Formula("recall", 20, 3, "recall"), Formula("prerank", 9, 5, "prerank"), Formula("rank", 4, 7)]


def make_requests(num: int = 30) -> Requests:
    """Users 0, 1, 2, ...: the first has an empty list, the next ones short lists."""
    return Requests(torch.arange(num), torch.zeros(num, dtype=torch.int64))


def rows_of(candidates: Candidates) -> list[list[int]]:
    return [item_K[valid_K].tolist() for item_K, valid_K in zip(candidates.item_BK, candidates.valid_BK, strict=True)]


def assert_same(a: Candidates, b: Candidates) -> None:
    assert torch.equal(a.item_BK, b.item_BK)
    assert torch.equal(a.score_BK, b.score_BK)
    assert torch.equal(a.valid_BK, b.valid_BK)


@pytest.fixture
def models(dataset: Dataset) -> Cascade:
    online = dataset.online("recall")
    with scoped_seed(2):
        tower = TwoTower(TwoTowerConfig(embedding_size=4, hidden=(8,), output_size=4), online)
        ranker = DCNv2(DCNv2Config(embedding_size=4, hidden=(8,), cross_layers=1), dataset.online("rank"))
        for model in (tower, ranker):
            nn.init.normal_(model.fields.table.weight)
    recall = RetrievalStage("recall", "recall", 30, online, tower, dataset)
    return Cascade((recall, ScoringStage("rank", "rank", 6, dataset.online("rank"), ranker, dataset)))


def test_stages_are_chained_and_cut_without_a_change_to_what_was() -> None:
    recall, prerank, rank = make_stages()
    short = Cascade((recall,))
    whole = short >> prerank >> rank
    assert whole.stages == (recall, prerank, rank)
    assert short.stages == (recall,)
    assert whole[:2].stages == (recall, prerank)
    assert whole[:1] == short
    assert whole[:] == whole
    assert (whole[:2] >> rank) == whole


def test_every_stage_orders_what_the_one_before_kept() -> None:
    stages, requests = make_stages(), make_requests()
    trace = Cascade(tuple(stages)).trace(requests)
    want = [in_python(user, stages) for user in requests.user_B.tolist()]
    assert [step.stage for step in trace.steps] == ["recall", "prerank", "rank"]
    assert [step.keep for step in trace.steps] == [20, 9, 4]
    assert trace.requests is requests
    for number, step in enumerate(trace.steps):
        assert rows_of(step.kept) == [kept[number] for kept in want]
        assert step.kept.width == stages[number].keep
        assert trace.step(step.stage) is step
        assert step.seconds >= 0
    assert trace.steps[0].received is None
    for before, after in zip(trace.steps[:-1], trace.steps[1:], strict=True):
        assert after.received is not None
        assert_same(after.received, before.kept)
        assert {frozenset(row) for row in rows_of(after.ordered)} == {frozenset(row) for row in rows_of(before.kept)}
    assert [len(row) for row in rows_of(trace.step("recall").kept)] == [min(user, 20) for user in range(30)]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_calling_gives_the_last_step_of_the_trace(number: int) -> None:
    cascade, requests = Cascade(tuple(make_stages()))[:number], make_requests()
    assert_same(cascade(requests), cascade.trace(requests).steps[-1].kept)
    assert rows_of(cascade(requests)) == [in_python(user, make_stages())[number - 1] for user in range(30)]


def test_no_request_is_a_trace_of_empty_steps() -> None:
    cascade, requests = Cascade(tuple(make_stages())), make_requests(0)
    trace = cascade.trace(requests)
    assert [step.kept.item_BK.shape for step in trace.steps] == [(0, 20), (0, 9), (0, 4)]
    assert_same(cascade(requests), trace.steps[-1].kept)


@pytest.mark.parametrize("per_call", [1, 7, 10, 30, 31])
def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch, per_call: int) -> None:
    requests = make_requests()
    whole = Cascade(tuple(make_stages())).trace(requests)
    monkeypatch.setattr(cascade_module, "REQUESTS_PER_CALL", per_call)
    stages = make_stages()
    cut = Cascade(tuple(stages)).trace(requests)
    assert max(num for num, _ in stages[0].widths) == min(per_call, 30)
    assert sum(num for num, _ in stages[2].widths) == 30
    for a, b in zip(whole.steps, cut.steps, strict=True):
        assert_same(a.ordered, b.ordered)
        assert_same(a.kept, b.kept)


def test_batches_change_nothing_for_models(dataset: Dataset, models: Cascade, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = dataset.requests_of(dataset.rows("test")[::9], part="test")
    whole = models.trace(requests)
    monkeypatch.setattr(cascade_module, "REQUESTS_PER_CALL", 7)
    cut = models.trace(requests)
    for a, b in zip(whole.steps, cut.steps, strict=True):
        assert torch.equal(a.ordered.item_BK, b.ordered.item_BK)
        torch.testing.assert_close(a.ordered.score_BK, b.ordered.score_BK)
    assert_same(models(requests), whole.steps[-1].kept)


def test_a_cascade_of_models_hands_on_nothing_that_was_seen(dataset: Dataset, models: Cascade) -> None:
    requests = dataset.requests_of(dataset.rows("test")[::5], part="test")
    events = dataset.events
    rows = zip(events.user_N.tolist(), events.item_N.tolist(), (events.part_N < 2).tolist(), strict=True)
    own = {(user, item) for user, item, before in rows if before}
    drawn = {
        (user, item)
        for user, items in zip(requests.user_B.tolist(), rows_of(models(requests)), strict=True)
        for item in items
    }
    assert drawn
    assert not drawn & own


# -- recommendations


def best_in_python(dataset: Dataset, models: Cascade, user: int) -> list[int]:
    """The whole of a user's recommendations by sorting twice in Python."""
    events = dataset.events
    own = (events.user_N == user).nonzero().squeeze(1)
    context = {name: events.columns[name][own[-1:]] for name in ("device", "hour")}
    request = Requests(torch.tensor([user]), torch.tensor([max(events.time_N.tolist()) + 1]), context)
    seen = set(events.item_N[own[events.part_N[own] < 2]].tolist())
    items = [item for item in range(1, dataset.num_items + 1) if item not in seen]
    for stage in models.stages:
        assert isinstance(stage, RetrievalStage | ScoringStage)
        logits = stage.logits(request, torch.tensor(items), torch.zeros(len(items), dtype=torch.int64))
        score = dict(zip(items, logits.tolist(), strict=True))
        items = sorted(items, key=lambda item: (-score[item], item))[: stage.keep]
    return items


@pytest.mark.parametrize("user", [1, 17, 120])
def test_recommendations_are_the_cascades_in_the_users_own_ids(dataset: Dataset, models: Cascade, user: int) -> None:
    name = dataset.vocabularies[USER_ID][user - 1]
    table = recommend(models, dataset, name, k=4)
    want = [dataset.vocabularies[ITEM_ID][item - 1] for item in best_in_python(dataset, models, user)]
    assert table["item"].to_list() == want[:4]
    assert table["score"].dtype == pl.Float64
    assert table["score"].is_sorted(descending=True)
    assert recommend(models, dataset, name, k=100)["item"].to_list() == want  # all that the last stage keeps
    assert recommend(models, dataset, name)["item"].to_list() == want  # ten at most
    assert recommend(models, dataset, int(name), k=4).equals(table)  # ids are compared as text


def test_an_unknown_user_is_refused_with_the_size_of_the_set(dataset: Dataset, models: Cascade) -> None:
    with pytest.raises(UserError, match=r"user 'nobody' is not in data set 'synthetic' \(120 users\)"):
        recommend(models, dataset, "nobody")


@pytest.mark.parametrize("k", [0, -1])
def test_less_than_one_recommendation_is_refused(dataset: Dataset, models: Cascade, k: int) -> None:
    with pytest.raises(UserError, match=f"k = {k}: want at least one recommendation"):
        recommend(models, dataset, dataset.vocabularies[USER_ID][0], k=k)

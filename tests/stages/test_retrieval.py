"""Recall stages: exact lists over the catalogue, seen items, one index a part, and orders of given candidates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cascade_kd.config import load_dataset_definition
from cascade_kd.data import Dataset, load, prepare
from cascade_kd.errors import UserError
from cascade_kd.models.two_tower import TwoTower, TwoTowerConfig
from cascade_kd.retrieval import IndexConfig
from cascade_kd.stages import RetrievalStage, retrieval
from cascade_kd.streams import scoped_seed
from cascade_kd.types import PARTS, Candidates, Part, Requests

RATE_AT_RANK = """[[feature]]
name = "item_click_rate"
kind = "statistic"
side = "item"
keys = ["item"]
value = "click"
aggregate = "mean"
available = "rank"
"""


def make_stage(dataset: Dataset, *, keep: int = 20, kind: str = "flat", mask_seen: bool = True) -> RetrievalStage:
    features = dataset.online("recall")
    with scoped_seed(5):
        model = TwoTower(TwoTowerConfig(embedding_size=4, hidden=(8,), output_size=4, dropout=0.5), features)
        nn.init.normal_(model.fields.table.weight)
        nn.init.constant_(model.bias, 3.0)
    return RetrievalStage("recall", "recall", keep, features, model, dataset, IndexConfig(kind=kind), mask_seen)


def own_items(dataset: Dataset, user: int, part: Part) -> set[int]:
    """What a user has before ``part``, by a loop over the log."""
    events = dataset.events
    before = ("train", "valid") if part == "test" else ("train",)
    rows = zip(events.user_N.tolist(), events.item_N.tolist(), events.part_N.tolist(), strict=True)
    return {item for other, item, number in rows if other == user and PARTS[number] in before}


def rows_of(candidates: Candidates) -> list[list[int]]:
    return [item_K[valid_K].tolist() for item_K, valid_K in zip(candidates.item_BK, candidates.valid_BK, strict=True)]


def logits_by_item(stage: RetrievalStage, request: Requests, items: list[int]) -> dict[int, float]:
    logits = stage.logits(request, torch.tensor(items), torch.zeros(len(items), dtype=torch.int64))
    return dict(zip(items, logits.tolist(), strict=True))


@pytest.mark.parametrize("kind", ["flat", "torch"])
@pytest.mark.parametrize("part", ["train", "valid", "test"])
@pytest.mark.parametrize("mask_seen", [True, False])
def test_the_list_is_the_best_of_the_catalogue(dataset: Dataset, kind: str, part: Part, mask_seen: bool) -> None:
    stage = make_stage(dataset, keep=50, kind=kind, mask_seen=mask_seen)
    requests = dataset.requests_of(dataset.rows(part)[:: len(dataset.rows(part)) // 15], part=part)
    found = stage(requests)
    assert found.width == 50
    for number, items in enumerate(rows_of(found)):
        own = own_items(dataset, int(requests.user_B[number]), part) if mask_seen else set()
        left = [item for item in range(1, dataset.num_items + 1) if item not in own]
        logit = logits_by_item(stage, requests[number : number + 1], left)
        assert items == sorted(left, key=lambda item: (-logit[item], item))[:50]
        assert found.score_BK[number, : len(items)].tolist() == pytest.approx(
            [logit[i] - 3 for i in items], rel=1e-4, abs=1e-5
        )
    if mask_seen and part == "test":
        assert not bool(found.valid_BK.all())  # some users have less than 50 left


def test_given_candidates_are_ordered_by_logits_and_none_is_left_out(dataset: Dataset) -> None:
    stage = make_stage(dataset, keep=3)
    requests = dataset.requests_of(dataset.rows("test")[::100], part="test")
    seen = [sorted(own_items(dataset, user, "test"))[:5] for user in requests.user_B.tolist()]
    item_BK = torch.tensor([own + [0] * (6 - len(own)) for own in seen])
    given = Candidates.ranked(item_BK, torch.zeros(item_BK.shape))
    ordered = stage.order(requests, given)
    for number, items in enumerate(rows_of(ordered)):
        logit = logits_by_item(stage, requests[number : number + 1], seen[number])
        assert items == sorted(seen[number], key=lambda item: -logit[item])
        assert ordered.score_BK[number, : len(items)].tolist() == pytest.approx(
            [logit[i] for i in items], rel=1e-4, abs=1e-5
        )
    assert rows_of(stage(requests, given)) == [items[:3] for items in rows_of(ordered)]


def test_one_index_a_part_built_at_the_first_search(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []
    make = retrieval.build_index
    monkeypatch.setattr(retrieval, "build_index", lambda *given: built.append(1) or make(*given))
    stage = make_stage(dataset)
    assert built == []
    requests = dataset.requests_of(dataset.rows("test")[:3], part="test")
    first = stage(requests)
    again = replace(stage, mask_seen=False)  # the same vectors: what an evaluation does
    assert torch.equal(stage(requests).item_BK, first.item_BK)
    again(requests)
    assert len(built) == 1
    stage(replace(requests, part="valid"))
    assert len(built) == 2


def test_vectors_are_of_all_items_in_order_however_they_are_cut(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = make_stage(dataset)
    whole = stage.item_vectors()
    assert whole.shape == (dataset.num_items, 4)
    monkeypatch.setattr(retrieval, "ITEMS_PER_CALL", 7)
    torch.testing.assert_close(stage.item_vectors(), whole)


def test_a_model_in_training_mode_answers_in_evaluation_mode_and_stays_as_it_was(dataset: Dataset) -> None:
    stage = make_stage(dataset)
    requests = dataset.requests_of(dataset.rows("test")[:5], part="test")
    assert isinstance(stage.model, nn.Module)
    stage.model.eval()
    still = stage(requests)
    stage.model.train()
    fresh = replace(stage, _indices={})
    found = fresh(requests)
    assert torch.equal(found.item_BK, still.item_BK)
    assert torch.equal(found.score_BK, still.score_BK)
    assert torch.equal(fresh.order(requests, still).item_BK, still.item_BK)
    assert all(module.training for module in stage.model.modules())
    assert not found.score_BK.requires_grad
    assert not fresh.item_vectors().requires_grad


@pytest.fixture
def rated(tiny_dataset: Path) -> Dataset:
    """The world with the items' click rate online at recall, so that item vectors change with time."""
    text = tiny_dataset.read_text("utf-8")
    assert RATE_AT_RANK in text
    tiny_dataset.write_text(text.replace(RATE_AT_RANK, RATE_AT_RANK.replace('"rank"', '"recall"')), "utf-8")
    definition, file = load_dataset_definition(tiny_dataset)
    return load(prepare(definition, base=file.parent))


def test_every_part_is_searched_in_its_own_index(rated: Dataset) -> None:
    stage = make_stage(rated, keep=rated.num_items, mask_seen=False)
    assert not torch.equal(stage.item_vectors("valid"), stage.item_vectors("test"))
    requests = rated.requests_of(rated.rows("test")[:4], part="test")
    for part in ("test", "valid", "test", "train", "valid"):
        asked = replace(requests, part=part)
        found = stage(asked)
        with torch.no_grad():
            user_BD = stage.model.eval().user_vectors(rated.user_inputs(stage.names, asked, part=part))  # type: ignore[attr-defined]
        want = user_BD @ stage.item_vectors(part).T
        torch.testing.assert_close(found.score_BK, want.gather(1, found.item_BK - 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("part", ["valid", "test"])
def test_an_index_knows_no_label_of_the_part_it_serves(rated: Dataset, part: Part) -> None:
    """An item statistic that recall has online must not count the clicks that the recall stage is asked to find."""
    stage, events = make_stage(rated), rated.events
    assert "item_click_rate" in stage.names

    def vectors_if_turned(turned_N: Tensor) -> Tensor:
        labels = {name: torch.where(turned_N, 1 - y_N, y_N) for name, y_N in events.labels.items()}
        changed = replace(rated, events=replace(events, labels=labels))
        return replace(stage, dataset=changed, _indices={}).item_vectors(part)

    place = PARTS.index(part)
    assert torch.equal(stage.item_vectors(part), vectors_if_turned(events.part_N >= place))
    assert not torch.equal(stage.item_vectors(part), vectors_if_turned(events.part_N == place - 1))


# -- indexes that look at a part of the catalogue


APPROXIMATE = {
    "ivf": IndexConfig(kind="ivf", nlist=2, nprobe=1, recall_floor=0.01),
    "sq": IndexConfig(kind="sq", nlist=2, sq_type="8bit", recall_floor=0.8),
    "hnsw": IndexConfig(kind="hnsw", hnsw_m=2, ef_construction=1, ef_search=1, recall_floor=0.01),
}


@pytest.mark.parametrize("kind", APPROXIMATE)
@pytest.mark.parametrize("keep", [10, 60])
def test_a_list_of_an_approximate_index_is_full_and_holds_nothing_seen(dataset: Dataset, kind: str, keep: int) -> None:
    stage = replace(make_stage(dataset, keep=keep), index=APPROXIMATE[kind])
    requests = dataset.requests_of(dataset.rows("test")[::20], part="test")
    for user, items in zip(requests.user_B.tolist(), rows_of(stage(requests)), strict=True):
        own = own_items(dataset, user, "test")
        assert len(items) == len(set(items)) == min(keep, dataset.num_items - len(own))
        assert not set(items) & own


def test_recall_is_measured_on_users_of_validation_events(dataset: Dataset) -> None:
    stage = replace(make_stage(dataset, keep=10), index=IndexConfig(kind="ivf", nlist=2, nprobe=1, recall_floor=0.01))
    rows = dataset.rows("valid")
    places = [number * len(rows) // 256 for number in range(256)]
    asked = dataset.requests_of(rows[places], part="valid")
    with torch.no_grad():
        user_BD = stage.model.eval().user_vectors(dataset.user_inputs(stage.names, asked, part="valid"))  # type: ignore[attr-defined]
    score_BI = (user_BD @ stage.item_vectors("test").T).double()
    cut_B = score_BI.topk(10).values[:, -1]
    row_BK = stage.retriever("test").search(user_BD, 10)[1]
    reached_BK = score_BI.gather(1, row_BK.clamp(min=0)) >= cut_B[:, None] - 1e-5  # some items have the same vector
    want = float((reached_BK & (row_BK >= 0)).double().mean())
    fact = stage.built("test").facts["recall@10"]
    assert fact["mean"] == pytest.approx(want)
    assert fact["n"] == 256
    assert 0 < want < 1


def test_an_index_below_its_floor_serves_nobody_unless_it_is_not_measured(dataset: Dataset) -> None:
    stage = replace(make_stage(dataset, keep=10), index=IndexConfig(kind="ivf", nlist=2, nprobe=1, recall_floor=1.0))
    requests = dataset.requests_of(dataset.rows("test")[:3], part="test")
    with pytest.raises(UserError, match="Raise nprobe, now 1, or leave it out"):
        stage(requests)
    assert replace(stage, measured=False)(requests).valid_BK.all()

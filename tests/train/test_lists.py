"""Upstream lists: one list a training user, as of the end of training. Leakage is in ``test_guarantees``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from cascade_kd.cascade import Cascade
from cascade_kd.config import load_dataset_definition
from cascade_kd.data import Dataset, load, prepare
from cascade_kd.models.two_tower import TwoTower, TwoTowerConfig
from cascade_kd.stages import RetrievalStage, Stage
from cascade_kd.streams import scoped_seed
from cascade_kd.train import upstream_lists
from cascade_kd.train.lists import end_of_training_requests
from cascade_kd.types import Candidates, Requests


@dataclass(frozen=True)
class Formula:
    """Orders by (7 * item + user) mod 13; as a first stage it knows the first ``catalogue`` items."""

    name: str
    keep: int
    catalogue: int = 0
    level: str = "prerank"
    signals: frozenset[str] = frozenset({"ranking"})
    asked: list[Requests] = field(default_factory=list)

    def order(self, requests: Requests, candidates: Candidates | None) -> Candidates:
        self.asked.append(requests)
        if candidates is None:
            item_BK = torch.arange(1, self.catalogue + 1).expand(len(requests), -1)
            candidates = Candidates.ranked(item_BK, torch.zeros(item_BK.shape))
        return candidates.with_scores(((7 * candidates.item_BK + requests.user_B.unsqueeze(1)) % 13).float())

    def __call__(self, requests: Requests, candidates: Candidates | None) -> Candidates:
        return self.order(requests, candidates).top(self.keep)


def recall_stage(dataset: Dataset, *, keep: int, mask_seen: bool = False) -> RetrievalStage:
    features = dataset.online("recall")
    with scoped_seed(4):
        model = TwoTower(TwoTowerConfig(embedding_size=4, hidden=(8,), output_size=4), features)
        nn.init.normal_(model.fields.table.weight)
    return RetrievalStage("recall", "recall", keep, features, model, dataset, mask_seen=mask_seen)


def own_in_training(dataset: Dataset) -> dict[int, set[int]]:
    own: dict[int, set[int]] = {}
    events = dataset.events
    for user, item, part in zip(events.user_N.tolist(), events.item_N.tolist(), events.part_N.tolist(), strict=True):
        if part == 0:
            own.setdefault(user, set()).add(item)
    return own


def rows_of(lists: Candidates) -> list[list[int]]:
    return [item_K[valid_K].tolist() for item_K, valid_K in zip(lists.item_BK, lists.valid_BK, strict=True)]


def end_request(dataset: Dataset, user: int) -> Requests:
    """By hand: a second after the last training event of all, in the context of the user's own last one."""
    events = dataset.events
    train = dataset.rows("train")
    last = train[events.user_N[train] == user][-1:]
    context = {name: events.columns[name][last] for name in ("device", "hour")}
    return Requests(torch.tensor([user]), torch.tensor([max(events.time_N[train].tolist()) + 1]), context, part="valid")


@pytest.mark.parametrize("keep", [1, 15, 60])
@pytest.mark.parametrize("mask_seen", [True, False])
def test_a_list_is_the_best_of_what_the_user_has_not_in_training(dataset: Dataset, keep: int, mask_seen: bool) -> None:
    """``mask_seen`` of the stage is for evaluation: lists leave seen items out either way."""
    stage = recall_stage(dataset, keep=keep, mask_seen=mask_seen)
    lists = upstream_lists(Cascade((stage,)), dataset)
    assert lists.item_BK.shape == lists.score_BK.shape == lists.valid_BK.shape == (dataset.num_users + 1, keep)
    own = own_in_training(dataset)
    rows = rows_of(lists)
    for user in sorted(own)[::8]:
        left = [item for item in range(1, dataset.num_items + 1) if item not in own[user]]
        logits = stage.logits(end_request(dataset, user), torch.tensor(left), torch.zeros(len(left), dtype=torch.int64))
        score = dict(zip(left, logits.tolist(), strict=True))
        assert rows[user] == sorted(left, key=lambda item: (-score[item], item))[:keep]
    for user, items in enumerate(rows):
        assert not own.get(user, set()) & set(items)
        assert len(items) == (min(keep, dataset.num_items - len(own[user])) if user in own else 0)
    assert stage.mask_seen is mask_seen


def test_users_without_training_events_have_an_empty_list(dataset: Dataset) -> None:
    lists = upstream_lists(Cascade((recall_stage(dataset, keep=5),)), dataset)
    idle = sorted(set(range(dataset.num_users + 1)) - set(own_in_training(dataset)))
    assert len(idle) > 1  # code 0, and a user who came after training
    assert not bool(lists.valid_BK[idle].any())
    assert bool((lists.item_BK[idle] == 0).all())
    assert bool((lists.score_BK[idle] == -torch.inf).all())


@pytest.mark.parametrize("first", ["retrieval", "hand-made"])
def test_a_list_is_what_the_last_of_several_stages_keeps(dataset: Dataset, first: str) -> None:
    recall: Stage = recall_stage(dataset, keep=12) if first == "retrieval" else Formula("recall", 12, catalogue=30)
    middle, last = Formula("prerank", 8), Formula("rank", 5)
    lists = upstream_lists(Cascade((recall, middle, last)), dataset)
    assert lists.item_BK.shape == (dataset.num_users + 1, 5)
    recalled = rows_of(upstream_lists(Cascade((recall,)), dataset))
    for user, items in enumerate(rows_of(lists)):
        assert items == sorted(recalled[user], key=lambda item: (-((7 * item + user) % 13), item))[:5]
    # every later stage was asked at the same moment, of the same log
    for stage in (middle, last):
        assert {requests.part for requests in stage.asked} == {"valid"}
        assert torch.equal(
            torch.cat([requests.user_B for requests in stage.asked]), torch.tensor(sorted(own_in_training(dataset)))
        )


def test_requests_are_at_the_end_of_training_in_each_users_last_context(dataset: Dataset) -> None:
    requests = end_of_training_requests(dataset)
    users = sorted(own_in_training(dataset))
    assert requests.user_B.tolist() == users
    assert requests.part == "valid"
    assert requests.request_B is None
    for number, user in enumerate(users):
        want = end_request(dataset, user)
        assert int(requests.time_B[number]) == int(want.time_B)
        for name in ("device", "hour"):
            assert float(requests.context[name][number]) == float(want.context[name])
    # With the global time split all that is later belongs to the other parts.
    assert int(dataset.events.time_N[dataset.rows("valid")].min()) >= int(requests.time_B[0])


def test_item_statistics_of_later_parts_do_not_reach_the_lists(tiny_dataset: Path) -> None:
    head, tail = tiny_dataset.read_text("utf-8").split('name = "item_click_rate"')
    tiny_dataset.write_text(f'{head}name = "item_click_rate"{tail.replace("rank", "recall", 1)}', "utf-8")
    definition, file = load_dataset_definition(tiny_dataset)
    dataset = load(prepare(definition, base=file.parent))
    assert "item_click_rate" in [feature.name for feature in dataset.online("recall")]
    events = dataset.events
    labels = {name: torch.where(events.part_N > 0, 1 - y_N, y_N) for name, y_N in events.labels.items()}
    changed = replace(dataset, events=replace(events, labels=labels))
    before = upstream_lists(Cascade((recall_stage(dataset, keep=20),)), dataset)
    after = upstream_lists(Cascade((recall_stage(changed, keep=20),)), changed)
    assert torch.equal(before.score_BK, after.score_BK)
    assert torch.equal(before.item_BK, after.item_BK)


LONG_REQUEST = """user,item,time,request,click
a,i1,0,r0,1
b,i2,10,r1,1
a,i3,20,r2,0
b,i1,30,r3,0
a,i2,40,r4,1
b,i3,50,r5,0
a,i1,60,r6,1
a,i4,900,r6,1
b,i4,100,r7,1
b,i5,200,r8,1
"""
LONG_REQUEST_DATASET = """
name = "long-request"
licence = "none"
[tables.events]
file = "log.csv"
[roles]
user = "user"
item = "item"
time = "time"
request = "request"
[labels]
click = "click = 1"
[[feature]]
name = "last"
kind = "history"
side = "user"
length = 5
available = "recall"
[split]
kind = "time"
"""


def test_a_training_request_that_outlasts_the_cut_brings_no_later_events(tmp_path: Path) -> None:
    """A request is of the part it begins in: r6 is of training, and r7 (validation) and r8 (test) lie within it."""
    (tmp_path / "log.csv").write_text(LONG_REQUEST, "utf-8")
    (tmp_path / "long.toml").write_text(LONG_REQUEST_DATASET, "utf-8")
    definition, file = load_dataset_definition(tmp_path / "long.toml")
    dataset = load(prepare(definition, base=file.parent))
    later = dataset.events.part_N > 0
    assert dataset.events.time_N[later].tolist() == [100, 200]
    requests = end_of_training_requests(dataset)
    histories = dataset.user_inputs(["last"], requests, part=requests.part)["last"]
    assert not set(dataset.events.item_N[later].tolist()) & set(histories[requests.user_B == 2].flatten().tolist())

"""The lists of a pair: what the teacher is given, that it orders as it serves, and what is never read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cascade_kd.config import load_experiment
from cascade_kd.data import Dataset
from cascade_kd.errors import UserError
from cascade_kd.experiment import lists as lists_module
from cascade_kd.experiment.lists import check_lists, ordered_lists
from cascade_kd.experiment.rounds import train_rounds
from cascade_kd.experiment.store import Store
from cascade_kd.experiment.workshop import Round, Trained, Workshop
from cascade_kd.train import ProgressLog
from cascade_kd.train.lists import end_of_training_requests
from cascade_kd.train.teacher_lists import TeacherLists

PAIR = '[[distill]]\nteacher = "{}"\nstudent = "{}"\nmethod = "{}"\n{}\n'


class World:
    """A trained round 0 and the lists that pairs get from it."""

    def __init__(self, shop: Workshop, before: Round, tiny: Callable[..., Path]) -> None:
        self.shop, self.before, self.tiny = shop, before, tiny

    def lists(
        self, *, teacher: str = "rank", student: str = "recall", method: str = "rrd", keys: str = ""
    ) -> TeacherLists:
        config = load_experiment(self.tiny(distill=PAIR.format(teacher, student, method, keys)))
        (pair,) = config.distill
        names = [stage.name for stage in config.stages]
        upstream = [self.before[name] for name in names[: names.index(student)]]
        return ordered_lists(replace(self.shop, config=config), pair, self.before, upstream, "a title")  # type: ignore[arg-type]

    def on(self, dataset: Dataset) -> World:
        """The same models over other data."""
        moved = {
            name: Trained(replace(trained.stage, dataset=dataset, **self._no_index(trained)), trained.key)  # type: ignore[type-var]
            for name, trained in self.before.items()
        }
        return World(replace(self.shop, dataset=replace(dataset, sha256="other")), moved, self.tiny)

    @staticmethod
    def _no_index(trained: Trained) -> dict[str, Any]:
        return {"_indices": {}} if hasattr(trained.stage, "_indices") else {}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("round-0")


@pytest.fixture
def world(tiny: Callable[..., Path], dataset: Dataset, tmp_path: Path, store: Path) -> World:
    with ProgressLog(quiet=True) as progress:
        shop = Workshop(load_experiment(tiny(epochs=1, distill="")), dataset, tmp_path / "run", Store(store), progress)
        (before,) = train_rounds(shop, 0)
        return World(replace(shop, store=Store(tmp_path / "store")), before, tiny)


def test_a_catalogue_is_every_item_that_the_user_has_not_in_training(world: World, dataset: Dataset) -> None:
    world.before["rank"] = Trained(replace(world.before["rank"].stage, upstream_weight=0.0), "alone")  # type: ignore[type-var]
    lists = world.lists(keys="depth = 80\nlists = 'catalogue'")
    requests = end_of_training_requests(dataset)
    assert torch.equal(lists.requests.user_B, requests.user_B)
    item = lists.columns["item"].long()
    for user, items in zip(requests.user_B.tolist(), item.tolist(), strict=True):
        have = dataset.events.item_N[dataset.rows("train")][dataset.events.user_N[dataset.rows("train")] == user]
        assert sorted(i for i in items if i) == sorted(set(range(1, dataset.num_items + 1)) - set(have.tolist()))
    stage: Any = world.before["rank"].stage
    row, place = (item > 0).nonzero(as_tuple=True)
    logits = stage.logits(requests, item[row, place], row)
    torch.testing.assert_close(lists.columns["score"][row, place], logits)
    assert (lists.columns["score"].diff(dim=1)[item[:, 1:] > 0] <= 0).all()


def test_upstream_lists_are_what_the_stages_before_hand_on(world: World, dataset: Dataset) -> None:
    lists = world.lists(student="prerank", keys="lists = 'upstream'")
    recall: Any = replace(world.before["recall"].stage, mask_seen=True)  # type: ignore[type-var]
    handed = recall(lists.requests, None)
    ours = lists.columns["item"].long()
    assert torch.equal(ours.sort(dim=1).values, handed.item_BK.sort(dim=1).values)
    assert not torch.equal(ours, handed.item_BK)
    assert not dataset.is_seen(lists.requests.user_B, ours, part="train")[ours > 0].any()


def test_a_two_tower_teacher_searches_its_index(world: World) -> None:
    lists = world.lists(teacher="recall", student="prerank", keys="depth = 6\nlists = 'catalogue'")
    recall: Any = replace(world.before["recall"].stage, keep=6, mask_seen=True)  # type: ignore[type-var]
    assert torch.equal(lists.columns["item"].long(), recall(lists.requests, None).item_BK)


@pytest.mark.parametrize(("student", "kind"), [("recall", "catalogue"), ("prerank", "upstream")])
def test_a_teacher_that_counts_scores_in_orders_as_it_serves(world: World, student: str, kind: str) -> None:
    prerank: Any = replace(world.before["prerank"].stage, upstream_weight=0.5)  # type: ignore[type-var]
    rank: Any = replace(world.before["rank"].stage, upstream_weight=2.0)  # type: ignore[type-var]
    recall: Any = world.before["recall"].stage
    world.before |= {"prerank": Trained(prerank, "p"), "rank": Trained(rank, "r")}
    lists = world.lists(student=student, keys=f"depth = 80\nlists = '{kind}'")
    item, asked = lists.columns["item"].long(), lists.requests
    row, place = (item > 0).nonzero(as_tuple=True)
    item_R = item[row, place]
    vectors = recall.item_vectors("valid")[item_R - 1]
    score = (recall.user_vectors(asked)[row] * vectors).sum(1)
    wanted = rank.logits(asked, item_R, row) + 2.0 * (prerank.logits(asked, item_R, row) + 0.5 * score)
    torch.testing.assert_close(lists.columns["score"][row, place], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("keys", ["lists = 'catalogue'", "lists = 'upstream'", "lists = 'requests'"])
def test_no_event_of_validation_or_test_is_read(world: World, dataset: Dataset, keys: str) -> None:
    later = dataset.events.part_N > 0
    item = dataset.events.item_N.clone()
    item[later] = item[later] % dataset.num_items + 1  # every later event is of another item
    labels = {name: torch.where(later, 1 - x, x) for name, x in dataset.events.labels.items()}
    other = replace(dataset, events=replace(dataset.events, item_N=item, labels=labels))
    assert not torch.equal(other.events.item_N, dataset.events.item_N)
    ours = world.lists(student="prerank", keys=keys)
    theirs = world.on(other).lists(student="prerank", keys=keys)
    for name, column in ours.columns.items():
        assert torch.equal(column, theirs.columns[name]), name


def test_an_approximate_teacher_orders_the_first_stages_best(world: World) -> None:
    lists = world.lists(keys="depth = 3\nlists = 'catalogue'\napproximate = true")
    recall: Any = replace(world.before["recall"].stage, keep=30, mask_seen=True)  # type: ignore[type-var]
    best = recall(lists.requests, None).item_BK
    assert (lists.columns["item"].long().unsqueeze(2) == best.unsqueeze(1)).any(2).all()


def test_a_large_catalogue_is_refused_before_the_training(
    world: World, dataset: Dataset, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists_module, "LARGE_CATALOGUE", 79)
    config = load_experiment(tiny(distill=PAIR.format("rank", "recall", "rrd", "lists = 'catalogue'")))
    with pytest.raises(UserError, match=r"80 items for every training user; at most 79 .* approximate = true"):
        check_lists(config, dataset)
    monkeypatch.setattr(lists_module, "LARGE_CATALOGUE", 80)
    check_lists(config, dataset)


def test_no_list_long_enough_is_said(world: World, dataset: Dataset) -> None:
    alone = replace(dataset, events=replace(dataset.events, request_N=torch.arange(len(dataset.events.user_N))))
    with pytest.raises(
        UserError, match=r"rank->prerank:rrd: 0 lists in the order of 'rank' \(requests\), [\d,]+ shorter"
    ):
        world.on(alone).lists(student="prerank", keys="lists = 'requests'")

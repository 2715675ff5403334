"""Lists in a teacher's order: what they are made of, their order, and that work which was done is not done again."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cascade_kd.data import Dataset
from cascade_kd.train.teacher_lists import ListOrder, logged_lists, order_logged, teacher_lists
from cascade_kd.types import Candidates, Requests


class Teacher:
    """Scores an item by a table, so that ties occur; with or without the signal ``logits``."""

    name, level, keep = "teacher", "never", 5

    def __init__(self, num_items: int, *signals: str) -> None:
        self.signals = frozenset(signals)
        self.score = torch.randint(0, 9, (num_items + 1,), generator=torch.Generator().manual_seed(3)).float()
        self.events: list[Tensor] = []

    def logits(self, requests: Requests, item_R: Tensor, row_R: Tensor, event_R: Tensor | None = None) -> Tensor:
        assert event_R is not None
        self.events.append(event_R)
        return self.score[item_R]

    def order(self, requests: Requests, candidates: Candidates | None) -> Candidates:
        assert candidates is not None
        return candidates.with_scores(self.score[candidates.item_BK])

    def __call__(self, requests: Requests, candidates: Candidates | None) -> Candidates:
        return self.order(requests, candidates).top(self.keep)


def by_hand(dataset: Dataset) -> dict[int, list[int]]:
    """The training events of every request, in the order of their rows, an item's first alone."""
    events, found = dataset.events, defaultdict[int, list[int]](list)
    assert events.request_N is not None
    for row in dataset.rows("train").tolist():
        rows = found[int(events.request_N[row])]
        if int(events.item_N[row]) not in {int(events.item_N[r]) for r in rows}:
            rows.append(row)
    return found


def test_logged_lists_are_the_training_events_of_a_request(dataset: Dataset) -> None:
    lists, wanted = logged_lists(dataset), by_hand(dataset)
    assert len(lists.requests) == len(wanted)
    for number, rows in enumerate(lists.event_LK.tolist()):
        request = int(lists.requests.request_B[number])  # type: ignore[index]
        assert [row for row in rows if row >= 0] == wanted[request]
        assert int(lists.requests.time_B[number]) == int(dataset.events.time_N[min(wanted[request])])
    assert torch.equal(lists.item_LK > 0, lists.event_LK >= 0)
    assert lists.requests.part == "train"


def test_a_logs_lists_stand_as_they_were_shown(dataset: Dataset) -> None:
    shown = torch.randperm(len(dataset.events.user_N), generator=torch.Generator().manual_seed(1))
    positioned = replace(dataset, events=replace(dataset.events, position_N=shown))
    lists, rows_of = logged_lists(positioned, by_position=True), by_hand(dataset)
    for number, rows in enumerate(lists.event_LK.tolist()):
        there = [row for row in rows if row >= 0]
        assert there == sorted(there, key=lambda row: int(shown[row]))
        request = int(lists.requests.request_B[number])  # type: ignore[index]
        items = {int(dataset.events.item_N[row]) for row in rows_of[request]}
        assert {int(dataset.events.item_N[row]) for row in there} == items


def test_lists_are_ordered_by_score_and_ties_by_code(dataset: Dataset) -> None:
    lists = logged_lists(dataset)
    number = torch.arange(len(lists.requests))
    teacher = Teacher(dataset.num_items, "ranking", "logits")
    got = order_logged(teacher, lists, number, None)  # type: ignore[arg-type]
    for item, events, score, given in zip(
        got["item"].tolist(), got["event"].tolist(), got["score"].tolist(), lists.item_LK.tolist(), strict=True
    ):
        there = [i for i in given if i]
        wanted = sorted(there, key=lambda i: (-float(teacher.score[i]), i))
        assert item[: len(there)] == wanted
        assert [int(dataset.events.item_N[e]) for e in events[: len(there)]] == wanted
        assert score[: len(there)] == [float(teacher.score[i]) for i in wanted]
    assert torch.cat(teacher.events).min() >= 0  # the teacher knows the events' own columns

    ranking = order_logged(Teacher(dataset.num_items, "ranking"), lists, number, None)  # type: ignore[arg-type]
    assert "score" not in ranking
    assert torch.equal(ranking["item"], got["item"])
    assert torch.equal(ranking["event"], got["event"])
    short = order_logged(teacher, lists, number[:4], 2)  # type: ignore[arg-type]
    assert torch.equal(short["item"], got["item"][:4, :2])


def test_a_block_that_was_done_is_not_done_again(dataset: Dataset, tmp_path: Path) -> None:
    lists = logged_lists(dataset)
    teacher: Any = Teacher(dataset.num_items, "ranking", "logits")
    done: list[int] = []
    told: list[tuple[int, int]] = []

    def ordered(number: Tensor) -> dict[str, Tensor]:
        if len(done) == 2 and not told.count((0, 0)):
            told.append((0, 0))
            raise KeyboardInterrupt
        done.append(int(number[0]))
        return order_logged(teacher, lists, number, 3)

    def make(folder: str) -> Any:
        return teacher_lists(
            tmp_path / folder,
            lists.requests,
            ordered,
            lists_per_block=50,
            advance=lambda at, of: told.append((at, of)),
        )

    with pytest.raises(KeyboardInterrupt):
        make("a")
    made = make("a")
    blocks = -(-len(lists.requests) // 50)
    assert done == [50 * block for block in range(blocks)]
    assert told[-1] == (blocks, blocks)
    again = make("a")
    assert len(done) == blocks
    assert [path.name for path in tmp_path.glob("a*")] == ["a"]
    whole = make("b")
    for name in ("item", "score", "event"):
        assert torch.equal(made.columns[name], whole.columns[name])
        assert torch.equal(made.columns[name], again.columns[name])

    length = (lists.item_LK > 0).sum(1)
    assert made.dropped == int((length < 2).sum())
    assert len(made) == len(made.requests) == int((length >= 2).sum())
    batch = made.batch(torch.tensor([0, 5, 7]))
    assert batch.item_BK.shape[1] == min(3, int(length[made.number_L[[0, 5, 7]]].max()))
    assert torch.equal(batch.requests.user_B, lists.requests.user_B[made.number_L[[0, 5, 7]]])


def test_every_list_comes_once_before_any_comes_again() -> None:
    order = ListOrder(10, 4, seed=1)
    for start in (0, 3, 6):
        taken = torch.cat([order.at(step) for step in range(start, start + 3)])
        assert taken.sort().values.tolist() == list(range(10))
    assert torch.equal(order.at(4), ListOrder(10, 4, seed=1).at(4))
    assert not torch.equal(order.at(0), order.at(3))
    assert ListOrder(3, 64, seed=1).at(9).sort().values.tolist() == [0, 1, 2]

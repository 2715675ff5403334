"""The requests that offline evaluation asks, against a loop over the log."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from cascade_kd.data import Dataset, PackedRequests, evaluation_requests
from cascade_kd.types import PARTS, Part


def grouped(dataset: Dataset, part: Part, label: str) -> dict[int, tuple[int, set[int]]]:
    """First event and positives of every request of the part, or of every user where there are no requests."""
    events = dataset.events
    groups = events.user_N if events.request_N is None else events.request_N
    rows = zip(
        groups.tolist(), events.item_N.tolist(), events.part_N.tolist(), events.labels[label].tolist(), strict=True
    )
    found: dict[int, tuple[int, set[int]]] = {}
    for number, (group, item, in_part, positive) in enumerate(rows):
        if PARTS[in_part] == part:
            own = found.setdefault(group, (number, set()))[1]
            if positive:
                own.add(item)
    return found


@pytest.mark.parametrize("part", ["valid", "test", "train"])
@pytest.mark.parametrize("label", ["click", "conversion"])
@pytest.mark.parametrize("with_requests", [True, False])
def test_one_request_a_request_else_one_a_user(dataset: Dataset, part: Part, label: str, with_requests: bool) -> None:
    if not with_requests:
        dataset = replace(dataset, events=replace(dataset.events, request_N=None))
    events = dataset.events
    found = grouped(dataset, part, label)
    want = {group: (first, own) for group, (first, own) in sorted(found.items()) if own}
    asked = evaluation_requests(dataset, part, label)
    first = torch.tensor([number for number, _ in want.values()])

    assert asked.num_without == len(found) - len(want) > 0
    assert asked.requests.part == part
    assert asked.requests.user_B.tolist() == events.user_N[first].tolist()
    assert asked.requests.time_B.tolist() == events.time_N[first].tolist()
    for name in ("device", "hour"):
        assert torch.equal(asked.requests.context[name], events.columns[name][first])
    if with_requests:
        assert asked.requests.request_B is not None
        assert asked.requests.request_B.tolist() == list(want)
    else:
        assert asked.requests.request_B is None
        assert len(set(asked.requests.user_B.tolist())) == len(want)
    offsets = asked.offsets_B1.tolist()
    assert offsets[0] == 0
    rows = [asked.positive_P[start:end].tolist() for start, end in pairwise(offsets)]
    assert rows == [sorted(own) for _, own in want.values()]
    assert offsets[-1] == len(asked.positive_P)


def test_a_users_moment_is_the_first_event_even_if_it_is_no_positive(dataset: Dataset) -> None:
    dataset = replace(dataset, events=replace(dataset.events, request_N=None))
    asked = evaluation_requests(dataset, "test", "click")
    events = dataset.events
    rows = dataset.rows("test")
    later = 0
    for user, time in zip(asked.requests.user_B.tolist(), asked.requests.time_B.tolist(), strict=True):
        own = rows[events.user_N[rows] == user]
        assert time == int(events.time_N[own].min())
        later += time < int(events.time_N[own[events.labels["click"][own] > 0]].min())
    assert later > 0


def test_an_item_that_is_positive_twice_counts_once(dataset: Dataset) -> None:
    events = dataset.events
    rows = dataset.rows("test")
    item_N, click_N = events.item_N.clone(), events.labels["click"].clone()
    request = events.request_N
    assert request is not None
    own = rows[request[rows] == request[rows[0]]]
    item_N[own], click_N[own] = 7, 1.0
    changed = replace(events, item_N=item_N, labels={"click": click_N})
    asked = evaluation_requests(replace(dataset, events=changed), "test", "click")
    assert len(own) > 1
    place = (asked.requests.request_B == request[rows[0]]).nonzero().item()  # type: ignore[union-attr]
    assert asked.positive_P[asked.offsets_B1[place] : asked.offsets_B1[place + 1]].tolist() == [7]


def test_a_part_without_a_positive_asks_nothing(dataset: Dataset) -> None:
    nothing = {"click": torch.zeros_like(dataset.events.labels["click"])}
    asked = evaluation_requests(replace(dataset, events=replace(dataset.events, labels=nothing)), "test", "click")
    assert len(asked.requests) == 0
    assert asked.offsets_B1.tolist() == [0]
    assert len(asked.positive_P) == 0
    assert asked.num_without == len(grouped(dataset, "test", "click"))


@pytest.mark.parametrize("with_requests", [True, False])
def test_packed_requests_are_the_requests(dataset: Dataset, with_requests: bool) -> None:
    if not with_requests:
        dataset = replace(dataset, events=replace(dataset.events, request_N=None))
    asked = dataset.requests_of(dataset.rows("train"), part="train")
    # Numbers and tags stay beside the packed codes.
    more = {"price": torch.rand(len(asked)), "tags": torch.randint(0, 9, (len(asked), 3))}
    asked = replace(asked, context={**asked.context, **more})
    rows_B = torch.randperm(len(asked))[:50]
    got, want = PackedRequests(asked)[rows_B], asked[rows_B]
    for name in ("user_B", "time_B", "request_B"):
        torch.testing.assert_close(getattr(got, name), getattr(want, name), rtol=0, atol=0)
    assert set(got.context) == set(want.context)
    for name, column in want.context.items():
        torch.testing.assert_close(got.context[name], column, rtol=0, atol=0)
    assert got.part == "train"

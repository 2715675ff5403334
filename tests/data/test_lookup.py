"""Histories, statistics and seen items against double loops over all events."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_kd.data.log_index import build_index
from cascade_kd.data.lookup import Events, History, Lookup
from cascade_kd.data.seen import seen_pairs
from cascade_kd.data.statistic import Statistic
from cascade_kd.errors import DataError

OFFSET = 1_000
KEYS = [
    ("user",),
    ("item",),
    ("user", "item"),
    ("user", "item.tags"),
    ("item.category", "user"),
    ("user.segment", "item.tags"),
    ("context.device", "item"),
    ("context.device", "user"),
    ("item.tags",),
    ("item.tags", "item.category"),
    ("user.hobbies", "item.tags"),
]
AGGREGATES = [
    ("count", None, 10.0),
    ("count", "buy", 10.0),
    ("sum", "like", 10.0),
    ("mean", "like", 10.0),
    ("mean", "buy", 0.0),
    ("recency", None, 10.0),
    ("recency", "like", 10.0),
]
WINDOWS = [None, 1, 4]
SPAN = 17
STATISTICS = [
    Statistic(
        f"{'+'.join(keys)}:{aggregate}:{value}:{smoothing}:{window}",
        keys,
        aggregate,
        value,
        smoothing,
        prior=0.3,
        window=window,
        span=window or SPAN,
    )
    for keys in KEYS
    for aggregate, value, smoothing in AGGREGATES
    for window in WINDOWS
]
HISTORIES = [History("all", 3, None), History("liked", 50, "like")]


def ints(low: int, high: int, *shape: int, generator: torch.Generator) -> torch.Tensor:
    """Uniform int64 in low..high, both included."""
    return torch.randint(low, high + 1, shape, generator=generator)


def some_tags(rows: int, tags: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """[rows + 1, width] tags, 0 (padding, unknown) anywhere among them, some twice; row 0 has none."""
    table = ints(0, tags, rows + 1, width, generator=generator)
    table[0] = 0
    return table


def make_lookup(seed: int, *, users: int, items: int, events: int, split: str, sparse: bool = False) -> Lookup:
    """A random log with ties, unknown attributes (code 0) and rows of all parts, sorted as a prepared set is."""
    g = torch.Generator().manual_seed(seed)
    user_N, time_N = ints(1, users, events, generator=g), ints(OFFSET, OFFSET + 8, events, generator=g)
    order_N = (user_N * 100_000 + time_N).argsort(stable=True)
    log = Events(
        user_N=user_N[order_N],
        item_N=ints(1, items, events, generator=g),
        time_N=time_N[order_N],
        part_N=ints(0, 2, events, generator=g).to(torch.uint8),
        labels={name: ints(0, 1, events, generator=g).float() for name in ("like", "buy")},
        columns={"device": ints(0, 2, events, generator=g)},
    )
    segment_U, category_I = ints(0, 2, users + 1, generator=g), ints(0, 2, items + 1, generator=g)
    segment_U[0] = category_I[0] = 0
    sizes = {"user": users + 1, "item": items + 1, "user.segment": 3, "item.category": 3, "context.device": 3}
    sizes |= {"item.tags": 5, "user.hobbies": 4}
    if sparse:  # as if the vocabularies were large: combinations are searched for instead of addressed
        sizes = dict.fromkeys(sizes, 1 << 20)
    return Lookup(
        events=log,
        users={"segment": segment_U, "hobbies": some_tags(users, 3, 2, g)},
        items={"category": category_I, "tags": some_tags(items, 4, 3, g)},
        sizes=sizes,
        split=split,
        time_offset=OFFSET,
    )


def may_read(lookup: Lookup, event: int, part: str) -> bool:
    if lookup.split == "time":
        return True
    return int(lookup.events.part_N[event]) in ((0, 1) if part == "test" else (0,))


def codes_of(lookup: Lookup, key: str, user: int, item: int, device: int) -> list[int]:
    """The known codes that a key takes for one event or one query."""
    plain = {
        "user": user,
        "item": item,
        "context.device": device,
        "user.segment": int(lookup.users["segment"][user]),
        "item.category": int(lookup.items["category"][item]),
    }
    codes = [plain[key]] if key in plain else None
    if codes is None:
        table, row = (lookup.items["tags"], item) if key == "item.tags" else (lookup.users["hobbies"], user)
        codes = table[row].tolist()
    return [code for code in codes if code > 0]


def combinations(lookup: Lookup, keys: tuple[str, ...], user: int, item: int, device: int) -> list[tuple[int, ...]]:
    groups: list[tuple[int, ...]] = [()]
    for key in keys:
        groups = [(*group, code) for group in groups for code in codes_of(lookup, key, user, item, device)]
    return groups


def matches(
    lookup: Lookup, keys: tuple[str, ...], user: int, item: int, time: int, device: int, part: str
) -> list[tuple[int, int, int]]:
    """(event, its age in seconds, how often it counts) of every earlier event that shares the keys.

    An event counts once for each pair of one of its combinations of codes and an equal one that is asked for.
    """
    wanted = combinations(lookup, keys, user, item, device)
    log = lookup.events
    found = []
    for event in range(len(log.user_N)):
        age = time - int(log.time_N[event])
        if age <= 0 or not may_read(lookup, event, part):
            continue
        row = int(log.user_N[event]), int(log.item_N[event]), int(log.columns["device"][event])
        hits = sum(group == other for group in combinations(lookup, keys, *row) for other in wanted)
        found += [(event, age, hits)] * (hits > 0)
    return found


def slow_number(lookup: Lookup, s: Statistic, events: list[tuple[int, int, int]]) -> float:
    """The definition, event by event."""
    count, total, ages = 0, 0, []
    for event, age, hits in events:
        if s.window is not None and age > s.window:
            continue
        true = s.value is None or float(lookup.events.labels[s.value][event]) > 0
        count += hits
        total += hits * true
        ages += [age] * true
    if s.aggregate == "mean":
        return (total + s.smoothing * s.prior) / (count + s.smoothing) if count + s.smoothing else s.prior
    if s.aggregate == "recency":
        return math.log1p(min(ages, default=s.span))
    return math.log1p(total)


def slow_history(lookup: Lookup, history: History, user: int, time: int, part: str) -> list[int]:
    log = lookup.events
    items = [
        int(log.item_N[event])
        for event in range(len(log.user_N))
        if int(log.user_N[event]) == user
        and int(log.time_N[event]) < time
        and may_read(lookup, event, part)
        and (history.events is None or float(log.labels[history.events][event]) > 0)
    ]
    recent = items[::-1][: history.length]
    return recent + [0] * (history.length - len(recent))


worlds = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10_000),
        "users": st.integers(1, 4),
        "items": st.integers(1, 5),
        "events": st.integers(0, 25),
        "split": st.sampled_from(["per-user-time", "time", "leave-last-out"]),
        "sparse": st.booleans(),
    }
)
parts = st.sampled_from(["train", "valid", "test"])


@settings(deadline=None, max_examples=25)
@given(world=worlds, part=parts, one_request=st.booleans())
def test_statistics_equal_the_double_loop(world, part, one_request):
    lookup = make_lookup(**world)
    g = torch.Generator().manual_seed(world["seed"] + 1)
    rows = 12 if one_request else 6
    user_R = ints(0, world["users"], rows, generator=g)
    time_R = ints(OFFSET - 2, OFFSET + 12, rows, generator=g)
    device_R = ints(0, 2, rows, generator=g)
    if one_request:  # many candidates of one request take the path of one search per code
        user_R, time_R, device_R = user_R[:1].expand(rows), time_R[:1].expand(rows), device_R[:1].expand(rows)
    item_R = ints(0, world["items"], rows, generator=g)
    answers = lookup.statistics(
        STATISTICS, user_R=user_R, item_R=item_R, time_R=time_R, context={"device": device_R}, part=part
    )
    assert answers.keys() == {s.name for s in STATISTICS}
    queries = list(zip(user_R.tolist(), item_R.tolist(), time_R.tolist(), device_R.tolist(), strict=True))
    found = {keys: [matches(lookup, keys, *query, part) for query in queries] for keys in KEYS}
    for s in STATISTICS:
        wanted = torch.tensor([slow_number(lookup, s, events) for events in found[s.keys]])
        assert answers[s.name].dtype == torch.float32
        torch.testing.assert_close(answers[s.name], wanted, rtol=1e-6, atol=0, msg=lambda m, s=s: f"{s.name}: {m}")


@settings(deadline=None, max_examples=60)
@given(world=worlds, part=parts)
def test_histories_equal_the_double_loop(world, part):
    lookup = make_lookup(**world)
    g = torch.Generator().manual_seed(world["seed"] + 1)
    user_B = ints(0, world["users"], 8, generator=g)
    time_B = ints(OFFSET - 2, OFFSET + 12, 8, generator=g)
    answers = lookup.histories(HISTORIES, user_B, time_B, part)
    for history in HISTORIES:
        wanted = [
            slow_history(lookup, history, user, time, part)
            for user, time in zip(user_B.tolist(), time_B.tolist(), strict=True)
        ]
        assert answers[history.name].tolist() == wanted


def test_many_candidates_of_few_requests_equal_shuffled_rows():
    """One search per (request, tag) gives what one search per row gives."""
    lookup = make_lookup(3, users=4, items=30, events=400, split="per-user-time")
    user_R = torch.tensor([2, 4, 1]).repeat_interleave(60)
    time_R = torch.tensor([OFFSET + 5, OFFSET + 9, OFFSET + 3]).repeat_interleave(60)
    item_R = ints(0, 30, 180, generator=torch.Generator().manual_seed(0))
    context = {"device": torch.tensor([1, 0, 2]).repeat_interleave(60)}
    by_request = lookup.statistics(
        STATISTICS, user_R=user_R, item_R=item_R, time_R=time_R, context=context, part="test"
    )
    order_R = torch.arange(180).view(3, 60).T.flatten()  # no two neighbours of one request
    by_row = lookup.statistics(
        STATISTICS,
        user_R=user_R[order_R],
        item_R=item_R[order_R],
        time_R=time_R[order_R],
        context={"device": context["device"][order_R]},
        part="test",
    )
    for name, values in by_request.items():
        assert torch.equal(values[order_R], by_row[name]), name
    for name in ("count:None:10.0:None", "count:None:10.0:4", "recency:like:10.0:None"):
        assert by_request[f"user+item.tags:{name}"].unique().numel() > 2, "the rows differ"


def test_statistics_of_the_same_keys_share_their_index():
    lookup = make_lookup(0, users=3, items=4, events=20, split="time")
    same = [s for s in STATISTICS if s.keys == ("user", "item.tags")]
    same.append(Statistic("other order", ("item.tags", "user"), "count", None, 10.0, prior=0.3))
    one = torch.ones(2, dtype=torch.int64)
    answers = lookup.statistics(same, user_R=one, item_R=one, time_R=one + OFFSET + 9, context={}, part="train")
    assert len(lookup._indices) == 1
    assert torch.equal(answers["other order"], answers[same[0].name])


def test_an_event_of_the_same_second_is_not_before():
    log = Events(
        user_N=torch.tensor([1, 1]),
        item_N=torch.tensor([1, 2]),
        time_N=torch.tensor([OFFSET, OFFSET + 1]),
        part_N=torch.zeros(2, dtype=torch.uint8),
        labels={},
        columns={},
    )
    lookup = Lookup(log, {}, {}, {"user": 2, "item": 3}, "per-user-time", OFFSET)
    time_B = torch.tensor([OFFSET, OFFSET + 1, OFFSET + 2])
    answers = lookup.histories([History("h", 2, None)], torch.ones(3, dtype=torch.int64), time_B, "train")
    assert answers["h"].tolist() == [[0, 0], [1, 0], [2, 1]]


def test_a_window_holds_its_first_second_and_not_the_last():
    """Events at 0 (liked), 10 and 20: [t - 10, t)."""
    log = Events(
        user_N=torch.ones(3, dtype=torch.int64),
        item_N=torch.tensor([1, 2, 3]),
        time_N=OFFSET + torch.tensor([0, 10, 20]),
        part_N=torch.zeros(3, dtype=torch.uint8),
        labels={"like": torch.tensor([1.0, 0.0, 0.0])},
        columns={},
    )
    lookup = Lookup(log, {}, {}, {"user": 2}, "per-user-time", OFFSET)
    time_R = OFFSET + torch.tensor([0, 1, 10, 11, 20, 21, 31])
    one_R = torch.ones(7, dtype=torch.int64)
    wanted = [
        Statistic("count", ("user",), "count", None, 0, prior=0, window=10, span=10),
        Statistic("liked", ("user",), "count", "like", 0, prior=0, window=10, span=10),
        Statistic("last", ("user",), "recency", None, 0, prior=0, window=10, span=10),
        Statistic("last liked", ("user",), "recency", "like", 0, prior=0, span=20),
    ]
    found = lookup.statistics(wanted, user_R=one_R, item_R=one_R, time_R=time_R, context={}, part="train")
    numbers = {name: x.expm1().round().int().tolist() for name, x in found.items()}
    assert numbers == {
        "count": [0, 1, 1, 1, 1, 1, 0],
        "liked": [0, 1, 1, 0, 0, 0, 0],
        "last": [10, 1, 10, 1, 10, 1, 10],
        "last liked": [20, 1, 10, 11, 20, 21, 31],
    }


def test_too_many_combinations_are_refused():
    one = torch.ones(1, dtype=torch.int64)
    with pytest.raises(DataError, match="fewer keys"):
        build_index([one, one], [1 << 40, 1 << 40], one, one)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), events=st.integers(0, 30))
def test_seen_pairs_equal_sets(seed, events):
    g = torch.Generator().manual_seed(seed)
    user_N, item_N = ints(0, 4, events, generator=g), ints(0, 6, events, generator=g)
    seen = seen_pairs(user_N, item_N, 6)
    sets = {u: set() for u in range(6)}
    for u, i in zip(user_N.tolist(), item_N.tolist(), strict=True):
        if u and i:
            sets[u].add(i)
    user_B, item_BK = ints(0, 5, 7, generator=g), ints(0, 6, 7, 4, generator=g)
    wanted = [[i in sets[u] for i in row] for u, row in zip(user_B.tolist(), item_BK.tolist(), strict=True)]
    assert seen.contains(user_B, item_BK).tolist() == wanted
    assert seen.contains(user_B, item_BK[:, 0]).tolist() == [row[0] for row in wanted]
    offsets_B1, item_P = seen.of_users(user_B)
    bounds = zip(offsets_B1[:-1].tolist(), offsets_B1[1:].tolist(), strict=True)
    assert [item_P[a:b].tolist() for a, b in bounds] == [sorted(sets[u]) for u in user_B.tolist()]

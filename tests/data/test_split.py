"""Parts are counted by rounding, keep time order, and never tear a request apart."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_kd.data.draws import mixed, text_hashes, times_before
from cascade_kd.data.readers import PART
from cascade_kd.data.schema import SplitDefinition
from cascade_kd.data.split import DRAW, assign_parts
from cascade_kd.errors import DataError

SHARES = st.sampled_from(["0.05", "0.1", "0.15", "0.2", "0.25", "0.3", "0.45"])


def log(users: list[int], times: list[int] | None = None, requests: list[int] | None = None) -> pl.DataFrame:
    columns = {"user": users, "time": times or list(range(len(users)))}
    frame = pl.DataFrame(columns | ({} if requests is None else {"request": requests}))
    return frame.sort(frame.columns)


def half_up(count: int, share: str) -> int:
    return floor(Fraction(share) * count + Fraction(1, 2))


@settings(deadline=None, max_examples=60)
@given(counts=st.lists(st.integers(1, 45), min_size=1, max_size=8), valid=SHARES, test=SHARES)
def test_per_user_time_counts(counts: list[int], valid: str, test: str) -> None:
    counts = [*counts, 100]  # one user is large enough for all three parts
    events = log([user for user, count in enumerate(counts) for _ in range(count)])
    part = assign_parts(events, SplitDefinition(valid=float(valid), test=float(test)))
    for user, count in enumerate(counts):
        mine = part.filter(events["user"] == user).to_list()
        want = half_up(count, valid), half_up(count, test)
        if sum(want) >= count:
            want = 0, 0
        assert mine == [0] * (count - sum(want)) + [1] * want[0] + [2] * want[1]


@settings(deadline=None, max_examples=40)
@given(counts=st.lists(st.integers(1, 6), min_size=1, max_size=8))
def test_leave_last_out(counts: list[int]) -> None:
    counts = [*counts, 3]
    events = log([user for user, count in enumerate(counts) for _ in range(count)])
    part = assign_parts(events, SplitDefinition(kind="leave-last-out"))
    for user, count in enumerate(counts):
        mine = part.filter(events["user"] == user).to_list()
        assert mine == ([0] * (count - 2) + [1, 2] if count >= 3 else [0] * count)


@settings(deadline=None, max_examples=60)
@given(times=st.lists(st.integers(0, 30), min_size=30, max_size=120), valid=SHARES, test=SHARES)
def test_time_cuts(times: list[int], valid: str, test: str) -> None:
    split = SplitDefinition(kind="time", valid=float(valid), test=float(test))
    events = log([position % 7 for position in range(len(times))], times)
    ordered = sorted(times)
    tests, both = half_up(len(times), test), half_up(len(times), test) + half_up(len(times), valid)
    want = [2 if time >= ordered[-tests] else 1 if time >= ordered[-both] else 0 for time in events["time"]]
    if len(set(want)) < 3:  # ties filled a part
        with pytest.raises(DataError, match="part empty"):
            assign_parts(events, split)
        return
    part = assign_parts(events, split)
    assert part.to_list() == want
    assert (part == 2).sum() >= tests


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12), st.integers(0, 50)), min_size=40, max_size=120),
    kind=st.sampled_from(["per-user-time", "leave-last-out", "time"]),
)
def test_requests_stay_whole(rows: list[tuple[int, int, int]], kind: str) -> None:
    """Rows of requests in any time order, interleaved; user 9 has twenty requests, so that no part is empty."""
    rows = rows + [(9, request, 100 + request) for request in range(20)]
    events = log([user for user, _, _ in rows], [time for _, _, time in rows], [100 * u + r for u, r, _ in rows])
    shares = {} if kind == "leave-last-out" else {"valid": 0.1, "test": 0.2}
    part = assign_parts(events, SplitDefinition.model_validate({"kind": kind} | shares))
    found: dict[int, set[int]] = {}
    units: dict[int, list[int]] = {}  # user -> requests by first appearance
    for user, request, got in zip(events["user"], events["request"], part, strict=True):
        found.setdefault(request, set()).add(got)
        if request not in units.setdefault(user, []):
            units[user].append(request)
    assert all(len(parts) == 1 for parts in found.values())
    if kind == "time":
        return
    for requests in units.values():
        count = len(requests)
        valid, test = (1, 1) if kind == "leave-last-out" else (half_up(count, "0.1"), half_up(count, "0.2"))
        if count < 3 if kind == "leave-last-out" else valid + test >= count:
            valid = test = 0
        got = [found[request].pop() for request in requests]
        assert got == [0] * (count - valid - test) + [1] * valid + [2] * test


def test_files_say_their_part() -> None:
    events = log([1, 1, 2, 2]).with_columns(pl.Series(PART, [0, 1, 2, 0], pl.UInt8))
    assert assign_parts(events, SplitDefinition(kind="files")).to_list() == [0, 1, 2, 0]


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=60),
    valid=SHARES,
    by_request=st.booleans(),
    draw=st.none() | st.permutations(range(110)),
)
def test_validation_held_out_of_the_files(
    rows: list[tuple[int, bool]], valid: str, by_request: bool, draw: list[int] | None
) -> None:
    """Of each user's training units the last, or those of the smallest draws; a user of too few keeps all."""
    rows = sorted([*rows, *[(9, False)] * 40, (9, True), (9, True)], key=lambda row: row[0])  # 9 has enough
    events = log([user for user, _ in rows])
    events = events.with_columns(pl.Series(PART, [2 * is_test for _, is_test in rows], pl.UInt8))
    unit = [(user, number // 2 if by_request else number) for number, (user, _) in enumerate(rows)]
    if by_request:
        events = events.with_columns(pl.Series("request", [100 * user + request for user, request in unit]))
    if draw is not None:
        events = events.with_columns(pl.Series(DRAW, draw[: len(rows)], pl.UInt64))
    got = assign_parts(events, SplitDefinition(kind="files", valid=float(valid))).to_list()
    train: dict[tuple[int, int], list[int]] = {}
    for place, (_, is_test) in enumerate(rows):
        if not is_test:
            train.setdefault(unit[place], []).append(place)
    for user in {user for user, _ in rows}:
        units = [places for (owner, _), places in train.items() if owner == user]
        if draw is not None:
            units.sort(key=lambda places: -min(draw[place] for place in places))
        count = half_up(len(units), valid)
        held = {place for places in units[len(units) - count :] for place in places} if count < len(units) else set()
        for place in range(len(rows)):
            if rows[place][0] == user:
                assert got[place] == (2 if rows[place][1] else int(place in held))


def test_a_validation_part_of_the_files_stays() -> None:
    events = log([1] * 40).with_columns(pl.Series(PART, [0] * 38 + [1, 2], pl.UInt8))
    assert assign_parts(events, SplitDefinition(kind="files")).to_list() == [0] * 38 + [1, 2]


@settings(deadline=None, max_examples=40)
@given(values=st.lists(st.text(max_size=6), min_size=1, max_size=20))
def test_hashes_are_fnv(values: list[str]) -> None:
    for value, got in zip(values, text_hashes(pl.Series(values)).tolist(), strict=True):
        want = 0xCBF29CE484222325
        for byte in value.encode():
            want = (want ^ byte) * 0x100000001B3 % 2**64
        assert got == want


def test_draws_follow_from_the_ids_alone() -> None:
    """Whole numbers and the same as text, alone or among others, draw alike; repeats of a pair draw anew."""
    numbers, text = text_hashes(pl.Series([7, 12, 7])), text_hashes(pl.Series(["é" * 40, "7", "12"]))
    assert numbers.tolist() == [text[1], text[2], text[1]]
    drawn = mixed(numbers, numbers, np.arange(3, dtype=np.uint64))
    assert mixed(numbers[:1], numbers[:1], np.zeros(1, np.uint64))[0] == drawn[0]
    user_N, item_N = np.divmod(np.arange(100_000, dtype=np.uint64), np.uint64(1000))
    many = mixed(user_N, item_N, np.zeros(100_000, np.uint64))
    assert len(np.unique(many)) == 100_000
    assert abs((many < 2**63).mean() - 0.5) < 0.01
    assert len(text_hashes(pl.Series([], dtype=pl.String))) == 0


@settings(deadline=None, max_examples=40)
@given(keys=st.lists(st.integers(0, 4), max_size=30))
def test_times_before(keys: list[int]) -> None:
    assert times_before(np.array(keys, np.int64)).tolist() == [keys[:n].count(key) for n, key in enumerate(keys)]


@pytest.mark.parametrize(
    ("events", "kind", "part"),
    [
        (log([1, 1, 2, 2]), "leave-last-out", "valid"),
        (log([1, 1, 2, 2]), "per-user-time", "valid"),
        (log([1] * 20, [5] * 20), "time", "train"),
        (log([1, 2]), "time", "valid"),
    ],
)
def test_an_empty_part_is_refused(events: pl.DataFrame, kind: str, part: str) -> None:
    with pytest.raises(DataError, match=f"split '{kind}' leaves the {part} part empty") as caught:
        assign_parts(events, SplitDefinition(kind=kind))  # type: ignore[arg-type]
    assert "[split]" in str(caught.value)

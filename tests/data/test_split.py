"""Parts are counted by rounding, keep time order, and never tear a request apart."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_kd.data.readers import PART
from cascade_kd.data.schema import SplitDefinition
from cascade_kd.data.split import assign_parts
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
    try:
        part = assign_parts(events, split)
    except DataError:
        return  # ties filled a part: test_an_empty_part_is_refused
    ordered = sorted(times)
    tests, both = half_up(len(times), test), half_up(len(times), test) + half_up(len(times), valid)
    for time, got in zip(events["time"], part, strict=True):
        assert got == (2 if time >= ordered[-tests] else 1 if time >= ordered[-both] else 0)
    assert (part == 2).sum() >= tests


@settings(deadline=None, max_examples=40)
@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=60, max_size=120),
    kind=st.sampled_from(["per-user-time", "leave-last-out", "time"]),
)
def test_requests_stay_whole(rows: list[tuple[int, int]], kind: str) -> None:
    users = [user for user, _ in rows]
    requests = [10 * user + request for user, request in rows]
    events = log(users, [100 * (request % 10) for request in requests], requests)
    split = SplitDefinition(kind="leave-last-out") if kind == "leave-last-out" else SplitDefinition(kind=kind, test=0.2)
    try:
        part = assign_parts(events, split)
    except DataError:
        return
    whole = events.with_columns(part).group_by("request").agg(pl.col("part").n_unique())
    assert (whole["part"] == 1).all()
    if kind == "leave-last-out":
        for user in set(users):
            mine = events.with_columns(part).filter(pl.col("user") == user).unique("request").sort("request")
            count = len(mine)
            assert mine["part"].to_list() == ([0] * (count - 2) + [1, 2] if count >= 3 else [0] * count)


def test_files_say_their_part() -> None:
    events = log([1, 1, 2, 2]).with_columns(pl.Series(PART, [0, 1, 2, 0], pl.UInt8))
    assert assign_parts(events, SplitDefinition(kind="files")).to_list() == [0, 1, 2, 0]


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

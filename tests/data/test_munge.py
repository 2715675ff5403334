"""MUNGE: the rounds against a plain loop, and the laws of the algorithm."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cascade_kd.data import munge
from cascade_kd.data.munging import noise, rounds, swaps, visiting_order

M = 120
Columns = dict[str, Tensor]


def table(seed: int = 0, size: int = M) -> tuple[Columns, Columns]:
    """Codes, lists padded with 0, numbers of two scales."""
    draws = torch.Generator().manual_seed(seed)
    tags = torch.randint(1, 9, (size, 3), generator=draws) * (torch.rand(size, 3, generator=draws) < 0.6)
    nominal = {
        "segment": torch.randint(0, 5, (size,), generator=draws),
        "shop": torch.randint(0, 1000, (size,), generator=draws),
        "tags": tags.sort(dim=1, descending=True).values,
    }
    continuous = {"price": torch.rand(size, generator=draws), "age": 100 * torch.randn(size, generator=draws)}
    return nominal, continuous


def others(kind: str, seed: int = 0, size: int = M) -> Tensor:
    """Neighbours: anywhere, in mutual pairs, in one ring, all in one row, or in a few rows."""
    row = torch.arange(size)
    drawn = torch.randint(1, size, (size,), generator=torch.Generator().manual_seed(seed))
    if kind == "pairs":
        return row ^ 1
    if kind == "ring":
        return (row + 1) % size
    if kind == "star":
        return torch.where(row == 7, 8, 7)
    if kind == "hubs":
        return torch.where(row < 4, row + 4, row % 4)
    return (row + drawn) % size


KINDS = ("any", "pairs", "ring", "star", "hubs")


def one_by_one(
    nominal: Columns, continuous: Columns, neighbour: Tensor, *, swap: float, variance: float, seed: int
) -> tuple[Columns, Columns]:
    """The algorithm as it is written: row after row, attribute after attribute."""
    size = len(neighbour)
    codes = {name: column.tolist() for name, column in nominal.items()}
    numbers = {name: [float(x) for x in column] for name, column in continuous.items()}
    does = {name: swaps(name, size, swap, seed) for name in (*codes, *numbers)}
    draws = {name: noise(name, size, seed).tolist() for name in numbers}
    for e in visiting_order(size, seed).tolist():
        other = int(neighbour[e])
        for name, column in codes.items():
            if does[name][e]:
                column[e], column[other] = column[other], column[e]
        for name, values in numbers.items():
            if does[name][e]:
                sd = abs(values[e] - values[other]) / variance
                old = values[e]
                values[e] = values[other] + sd * draws[name][e][0]
                values[other] = old + sd * draws[name][e][1]
    return {n: torch.tensor(x) for n, x in codes.items()}, {n: torch.tensor(x) for n, x in numbers.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("swap", [0.3, 1.0])
def test_rounds_are_a_visit_row_by_row(kind: str, swap: float) -> None:
    nominal, continuous = table()
    for seed in range(4):
        settings: dict[str, Any] = {"swap": swap, "variance": 2.0, "seed": seed}
        got = munge(nominal, continuous, others(kind), **settings)
        want = one_by_one(nominal, continuous, others(kind), **settings)
        for name, column in got[0].items():
            assert torch.equal(column, want[0][name]), name
        for name, column in got[1].items():
            torch.testing.assert_close(column, want[1][name], rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_rounds_visit_every_row_once_and_keep_the_order_at_every_row(kind: str) -> None:
    neighbour, order = others(kind), visiting_order(M, 3)
    visited: list[int] = []
    for row_E in rounds(order, neighbour):
        touched = torch.cat([row_E, neighbour[row_E]])
        assert len(touched.unique()) == len(touched)  # no two visits share a row
        visited += row_E.tolist()
    assert sorted(visited) == list(range(M))
    time = torch.empty(M, dtype=torch.int64)
    time[order] = torch.arange(M)
    for row in range(M):
        times = [int(time[e]) for e in visited if row in (e, int(neighbour[e]))]
        assert times == sorted(times)


def test_the_number_of_rounds_is_that_of_the_busiest_row() -> None:
    assert sum(1 for _ in rounds(visiting_order(M, 0), others("pairs"))) == 2
    assert sum(1 for _ in rounds(visiting_order(M, 0), others("star"))) == M
    many = 20_000
    busiest = int(torch.bincount(others("any", size=many)).max()) + 1
    assert busiest <= sum(1 for _ in rounds(visiting_order(many, 0), others("any", size=many))) <= 4 * busiest


def test_the_order_is_random() -> None:
    assert sorted(visiting_order(M, 1).tolist()) == list(range(M))
    assert not torch.equal(visiting_order(M, 1), visiting_order(M, 2))


def multiset(column: Tensor) -> list[Any]:
    return sorted(column.tolist())


def whole_rows(columns: Columns) -> list[Any]:
    parts = [column.unsqueeze(1).flatten(1) for column in columns.values()]
    return multiset(torch.cat(parts, dim=1))


def test_nothing_is_swapped_at_probability_0() -> None:
    nominal, continuous = table()
    got = munge(nominal, continuous, others("any"), swap=0.0, variance=1.0, seed=1)
    for before, after in zip((nominal, continuous), got, strict=True):
        assert list(before) == list(after)
        assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("swap", [0.2, 0.7, 1.0])
def test_a_nominal_column_keeps_its_values_and_a_list_stays_whole(kind: str, swap: float) -> None:
    nominal, continuous = table()
    got, _ = munge(nominal, continuous, others(kind), swap=swap, variance=0.5, seed=2)
    for name, column in nominal.items():
        assert multiset(got[name]) == multiset(column)
        assert got[name].dtype == column.dtype
    assert whole_rows(got) != whole_rows(nominal) or swap == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_whole_rows_are_swapped_at_probability_1(kind: str) -> None:
    nominal, _ = table()
    got, none = munge(nominal, {}, others(kind), swap=1.0, variance=1.0, seed=5)
    assert none == {}
    assert whole_rows(got) == whole_rows(nominal)
    if kind != "pairs":  # there two swaps of the same two rows undo each other
        assert not torch.equal(got["shop"], nominal["shop"])


@pytest.mark.parametrize("variance", [math.inf, 1e12])
def test_a_continuous_column_keeps_its_values_at_infinite_variance(variance: float) -> None:
    _, continuous = table()
    none, got = munge({}, continuous, others("any"), swap=0.6, variance=variance, seed=5)
    assert none == {}
    for name, column in continuous.items():
        assert not torch.equal(got[name], column)
        torch.testing.assert_close(got[name].sort().values, column.sort().values, rtol=1e-5, atol=1e-5)
        if variance == math.inf:
            assert multiset(got[name]) == multiset(column)


def test_the_original_is_not_changed_and_shares_no_memory() -> None:
    nominal, continuous = table()
    kept = ({n: x.clone() for n, x in nominal.items()}, {n: x.clone() for n, x in continuous.items()})
    for swap in (0.0, 1.0):
        got = munge(nominal, continuous, others("any"), swap=swap, variance=1.0, seed=0)
        for side in got:
            for column in side.values():
                column.zero_()
    assert all(torch.equal(nominal[n], x) for n, x in kept[0].items())
    assert all(torch.equal(continuous[n], x) for n, x in kept[1].items())


def test_a_seed_gives_one_copy_and_another_seed_another() -> None:
    def made(seed: int) -> Columns:
        nominal, continuous = munge(*table(), others("any"), swap=0.5, variance=1.0, seed=seed)
        return nominal | continuous

    torch.manual_seed(1)
    first = made(3)
    torch.manual_seed(2)
    assert all(torch.equal(column, first[name]) for name, column in made(3).items())
    assert not any(torch.equal(column, first[name]) for name, column in made(4).items())


def test_a_column_is_munged_as_if_it_were_the_only_one() -> None:
    nominal, continuous = table()
    settings: dict[str, Any] = {"swap": 0.5, "variance": 1.0, "seed": 3}
    together = munge(nominal, continuous, others("any"), **settings)
    for name in nominal:
        alone, _ = munge({name: nominal[name]}, {}, others("any"), **settings)
        assert torch.equal(alone[name], together[0][name])
    for name in continuous:
        _, number = munge({}, {name: continuous[name]}, others("any"), **settings)
        assert torch.equal(number[name], together[1][name])
    changed = [~torch.isclose(together[1][name], continuous[name]) for name in continuous]
    assert not torch.equal(*changed)  # two columns do not share their draws


def test_equal_rows_stay_equal() -> None:
    nominal = {"a": torch.full((30,), 3), "tags": torch.tensor([[2, 1, 0]]).repeat(30, 1)}
    continuous = {"x": torch.full((30,), 0.25)}
    got = munge(nominal, continuous, others("any", size=30), swap=1.0, variance=0.1, seed=0)
    assert torch.equal(got[0]["a"], nominal["a"])
    assert torch.equal(got[0]["tags"], nominal["tags"])
    assert torch.equal(got[1]["x"], continuous["x"])


def test_more_is_altered_at_a_higher_probability() -> None:
    size = 4000
    nominal = {"a": torch.arange(size)}
    altered = [
        float(
            (munge(nominal, {}, others("any", size=size), swap=p, variance=1.0, seed=1)[0]["a"] != nominal["a"])
            .float()
            .mean()
        )
        for p in (0.0, 0.1, 0.3, 0.6, 1.0)
    ]
    assert altered[0] == 0
    assert altered == sorted(set(altered))
    # A row is visited once as e and, its neighbours drawn at random, Poisson(1) times as e'.
    assert altered[1] == pytest.approx(1 - 0.9 * math.exp(-0.1), abs=0.02)
    assert altered[-1] > 0.99


def test_numbers_come_nearer_to_a_plain_swap_with_a_larger_variance() -> None:
    size = 4000
    continuous = {"x": torch.rand(size, generator=torch.Generator().manual_seed(0))}

    def made(variance: float) -> Tensor:
        return munge({}, continuous, others("pairs", size=size), swap=0.2, variance=variance, seed=1)[1]["x"]

    shift = [float((made(variance) - made(math.inf)).abs().mean()) for variance in (0.5, 1.0, 2.0, 10.0, 100.0)]
    assert shift == sorted(set(shift), reverse=True)
    assert shift[-2] / shift[-1] == pytest.approx(10, rel=0.05)


def test_a_number_falls_about_its_neighbours_with_a_deviation_of_their_distance() -> None:
    """Rows 2i and 2i + 1 at 0 and 3; of those visited once the row itself falls about 3, its neighbour about 0."""
    size = 40_000
    x = torch.tensor([0.0, 3.0]).repeat(size // 2)
    got = munge({}, {"x": x}, others("pairs", size=size), swap=0.5, variance=2.0, seed=9)[1]["x"]
    does = swaps("x", size, 0.5, 9)
    even, odd = does[::2] & ~does[1::2], does[1::2] & ~does[::2]
    for once in (even, odd):
        for place, mean in ((0, 3.0), (1, 0.0)):
            drawn = got[place::2][once]
            assert float(drawn.mean()) == pytest.approx(mean, abs=4 * 1.5 / math.sqrt(len(drawn)))
            assert float(drawn.std()) == pytest.approx(3 / 2.0, rel=0.04)
        correlation = float(torch.corrcoef(torch.stack([got[::2][once], got[1::2][once]]))[0, 1])
        assert abs(correlation) < 4 / math.sqrt(len(drawn))
    neither = ~does[::2] & ~does[1::2]
    assert bool((got[::2][neither] == 0).all())


def test_what_does_not_fit_is_refused() -> None:
    nominal, continuous = table()
    fits: dict[str, Any] = {"swap": 0.5, "variance": 1.0, "seed": 0}
    for change, message in (
        ({"swap": 1.5}, "swap"),
        ({"swap": math.nan}, "swap"),
        ({"variance": 0.0}, "variance"),
        ({"variance": math.nan}, "variance"),
    ):
        with pytest.raises(ValueError, match=message):
            munge(nominal, continuous, others("any"), **(fits | change))
    own = others("any")
    own[17] = 17
    with pytest.raises(ValueError, match="row 17 is its own neighbour"):
        munge(nominal, continuous, own, **fits)
    with pytest.raises(ValueError, match="0 to 119"):
        munge(nominal, continuous, others("any") + M, **fits)
    with pytest.raises(ValueError, match="'segment' has 120 rows, neighbours are given for 119"):
        munge(nominal, continuous, others("any", size=M - 1), **fits)


def test_no_rows_give_no_rows() -> None:
    nominal, continuous = table()
    none = munge(
        {n: x[:0] for n, x in nominal.items()},
        {n: x[:0] for n, x in continuous.items()},
        torch.empty(0, dtype=torch.int64),
        swap=1.0,
        variance=1.0,
        seed=0,
    )
    assert all(len(column) == 0 for side in none for column in side.values())

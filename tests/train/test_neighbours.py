"""Nearest other rows against a double loop over all pairs; equal rows; what is approximate."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cascade_kd.retrieval.faiss_module import faiss_is_installed
from cascade_kd.train import neighbours
from cascade_kd.train.neighbours import nearest_other

Columns = dict[str, Tensor]


def table(size: int, *, codes: int = 12, seed: int = 0) -> tuple[Columns, Columns]:
    draws = torch.Generator().manual_seed(seed)
    tags = torch.randint(1, 8, (size, 3), generator=draws) * (torch.rand(size, 3, generator=draws) < 0.5)
    tags[:, 1:] *= tags[:, 1:] != tags[:, :1]
    tags[:, 2] *= tags[:, 2] != tags[:, 1]
    nominal = {
        "segment": torch.randint(0, 3, (size,), generator=draws),
        "shop": torch.randint(0, codes, (size,), generator=draws) * 10**6,
        "tags": tags.int(),
    }
    continuous = {
        "price": 1000 + 5 * torch.rand(size, generator=draws),
        "age": -torch.rand(size, generator=draws),
        "constant": torch.full((size,), 7.0),
    }
    return nominal, continuous


def as_rows(nominal: Columns, continuous: Columns) -> list[tuple[list[Any], list[float]]]:
    """Of every row its codes (a set of a list) and its numbers, from 0 to 1."""
    codes, numbers = [], []
    for column in nominal.values():
        values = column.tolist()
        codes.append([({t for t in v if t} or {0}) if column.ndim == 2 else v for v in values])
    for column in continuous.values():
        low, high = float(column.min()), float(column.max())
        numbers.append([(float(x) - low) / (high - low) if high > low else 0.0 for x in column])
    size = len(next(iter([*nominal.values(), *continuous.values()])))
    return [([c[i] for c in codes], [x[i] for x in numbers]) for i in range(size)]


def distance(a: tuple[list[Any], list[float]], b: tuple[list[Any], list[float]]) -> float:
    total = sum((x - y) ** 2 for x, y in zip(a[1], b[1], strict=True))
    for x, y in zip(a[0], b[0], strict=True):
        total += 1 - len(x & y) / math.sqrt(len(x) * len(y)) if isinstance(x, set) else float(x != y)
    return total


def excess(nominal: Columns, continuous: Columns, neighbour: Tensor, rows: range) -> list[float]:
    """How much farther than the nearest other row the found one is."""
    table_ = as_rows(nominal, continuous)
    found = []
    for e in rows:
        to_all = [math.inf if other == e else distance(table_[e], table_[other]) for other in range(len(table_))]
        found.append(to_all[int(neighbour[e])] - min(to_all))
    return found


@pytest.mark.parametrize("which", ["all", "nominal", "continuous", "tags"])
@pytest.mark.parametrize("size", [2, 3, 40, 250])
def test_the_nearest_of_all_pairs_is_found(which: str, size: int) -> None:
    nominal, continuous = table(size)
    if which == "nominal":
        continuous = {}
    if which == "continuous":
        nominal = {}
    if which == "tags":
        nominal, continuous = {"tags": nominal["tags"]}, {}
    neighbour = nearest_other(nominal, continuous, seed=1)
    assert neighbour.dtype == torch.int64
    assert neighbour.shape == (size,)
    assert max(excess(nominal, continuous, neighbour, range(size))) == pytest.approx(0, abs=1e-5)
    assert not bool((neighbour == torch.arange(size)).any())


def test_many_codes_are_found_by_random_vectors_nearly_always() -> None:
    """Ordered by the distance itself, so that a miss takes a nearest row beyond the 16 that the vectors find."""
    nominal, continuous = table(600, codes=200)
    nominal["brand"] = table(600, codes=100, seed=5)[0]["shop"]
    assert len(nominal["shop"].unique()) > neighbours.CODE_WIDTH
    neighbour = nearest_other(nominal, continuous, seed=1)
    missed = [x for x in excess(nominal, continuous, neighbour, range(0, 600, 3)) if x > 1e-5]
    assert len(missed) < 0.1 * 200


def test_an_encoding_has_the_distances_of_the_rows() -> None:
    nominal, continuous = table(60)
    scaled = {name: neighbours.unit_scaled(x) for name, x in continuous.items()}
    encoded = neighbours.encode(nominal, scaled, seed=0)
    every = torch.arange(60)
    want = neighbours.distances(nominal, scaled, every, every.repeat(60, 1))
    torch.testing.assert_close(torch.cdist(encoded, encoded) ** 2, want, rtol=1e-4, atol=1e-4)
    many = {"shop": torch.arange(400)}
    squared = torch.pdist(neighbours.encode(many, {}, seed=0)) ** 2
    assert float(squared.mean()) == pytest.approx(1, abs=0.02)
    assert float(squared.std()) == pytest.approx(1 / math.sqrt(neighbours.CODE_WIDTH), rel=0.1)


def test_an_encoding_is_never_wider_than_its_limit() -> None:
    assert neighbours.encode({"a": torch.arange(300_000)}, {}, seed=0).shape == (300_000, neighbours.CODE_WIDTH)
    assert neighbours.encode({"a": torch.arange(300_000) % 32}, {}, seed=0).shape == (300_000, 32)


def test_equal_rows_are_each_others_neighbours_in_a_ring() -> None:
    nominal, continuous = table(50)
    index = torch.arange(150) % 50
    index[100:] = index[100:] % 10  # rows 0 to 9 seven times, the others twice
    nominal = {name: x[index] for name, x in nominal.items()}
    continuous = {name: x[index] for name, x in continuous.items()}
    neighbour = nearest_other(nominal, continuous, seed=2)
    assert torch.equal(index[neighbour], index)
    assert torch.equal(neighbour.sort().values, torch.arange(150))  # each serves one
    assert not bool((neighbour == torch.arange(150)).any())
    assert not torch.equal(neighbour, nearest_other(nominal, continuous, seed=3))


def test_all_rows_equal() -> None:
    neighbour = nearest_other({"a": torch.full((9,), 4)}, {"x": torch.full((9,), 0.5)}, seed=0)
    assert torch.equal(neighbour.sort().values, torch.arange(9))
    assert not bool((neighbour == torch.arange(9)).any())


def test_equal_rows_share_the_rows_they_are_nearest_to() -> None:
    """100 rows at 0 are the nearest of 100 others about them: no one of the hundred serves all."""
    x = torch.cat([torch.zeros(100), torch.linspace(1, 2, 100) * 1e-3, torch.ones(1)])
    y = torch.cat([torch.zeros(100), torch.zeros(100), torch.ones(1)])
    a = torch.cat([torch.zeros(100), torch.arange(1, 102)]).long()
    neighbour = nearest_other({"a": a}, {"x": x, "y": y}, seed=0)
    served = torch.bincount(neighbour[100:200][neighbour[100:200] < 100], minlength=100)
    assert int(served.max()) <= 8


def test_everything_follows_from_the_seed() -> None:
    nominal, _ = table(200)
    nominal = {"segment": nominal["segment"], "tags": nominal["tags"]}  # many equal rows and ties
    torch.manual_seed(1)
    first = nearest_other(nominal, {}, seed=5)
    torch.manual_seed(2)
    assert torch.equal(nearest_other(nominal, {}, seed=5), first)
    assert not torch.equal(nearest_other(nominal, {}, seed=6), first)


@pytest.mark.skipif(not faiss_is_installed(), reason="faiss is not installed")
def test_lists_find_most_of_what_exact_search_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    nominal, continuous = table(8000, codes=40)
    exact = nearest_other(nominal, continuous, seed=1)
    monkeypatch.setattr(neighbours, "EXACT_ROWS", 4000)
    listed = nearest_other(nominal, continuous, seed=1)
    assert torch.equal(listed, nearest_other(nominal, continuous, seed=1))
    assert not bool((listed == torch.arange(8000)).any())
    assert not torch.equal(listed, exact)
    scaled = {name: neighbours.unit_scaled(x) for name, x in continuous.items()}
    own, other = (
        neighbours.distances(nominal, scaled, torch.arange(8000), found.unsqueeze(1))[:, 0] for found in (exact, listed)
    )
    assert float((other <= own + 1e-5).float().mean()) > 0.7
    assert float(other.mean()) < 1.1 * float(own.mean())


@pytest.mark.skipif(not faiss_is_installed(), reason="faiss is not installed")
def test_a_row_whose_lists_hold_no_other_is_searched_for_among_all(monkeypatch: pytest.MonkeyPatch) -> None:
    nominal, continuous = table(300)
    exact = nearest_other(nominal, continuous, seed=1)
    found_only_itself = torch.full((300, neighbours.CANDIDATES + 1), -1)
    monkeypatch.setattr(neighbours, "EXACT_ROWS", 10)
    monkeypatch.setattr(neighbours, "euclidean_lists", lambda *_, **__: None)
    monkeypatch.setattr(
        neighbours, "search", lambda _, __, query, *___: (None, found_only_itself[: len(query)].clone())
    )
    assert torch.equal(nearest_other(nominal, continuous, seed=1), exact)


def test_without_faiss_all_pairs_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    nominal, continuous = table(300)
    exact = nearest_other(nominal, continuous, seed=1)
    monkeypatch.setattr(neighbours, "EXACT_ROWS", 10)
    monkeypatch.setattr(neighbours, "faiss_is_installed", lambda: False)
    monkeypatch.setattr(neighbours, "BLOCK_CELLS", 2000)  # and a few rows at a time
    assert torch.equal(nearest_other(nominal, continuous, seed=1), exact)


def test_a_row_alone_has_no_other() -> None:
    for size in (0, 1):
        with pytest.raises(ValueError, match=f"at least 2 rows, got {size}"):
            nearest_other({"a": torch.ones(size, dtype=torch.int64)}, {}, seed=0)
    with pytest.raises(ValueError, match="no column"):
        nearest_other({}, {}, seed=0)

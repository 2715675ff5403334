"""Draws: what they may return, how often (against chances worked out by enumeration), and the same for a seed."""

import itertools
import math
from collections import Counter

import pytest
import torch

from cascade_kd.losses import (
    decay_weight,
    draw_chunks,
    draw_group_pairs,
    draw_pairs,
    draw_permutations,
    draw_places,
    gap_weight,
    popularity_groups,
    positions,
    student_rank,
)

MANY = 20_000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def repeated(*values, times=MANY, dtype=torch.bool):
    return torch.tensor([values], dtype=dtype).expand(times, -1)


def assert_chances(rows, chances):
    """Every row's frequency within 5 standard errors of its chance; rows of no chance never."""
    counts = Counter(map(tuple, rows.tolist()))
    assert set(counts) <= set(chances)
    for key, chance in chances.items():
        error = math.sqrt(chance * (1 - chance) / len(rows))
        assert abs(counts[key] / len(rows) - chance) <= 5 * error, key
    assert sum(chances.values()) == pytest.approx(1)


def without_replacement(weights, num):
    """Chances of every set of ``num``, drawn one after the other."""
    chances = Counter()
    for order in itertools.permutations(range(len(weights)), num):
        left, chance = sum(weights), 1.0
        for place in order:
            chance *= weights[place] / left
            left -= weights[place]
        chances[tuple(sorted(order))] += chance
    return {key: chance for key, chance in chances.items() if chance > 0}


def test_places_are_drawn_in_proportion_to_weights_and_returned_in_order():
    place, where = draw_places(
        repeated(4.0, 0.0, 1.0, 2.0, dtype=torch.float64),
        2,
        where_BK=repeated(1, 1, 1, 1),
        generator=generator(),
    )
    assert where.all()
    assert_chances(place, without_replacement([4, 0, 1, 2], 2))


def test_places_of_weight_0_and_padding_are_never_drawn():
    weight = torch.tensor([[1.0, 0.0, 2.0, 9.0], [0.0, 0.0, 0.0, 0.0]])
    place, where = draw_places(
        weight, 7, where_BK=torch.tensor([[True, True, True, False], [True] * 4]), generator=generator()
    )
    assert place.tolist() == [[0, 2, 0, 0], [0] * 4]
    assert where.tolist() == [[True, True, False, False], [False] * 4]


def test_dcd_never_draws_an_item_whose_ranks_agree():
    score = torch.tensor([[5.0, 1.0, 3.0, 2.0, 4.0]])  # student ranks 1, 5, 3, 4, 2 at the teacher's positions 1 to 5
    where = torch.ones_like(score, dtype=torch.bool)
    gap = student_rank(score, where) - positions(where)
    assert gap.tolist() == [[0, 3, 0, 0, -3]]
    for sign, only in ((1, 1), (-1, 4)):
        place, there = draw_places(gap_weight(sign * gap, 0.01), 5, where_BK=where, generator=generator())
        assert place[there].tolist() == [only]


def test_interesting_items_follow_the_teachers_decay():
    where = repeated(1, 1, 0, 1)
    place, _ = draw_places(decay_weight(where, 2.0), 1, where_BK=where, generator=generator())
    weights = [math.exp(-r / 2) for r in (1, 2, 3)]
    assert_chances(place, {(p,): w / sum(weights) for p, w in zip((0, 1, 3), weights, strict=True)})


@pytest.mark.parametrize("k", [1, 2, 9, None])
def test_pairs_are_uniform_over_the_pairs_of_the_top_k(k):
    upper, lower, where = draw_pairs(repeated(1, 0, 1, 1, 1), 1, k=k, generator=generator())
    assert where.all()
    allowed = [(a, b) for a, b in itertools.combinations((0, 2, 3, 4), 2) if k is None or (0, 2, 3, 4).index(a) < k]
    assert_chances(torch.cat([upper, lower], dim=1), {pair: 1 / len(allowed) for pair in allowed})


def test_lists_shorter_than_2_have_no_pairs():
    where = torch.tensor([[False, True, False], [False, False, False]])
    assert not draw_pairs(where, 4, generator=generator())[2].any()
    group = torch.zeros(2, 3, dtype=torch.int64)
    assert not draw_group_pairs(group, 4, num_groups=2, scale=20.0, where_BK=where, generator=generator())[2].any()


def test_group_pairs_stay_inside_their_group_and_follow_the_ranks_there():
    groups = (1, 0, 1, 1, 0, 0, 2)
    upper, lower, where = draw_group_pairs(
        repeated(*groups, dtype=torch.int64),
        1,
        num_groups=3,
        scale=1.5,
        where_BK=repeated(1, 1, 1, 1, 1, 0, 1),
        generator=generator(),
    )
    assert where.all(dim=0).tolist() == [True, True, False]  # group 2 has one place
    assert not where[:, 2].any()
    assert set(zip(upper[:, 0].tolist(), lower[:, 0].tolist(), strict=True)) == {(1, 4)}
    chances = without_replacement([math.exp(-r / 1.5) for r in (1, 2, 3)], 2)
    places = (0, 2, 3)
    assert_chances(
        torch.stack([upper[:, 1], lower[:, 1]], dim=1),
        {(places[a], places[b]): chance for (a, b), chance in chances.items()},
    )


def test_pairs_of_one_group_are_plain_sampled_pairs():
    upper, lower, _ = draw_group_pairs(
        repeated(0, 0, 0, 0, dtype=torch.int64),
        1,
        num_groups=1,
        scale=3.0,
        where_BK=repeated(1, 1, 1, 1),
        generator=generator(),
    )
    place, _ = draw_places(
        decay_weight(repeated(1, 1, 1, 1), 3.0), 2, where_BK=repeated(1, 1, 1, 1), generator=generator()
    )
    chances = without_replacement([math.exp(-r / 3) for r in (1, 2, 3, 4)], 2)
    assert_chances(torch.cat([upper, lower], dim=1), chances)
    assert_chances(place, chances)


def test_group_pairs_of_long_lists():
    group = torch.randint(0, 4, (8, 3000), generator=generator(1))
    where = torch.ones_like(group, dtype=torch.bool)
    upper, lower, there = draw_group_pairs(group, 500, num_groups=4, scale=20.0, where_BK=where, generator=generator())
    assert there.all()
    assert (upper < lower).all()
    assert torch.equal(group.gather(1, upper), group.gather(1, lower))
    assert torch.equal(group.gather(1, upper), torch.arange(4).repeat_interleave(500).expand(8, -1))


def test_permutations_follow_the_plackett_luce_model():
    teacher = torch.tensor([[1.0, 0.0, 50.0, -0.5]])
    order = draw_permutations(
        teacher, MANY, where_BK=torch.tensor([[True, True, False, True]]), temperature=0.7, generator=generator()
    )[0]
    assert (order[:, 3] == 2).all()
    worth = {place: math.exp(teacher[0, place] / 0.7) for place in (0, 1, 3)}
    chances = {}
    for first, second, third in itertools.permutations((0, 1, 3)):
        chances[first, second, third] = (
            worth[first] / sum(worth.values()) * worth[second] / (worth[second] + worth[third])
        )
    assert_chances(order[:, :3], chances)


def test_chunks_are_equal_within_one_and_give_one_place_each():
    where = repeated(1, 1, 0, 1, 1, 1)
    place, there = draw_chunks(where, 2, generator=generator())
    assert there.all()
    assert_chances(place, {(a, b): 1 / 6 for a in (0, 1) for b in (3, 4, 5)})
    place, there = draw_chunks(torch.tensor([[True, False, True, False]]), 4, generator=generator())
    assert place[there].tolist() == [0, 2]


def test_popularity_groups_partition_the_items_into_equal_masses():
    popularity = torch.randint(0, 200, (500,), generator=generator()).double().pow(2)
    for groups in (1, 4, 5):
        group = popularity_groups(popularity, groups)
        assert sorted(group.unique().tolist()) == list(range(groups))
        mass = torch.zeros(groups, dtype=torch.float64).index_add(0, group, popularity)
        # Both ends of a group are off the even cut by less than one item's popularity.
        assert ((mass - popularity.sum() / groups).abs() <= popularity.max()).all()
        by_popularity = popularity.argsort(descending=True, stable=True)
        assert (group[by_popularity].diff() >= 0).all()
    assert popularity_groups(torch.tensor([0, 5, 3, 3, 1, 0, 8]), 3).tolist() == [2, 1, 1, 2, 2, 2, 0]
    assert popularity_groups(torch.zeros(3), 2).tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="popularity"):
        popularity_groups(torch.tensor([1.0, -1.0]), 2)


DRAWS = {
    "places": lambda w, g: draw_places(decay_weight(w, 3.0), 3, where_BK=w, generator=g),
    "pairs": lambda w, g: draw_pairs(w, 3, k=2, generator=g),
    "group pairs": lambda w, g: draw_group_pairs(
        positions(w) % 2, 3, num_groups=2, scale=20.0, where_BK=w, generator=g
    ),
    "permutations": lambda w, g: (draw_permutations(positions(w).float(), 3, where_BK=w, generator=g),),
    "chunks": lambda w, g: draw_chunks(w, 3, generator=g),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_seed_gives_the_same_draws_and_another_seed_others(draw):
    where = torch.ones(6, 9, dtype=torch.bool)
    first, again, other = (draw(where, generator(seed)) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))

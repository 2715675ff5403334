"""Laws of the lists that flow between stages."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_kd.types import Candidates, Feature, Requests

# Few distinct scores, so that ties are common; infinities are scores like others.
scores = st.sampled_from([-math.inf, -1.5, -0.0, 0.0, 0.25, 3.0, math.inf])


@st.composite
def lists(draw):
    """Rows of distinct items with scores and a mask, as nested lists."""
    num, width = draw(st.integers(0, 4)), draw(st.integers(0, 6))
    items = [draw(st.lists(st.integers(1, 20), min_size=width, max_size=width, unique=True)) for _ in range(num)]
    score = [draw(st.lists(scores, min_size=width, max_size=width)) for _ in range(num)]
    valid = [draw(st.lists(st.booleans(), min_size=width, max_size=width)) for _ in range(num)]
    return items, score, valid, width


def tensors(items, score, valid, width):
    shape = (len(items), width)
    return (
        torch.tensor(items, dtype=torch.int64).reshape(shape),
        torch.tensor(score, dtype=torch.float32).reshape(shape),
        torch.tensor(valid, dtype=torch.bool).reshape(shape),
    )


def as_lists(candidates):
    return candidates.item_BK.tolist(), candidates.score_BK.tolist(), candidates.valid_BK.tolist()


@settings(deadline=None, max_examples=75)
@given(lists())
def test_ranked_equals_python_sorting(drawn):
    items, score, valid, width = drawn
    got = Candidates.ranked(*tensors(*drawn))
    assert len(got) == len(items)
    assert got.width == width
    for row, (line, points, marks) in enumerate(zip(items, score, valid, strict=True)):
        want = sorted((-s, i) for i, s, v in zip(line, points, marks, strict=True) if v)
        padding = width - len(want)
        assert got.item_BK[row].tolist() == [i for _, i in want] + [0] * padding
        assert got.score_BK[row].tolist() == [-s for s, _ in want] + [-math.inf] * padding
        assert got.valid_BK[row].tolist() == [True] * len(want) + [False] * padding


@settings(deadline=None, max_examples=100)
@given(lists(), st.randoms(use_true_random=False))
def test_ranked_forgets_the_order_that_it_was_given_and_repeats(drawn, random):
    item, score, valid = tensors(*drawn)
    once = Candidates.ranked(item, score, valid)
    order = list(range(drawn[3]))
    random.shuffle(order)
    assert as_lists(Candidates.ranked(item[:, order], score[:, order], valid[:, order])) == as_lists(once)
    assert as_lists(Candidates.ranked(once.item_BK, once.score_BK, once.valid_BK)) == as_lists(once)


@settings(deadline=None, max_examples=100)
@given(lists(), st.integers(0, 8), st.integers(0, 8))
def test_top_keeps_the_first_and_composes(drawn, k, m):
    whole = Candidates.ranked(*tensors(*drawn))
    top = whole.top(k)
    assert top.width == min(k, drawn[3])
    assert as_lists(top) == tuple([row[:k] for row in part] for part in as_lists(whole))
    assert as_lists(top.top(m)) == as_lists(whole.top(min(k, m)))


@settings(deadline=None, max_examples=50)
@given(lists(), st.sampled_from([-2.0, 0.0, 3.0]))
def test_with_scores_reorders_the_same_items(drawn, factor):
    first = Candidates.ranked(*tensors(*drawn))
    again = first.with_scores(factor * first.item_BK.float())
    for row, other in zip(first.item_BK.tolist(), again.item_BK.tolist(), strict=True):
        items = [i for i in row if i > 0]
        assert [i for i in other if i > 0] == sorted(items, key=lambda i: (-factor * i, i))


def test_ties_of_long_rows_go_to_the_smaller_code():
    """Unstable sorts leave short rows in order and long ones not."""
    generator = torch.Generator().manual_seed(0)
    item = torch.stack([torch.randperm(2000, generator=generator) + 1 for _ in range(3)])
    score = torch.randint(0, 3, (3, 2000), generator=generator).float()
    got = Candidates.ranked(item, score)
    for row, (line, points) in enumerate(zip(item.tolist(), score.tolist(), strict=True)):
        assert got.item_BK[row].tolist() == [i for _, i in sorted((-s, i) for s, i in zip(points, line, strict=True))]


def test_code_0_is_padding_unless_said_otherwise():
    ranked = Candidates.ranked(torch.tensor([[0, 3, 2]]), torch.tensor([[9.0, 1.0, 1.0]]))
    assert ranked.item_BK.tolist() == [[2, 3, 0]]
    assert ranked.valid_BK.tolist() == [[True, True, False]]


def test_ranked_does_not_write_into_what_it_is_given():
    item, score = torch.tensor([[5, 4]]), torch.tensor([[0.0, 1.0]])
    Candidates.ranked(item, score, torch.tensor([[False, True]]))
    assert item.tolist() == [[5, 4]]
    assert score.tolist() == [[0.0, 1.0]]


def test_concat_stacks_what_a_slice_of_requests_gave():
    both = Candidates.ranked(torch.tensor([[1, 2], [4, 3]]), torch.tensor([[0.0, 1.0], [2.0, 2.0]]))
    parts = [Candidates.ranked(both.item_BK[i : i + 1], both.score_BK[i : i + 1]) for i in range(2)]
    assert as_lists(Candidates.concat(parts)) == as_lists(both)


def test_requests_are_cut_in_all_their_columns():
    context = {"hour": torch.tensor([3, 4])}
    requests = Requests(torch.tensor([1, 2]), torch.tensor([10, 20]), context, torch.tensor([7, 8]))
    one = requests[torch.tensor([1])]
    assert len(one) == 1
    assert (one.user_B.item(), one.time_B.item(), one.context["hour"].item(), one.request_B.item()) == (2, 20, 4, 8)
    assert requests[:1].user_B.tolist() == [1]


def test_a_feature_is_online_from_its_level_on():
    late = Feature("dwell", "numeric", "pair", "never")
    ranker = Feature("rate", "statistic", "pair", "rank")
    assert [late.online_at(level) for level in ("recall", "rank", "never")] == [False, False, True]
    assert [ranker.online_at(level) for level in ("prerank", "rank", "never")] == [False, True, True]

"""Agreement of student and teacher: overlap and bins against loops, recovery by hand."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from cascade_kd.cascade import Cascade, Step
from cascade_kd.evaluate import agreement_bins, distill_metrics
from cascade_kd.types import Candidates, Requests

NONE: dict[str, Any] = {"student": {}, "distilled": {}, "taught": {}}
NUM_REQUESTS, NUM_ITEMS = 37, 30


@dataclass(frozen=True)
class ByFormula:
    """Orders by (factor * item + user) mod 11, ties by the smaller code; draws every third item as a first stage."""

    name: str
    keep: int
    factor: int
    level: str = "rank"
    signals: frozenset[str] = frozenset({"ranking"})

    def order(self, requests: Requests, candidates: Candidates | None) -> Candidates:
        if candidates is None:
            item_BK = torch.arange(1, NUM_ITEMS + 1).expand(len(requests), -1)
            # Users get lists of different lengths, one of them none at all.
            valid_BK = item_BK <= requests.user_B.unsqueeze(1) - 1
            candidates = Candidates.ranked(item_BK, torch.zeros(item_BK.shape), valid_BK)
        score_BK = (self.factor * candidates.item_BK + requests.user_B.unsqueeze(1)) % 11
        ordered = candidates.with_scores(score_BK.float())
        return ordered.top(self.keep) if self.level == "recall" else ordered

    def __call__(self, requests: Requests, candidates: Candidates | None) -> Candidates:
        return self.order(requests, candidates).top(self.keep)


def in_python(factor: int, user: int, items: list[int]) -> list[int]:
    return sorted(items, key=lambda item: (-((factor * item + user) % 11), item))


RECALL = ByFormula("recall", 12, 3, level="recall")
STUDENT = ByFormula("prerank", 4, 5)
TEACHER = ByFormula("rank", 2, 7)


def make_requests(num: int) -> Requests:
    return Requests(torch.arange(1, num + 1), torch.zeros(num, dtype=torch.int64))


@pytest.fixture
def requests() -> Requests:
    return make_requests(NUM_REQUESTS)


def received_in_python(user: int) -> list[int]:
    return in_python(3, user, [item for item in range(1, NUM_ITEMS + 1) if item <= user - 1])[:12]


def assert_overlap(got: dict[str, Any], k: int, pairs: list[tuple[list[int], list[int]]]) -> None:
    values, short, empty = [], 0, 0
    for ours, theirs in pairs:
        length = min(k, max(len(ours), len(theirs)))
        if length == 0:
            empty += 1
            continue
        short += length < k
        values.append(sum(1 for item in ours[:k] if item in theirs[:k]) / length)
    assert (short > 0) is (k > 1)
    assert empty > 0
    assert got == {
        "mean": pytest.approx(statistics.fmean(values)),
        "stderr": pytest.approx(statistics.stdev(values) / math.sqrt(len(values))),
        "n": len(values),
        "short_lists": short,
        "empty_lists": empty,
    }


@pytest.mark.parametrize("per_call", [1024, 5])
def test_overlap_is_of_two_orders_of_what_the_student_received(
    requests: Requests, monkeypatch: pytest.MonkeyPatch, per_call: int
) -> None:
    monkeypatch.setattr("cascade_kd.cascade.REQUESTS_PER_CALL", per_call)
    trace = Cascade((RECALL, STUDENT)).trace(requests)
    tree = distill_metrics(TEACHER, trace.step("prerank"), requests, (1, 3, 8, 13), **NONE)
    lists = [received_in_python(user) for user in requests.user_B.tolist()]
    pairs = [
        (in_python(5, user, items), in_python(7, user, items))
        for user, items in zip(requests.user_B.tolist(), lists, strict=True)
    ]
    assert tree.keys() == {
        "tau",
        "overlap@1",
        "overlap@3",
        "overlap@4",
        "overlap@8",
        "recovery",
    }  # 4: its keep; 13 > 12
    for k in (1, 3, 4, 8):
        assert_overlap(tree[f"overlap@{k}"], k, pairs)
    assert 0 < tree["overlap@4"]["mean"] < 1
    assert "overlap@4" in distill_metrics(TEACHER, trace.step("prerank"), requests, (1,), **NONE)


def test_a_recall_students_own_list_stands_in_for_the_catalogue(requests: Requests) -> None:
    step = Cascade((RECALL,)).trace(requests).step("recall")
    tree = distill_metrics(TEACHER, step, requests, (1, 3, 50), **NONE)
    assert tree.keys() == {"tau", "overlap@1", "overlap@3", "overlap@12", "recovery"}
    lists = [(user, received_in_python(user)) for user in requests.user_B.tolist()]
    pairs = [(items, in_python(7, user, items)) for user, items in lists]
    for k in (1, 3, 12):
        assert_overlap(tree[f"overlap@{k}"], k, pairs)
    assert tree["overlap@12"]["mean"] == 1  # both order the same twelve
    assert tree["overlap@3"]["mean"] < 1


def test_no_request_is_no_overlap_with_the_reason() -> None:
    requests = make_requests(0)
    step = Cascade((RECALL, STUDENT)).trace(requests).step("prerank")
    overlap = distill_metrics(TEACHER, step, requests, (1,), **NONE)["overlap@4"]
    assert overlap["mean"] is None
    assert overlap["n"] == 0
    assert overlap["why"]


def test_a_teacher_agrees_with_itself(requests: Requests) -> None:
    step = Cascade((RECALL, STUDENT)).trace(requests).step("prerank")
    tree = distill_metrics(STUDENT, step, requests, (1, 3), **NONE)
    assert {metric["mean"] for name, metric in tree.items() if name != "recovery"} == {1.0}


@pytest.mark.parametrize(
    ("student", "distilled", "taught", "want"),
    [
        (0.60, 0.70, 0.80, 0.5),
        (0.60, 0.50, 0.80, -0.5),
        (0.60, 0.90, 0.80, 1.5),
        (0.60, 0.60, 0.80, 0.0),
        (0.80, 0.85, 0.80, None),  # the teacher is no better
        (0.90, 0.85, 0.80, None),
        (None, 0.70, 0.80, None),
        (0.60, None, 0.80, None),
        (0.60, 0.70, None, None),
    ],
)
def test_recovery(
    requests: Requests, student: float | None, distilled: float | None, taught: float | None, want: float | None
) -> None:
    step = Step("student", 4, None, RECALL.order(requests, None), 0.0)
    trees = {
        key: {"auc": {"mean": value}, "gauc": {"mean": 0.5}}
        for key, value in (("student", student), ("distilled", distilled), ("taught", taught))
    }
    recovery = distill_metrics(TEACHER, step, requests, (1,), **trees)["recovery"]
    assert recovery == {"auc": None if want is None else pytest.approx(want), "gauc": None}
    del trees["student"]["auc"]  # a stage without logits has no auc
    assert distill_metrics(TEACHER, step, requests, (1,), **trees)["recovery"]["auc"] is None


def test_agreement_bins_count_rows_by_both_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher_M = 3 * torch.randn(500, generator=generator)
    student_M = teacher_M + torch.randn(500, generator=generator)
    teacher_M[0], student_M[1] = 100.0, -200.0  # probabilities of exactly 1 and 0
    counts: dict[tuple[int, int], int] = {}
    for z, x in zip(teacher_M.sigmoid().tolist(), student_M.sigmoid().tolist(), strict=True):
        cell = min(int(z * 25), 24), min(int(x * 25), 24)
        counts[cell] = counts.get(cell, 0) + 1
    got = agreement_bins(teacher_M, student_M)
    assert [(cell["teacher"], cell["student"], cell["n"]) for cell in got] == [
        (pytest.approx((t + 0.5) / 25), pytest.approx((s + 0.5) / 25), n) for (t, s), n in sorted(counts.items())
    ]
    assert sum(cell["n"] for cell in got) == 500
    assert agreement_bins(torch.zeros(0), torch.zeros(0)) == []

"""How near a student came to its teacher (floor 6). B requests, K places, M rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cascade_kd.cascade import Step, batches_of
from cascade_kd.evaluate.consistency import agreement
from cascade_kd.metrics import overlap_at
from cascade_kd.stages import Stage
from cascade_kd.types import Candidates, Requests

AGREEMENT_BINS = 25
RECOVERED = ("auc", "gauc")  # figures of which the report gives the recovery ratio


def distill_metrics(
    teacher: Stage,
    student_step: Step,
    requests: Requests,
    ks: tuple[int, ...],
    *,
    student: dict[str, Any],
    distilled: dict[str, Any],
    taught: dict[str, Any],
) -> dict[str, Any]:
    """overlap@k and tau of teacher and student, both ordering what the student received, and the recovery ratios.

    Recovery is (distilled - student) / (teacher - student), null where the teacher is no better than the student.
    ``student``, ``distilled`` and ``taught`` are the metric trees of the undistilled student, the student, the
    teacher. A recall student orders the catalogue, so its own list stands in for what it received.
    """
    recovery = {"recovery": {name: _recovery(name, student, distilled, taught) for name in RECOVERED}}
    if "ranking" not in teacher.signals:  # scores of logged events alone
        return recovery
    received = student_step.received
    if received is None:  # its own scores must not reach the teacher
        own = student_step.ordered
        received = Candidates.ranked(own.item_BK, torch.zeros_like(own.score_BK), own.valid_BK)
    batches = [teacher.order(requests[rows], received[rows]) for rows in batches_of(len(requests))]
    order = Candidates.concat(batches)
    ordered = student_step.ordered
    tree: dict[str, Any] = {
        f"overlap@{k}": overlap_at(ordered.item_BK, ordered.valid_BK, order.item_BK, order.valid_BK, k).as_dict()
        for k in sorted({k for k in ks if k <= order.width} | {min(student_step.keep, order.width)})
    }
    return {"tau": agreement(ordered, order, order.width)["tau"]} | tree | recovery


def _recovery(name: str, student: dict[str, Any], distilled: dict[str, Any], taught: dict[str, Any]) -> float | None:
    values = [tree.get(name, {}).get("mean") for tree in (student, distilled, taught)]
    if any(value is None for value in values):
        return None
    before, after, goal = values
    return (after - before) / (goal - before) if goal > before else None


def agreement_bins(teacher_M: Tensor, student_M: Tensor) -> list[dict[str, float]]:
    """Counts of the rows by teacher's and student's probability, at the midpoints of ``AGREEMENT_BINS`` equal bins."""
    bins = AGREEMENT_BINS
    cells = [(x.sigmoid() * bins).long().clamp(0, bins - 1) for x in (teacher_M, student_M)]
    count = torch.bincount(cells[0] * bins + cells[1], minlength=bins * bins)
    filled = count.nonzero().squeeze(1)
    return [
        {"teacher": (cell // bins + 0.5) / bins, "student": (cell % bins + 0.5) / bins, "n": n}
        for cell, n in zip(filled.tolist(), count[filled].tolist(), strict=True)
    ]

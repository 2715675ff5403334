"""Objectives that train the stages of a cascade for each other: tensors of several stages in, [B] out."""

from cascade_kd.losses.cascades.pairs import copr, fused_score, icc, rankflow_tutoring, stage_pairwise
from cascade_kd.losses.cascades.soft_sort import Membership, log_neural_sort, membership, neural_sort
from cascade_kd.losses.cascades.survival import arf, arf_global, arf_relax, lcron, lcron_end_to_end, lcron_single

__all__ = [
    "Membership",
    "arf",
    "arf_global",
    "arf_relax",
    "copr",
    "fused_score",
    "icc",
    "lcron",
    "lcron_end_to_end",
    "lcron_single",
    "log_neural_sort",
    "membership",
    "neural_sort",
    "rankflow_tutoring",
    "stage_pairwise",
]

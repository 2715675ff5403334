"""Losses from a teacher's order: its logits are needed by ListNet and CD alone.

A strictly increasing transform of the teacher's scores changes nothing in the others, bit for bit: they see the
student's scores in the order that :func:`teacher_order` gives, and a mask.
"""

from cascade_kd.losses.order.listwise import listmle, listnet, rankdistil, relaxed_ranking
from cascade_kd.losses.order.pairwise import delta_ndcg, pair_loss, sampled_pairwise, topk_pairwise
from cascade_kd.losses.order.places import (
    decay_weight,
    estimated_rank,
    first_places,
    gap_weight,
    position_weight,
    positions,
    student_rank,
    teacher_order,
    top_places,
)
from cascade_kd.losses.order.pointwise import collaborative_distillation, ranking_distillation, topk_pointwise

__all__ = [
    "collaborative_distillation",
    "decay_weight",
    "delta_ndcg",
    "estimated_rank",
    "first_places",
    "gap_weight",
    "listmle",
    "listnet",
    "pair_loss",
    "position_weight",
    "positions",
    "rankdistil",
    "ranking_distillation",
    "relaxed_ranking",
    "sampled_pairwise",
    "student_rank",
    "teacher_order",
    "top_places",
    "topk_pairwise",
    "topk_pointwise",
]

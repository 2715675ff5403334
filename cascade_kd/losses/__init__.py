"""Losses (floor 2): tensors in, one unreduced value per row or list out; the caller reduces.

``full_softmax`` alone returns a mean, which its quick gradient needs.

The mask is the keyword ``where_..``. Logits (or hidden states) in, never probabilities, in float32 or float64. A
teacher's tensor that carries a gradient is refused. To add a loss: its function here, its line in the table of
``tests/losses``.
"""

from cascade_kd.losses.cascades import (
    arf,
    arf_global,
    arf_relax,
    copr,
    fused_score,
    icc,
    lcron,
    lcron_end_to_end,
    lcron_single,
    neural_sort,
    rankflow_tutoring,
    stage_pairwise,
)
from cascade_kd.losses.catalogue import full_softmax
from cascade_kd.losses.checks import teachers_learn
from cascade_kd.losses.draws import (
    draw_chunks,
    draw_group_pairs,
    draw_pairs,
    draw_permutations,
    draw_places,
    popularity_groups,
)
from cascade_kd.losses.hidden import attention_transfer, hint, relational
from cascade_kd.losses.label import bce, bpr, ccl, sampled_softmax
from cascade_kd.losses.logit import (
    clid_listwise,
    cross_entropy_binary,
    kl_binary,
    kl_listwise,
    mimic,
    mse_logits,
    mse_probabilities,
    mse_probabilities_listwise,
)
from cascade_kd.losses.order import (
    collaborative_distillation,
    decay_weight,
    delta_ndcg,
    estimated_rank,
    first_places,
    gap_weight,
    listmle,
    listnet,
    position_weight,
    positions,
    rankdistil,
    ranking_distillation,
    relaxed_ranking,
    sampled_pairwise,
    student_rank,
    teacher_order,
    top_places,
    topk_pairwise,
    topk_pointwise,
)
from cascade_kd.losses.weighting import uncertainty_weighting

__all__ = [
    "arf",
    "arf_global",
    "arf_relax",
    "attention_transfer",
    "bce",
    "bpr",
    "ccl",
    "clid_listwise",
    "collaborative_distillation",
    "copr",
    "cross_entropy_binary",
    "decay_weight",
    "delta_ndcg",
    "draw_chunks",
    "draw_group_pairs",
    "draw_pairs",
    "draw_permutations",
    "draw_places",
    "estimated_rank",
    "first_places",
    "full_softmax",
    "fused_score",
    "gap_weight",
    "hint",
    "icc",
    "kl_binary",
    "kl_listwise",
    "lcron",
    "lcron_end_to_end",
    "lcron_single",
    "listmle",
    "listnet",
    "mimic",
    "mse_logits",
    "mse_probabilities",
    "mse_probabilities_listwise",
    "neural_sort",
    "popularity_groups",
    "position_weight",
    "positions",
    "rankdistil",
    "rankflow_tutoring",
    "ranking_distillation",
    "relational",
    "relaxed_ranking",
    "sampled_pairwise",
    "sampled_softmax",
    "stage_pairwise",
    "student_rank",
    "teacher_order",
    "teachers_learn",
    "top_places",
    "topk_pairwise",
    "topk_pointwise",
    "uncertainty_weighting",
]

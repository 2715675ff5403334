"""Losses (floor 2): tensors in, one unreduced value per row or list out; the caller reduces.

The mask is the keyword ``where_..``. Logits (or hidden states) in, never probabilities, in float32 or float64. A
teacher's tensor that carries a gradient is refused. To add a loss: its function here, its line in the table of
``tests/losses``.
"""

from cascade_kd.losses.checks import teachers_learn
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
from cascade_kd.losses.weighting import uncertainty_weighting

__all__ = [
    "attention_transfer",
    "bce",
    "bpr",
    "ccl",
    "clid_listwise",
    "cross_entropy_binary",
    "hint",
    "kl_binary",
    "kl_listwise",
    "mimic",
    "mse_logits",
    "mse_probabilities",
    "mse_probabilities_listwise",
    "relational",
    "sampled_softmax",
    "teachers_learn",
    "uncertainty_weighting",
]

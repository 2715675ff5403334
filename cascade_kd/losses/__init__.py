"""Losses (floor 2): tensors in, one unreduced value per row or list out; the caller reduces.

``full_softmax`` alone returns a mean, which its quick gradient needs.

The mask is the keyword ``where_..``. Logits in, never probabilities, in float32 or float64. A teacher's tensor that
carries a gradient is refused. To add a loss: its function here, its line in the table of ``tests/losses``.
"""

from cascade_kd.losses.catalogue import full_softmax
from cascade_kd.losses.label import bce, bpr, ccl, sampled_softmax
from cascade_kd.losses.logit import kl_binary, kl_listwise, mse_logits, mse_probabilities, mse_probabilities_listwise

__all__ = [
    "bce",
    "bpr",
    "ccl",
    "full_softmax",
    "kl_binary",
    "kl_listwise",
    "mse_logits",
    "mse_probabilities",
    "mse_probabilities_listwise",
    "sampled_softmax",
]

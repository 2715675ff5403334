"""Evaluation over the full catalogue: one trace, all metrics (floor 6)."""

from cascade_kd.evaluate.agreement import agreement_bins, distill_metrics
from cascade_kd.evaluate.evaluate import Evaluation, evaluate
from cascade_kd.evaluate.reference import reference_metrics
from cascade_kd.evaluate.settings import EvaluateConfig

__all__ = ["EvaluateConfig", "Evaluation", "agreement_bins", "distill_metrics", "evaluate", "reference_metrics"]

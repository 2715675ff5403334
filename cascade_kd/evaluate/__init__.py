"""Evaluation over the full catalogue: one trace, all metrics (floor 6).

The names below load on first use: ``settings`` alone, which the check of a TOML reads, takes no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cascade_kd.lazy import lazy

if TYPE_CHECKING:
    from cascade_kd.evaluate.agreement import agreement_bins, distill_metrics
    from cascade_kd.evaluate.audit import Audit, FeatureAudit, audit_dataset
    from cascade_kd.evaluate.evaluation import Evaluation, evaluate, list_metrics
    from cascade_kd.evaluate.reference import reference_metrics
    from cascade_kd.evaluate.settings import EvaluateConfig
else:
    __getattr__ = lazy(
        __name__,
        {
            "Audit": "audit",
            "EvaluateConfig": "settings",
            "Evaluation": "evaluation",
            "FeatureAudit": "audit",
            "agreement_bins": "agreement",
            "audit_dataset": "audit",
            "distill_metrics": "agreement",
            "evaluate": "evaluation",
            "list_metrics": "evaluation",
            "reference_metrics": "reference",
        },
    )

__all__ = [
    "Audit",
    "EvaluateConfig",
    "Evaluation",
    "FeatureAudit",
    "agreement_bins",
    "audit_dataset",
    "distill_metrics",
    "evaluate",
    "list_metrics",
    "reference_metrics",
]

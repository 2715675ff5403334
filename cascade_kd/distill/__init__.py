"""Distillers: who teaches whom, by which pure loss, at which weight (floor 4). They know no optimiser and no data."""

from cascade_kd.distill.logit import LOGIT_LOSSES, logit_loss
from cascade_kd.distill.schedule import weight_at
from cascade_kd.distill.settings import LogitDistillConfig

__all__ = ["LOGIT_LOSSES", "LogitDistillConfig", "logit_loss", "weight_at"]

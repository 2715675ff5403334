"""Metrics (floor 2): exact, float64, without a loop over users. Each states its denominator and returns its count."""

from cascade_kd.metrics.auc import GroupAUC, auc, gauc, group_auc
from cascade_kd.metrics.funnel import Funnel, survival
from cascade_kd.metrics.metric import Metric, mean_and_stderr
from cascade_kd.metrics.orders import joint_recall_at, kendall_tau, survivors
from cascade_kd.metrics.probability import CalibrationCurve, calibration_curve, churn, ece, logloss, platt
from cascade_kd.metrics.ranking import group_recall_at, hits, ndcg_at, overlap_at, recall_at

__all__ = [
    "CalibrationCurve",
    "Funnel",
    "GroupAUC",
    "Metric",
    "auc",
    "calibration_curve",
    "churn",
    "ece",
    "gauc",
    "group_auc",
    "group_recall_at",
    "hits",
    "joint_recall_at",
    "kendall_tau",
    "logloss",
    "mean_and_stderr",
    "ndcg_at",
    "overlap_at",
    "platt",
    "recall_at",
    "survival",
    "survivors",
]

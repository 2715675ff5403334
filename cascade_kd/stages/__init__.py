"""Stages: what a cascade is made of (floor 4). A stage takes requests and candidates and returns candidates."""

from cascade_kd.stages.ensemble import ColumnStage, EnsembleStage
from cascade_kd.stages.interface import LogitStage, Stage, require_online
from cascade_kd.stages.retrieval import RetrievalStage
from cascade_kd.stages.scoring import ScoringStage, event_logits

__all__ = [
    "ColumnStage",
    "EnsembleStage",
    "LogitStage",
    "RetrievalStage",
    "ScoringStage",
    "Stage",
    "event_logits",
    "require_online",
]

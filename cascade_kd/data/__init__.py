"""Data sets: from the files that a TOML names to frozen, encoded tensors (floor 2)."""

from cascade_kd.data.cache import cache_root
from cascade_kd.data.dataset import Dataset, Events, load
from cascade_kd.data.definition import DatasetDefinition, FeatureDefinition
from cascade_kd.data.describe import description, render
from cascade_kd.data.prepare import prepare
from cascade_kd.data.requests import EvaluationRequests, evaluation_requests
from cascade_kd.data.synthetic import WorldConfig, generate

__all__ = [
    "Dataset",
    "DatasetDefinition",
    "EvaluationRequests",
    "Events",
    "FeatureDefinition",
    "WorldConfig",
    "cache_root",
    "description",
    "evaluation_requests",
    "generate",
    "load",
    "prepare",
    "render",
]

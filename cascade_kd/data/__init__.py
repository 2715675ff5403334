"""Data sets: from the files that a TOML names to frozen, encoded tensors (floor 2).

What holds tensors loads on first use: to check, prepare or describe a data set takes none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cascade_kd.data.cache import cache_root
from cascade_kd.data.definition import DatasetDefinition, FeatureDefinition
from cascade_kd.data.describe import description, render
from cascade_kd.data.prepare import prepare
from cascade_kd.data.synthetic import WorldConfig, generate
from cascade_kd.lazy import lazy

if TYPE_CHECKING:
    from cascade_kd.data.dataset import Dataset, Events, load
    from cascade_kd.data.munging import munge
    from cascade_kd.data.requests import EvaluationRequests, PackedRequests, evaluation_requests
else:
    __getattr__ = lazy(
        __name__,
        {
            "Dataset": "dataset",
            "EvaluationRequests": "requests",
            "Events": "dataset",
            "PackedRequests": "requests",
            "evaluation_requests": "requests",
            "load": "dataset",
            "munge": "munging",
        },
    )

__all__ = [
    "Dataset",
    "DatasetDefinition",
    "EvaluationRequests",
    "Events",
    "FeatureDefinition",
    "PackedRequests",
    "WorldConfig",
    "cache_root",
    "description",
    "evaluation_requests",
    "generate",
    "load",
    "munge",
    "prepare",
    "render",
]

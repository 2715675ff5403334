"""Recommender cascades whose cheap stages learn from the ranker.

The names below load on first use, so that ``import cascade_kd`` and the command line's ``--help`` stay quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cascade_kd.lazy import lazy

if TYPE_CHECKING:
    from cascade_kd.cascade import Cascade
    from cascade_kd.config import ExperimentConfig, load_experiment
    from cascade_kd.data import Dataset, load, prepare
    from cascade_kd.experiment import RunResult, run
    from cascade_kd.serve import recommend
    from cascade_kd.types import Candidates, Feature, Inputs, Output, Requests
else:
    __getattr__ = lazy(
        __name__,
        {
            "Candidates": "types",
            "Cascade": "cascade",
            "Dataset": "data",
            "ExperimentConfig": "config",
            "Feature": "types",
            "Inputs": "types",
            "Output": "types",
            "Requests": "types",
            "RunResult": "experiment",
            "load": "data",
            "load_experiment": "config",
            "prepare": "data",
            "recommend": "serve",
            "run": "experiment",
        },
    )

__all__ = [
    "Candidates",
    "Cascade",
    "Dataset",
    "ExperimentConfig",
    "Feature",
    "Inputs",
    "Output",
    "Requests",
    "RunResult",
    "load",
    "load_experiment",
    "prepare",
    "recommend",
    "run",
]

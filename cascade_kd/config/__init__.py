"""From TOML files to one checked object (floor 7), and the explicit tables of what a TOML may name.

``tables``: type and method names. ``files``: the keys of the TOMLs. ``stage_checks``, ``experiment_checks``: what must
hold between them. ``experiment``, ``stage``: the frozen objects that a run gets; ``resolved``: written out again.
``lines``, ``sources``, ``problems``, ``words``: where things stand and how it is said. ``init``: the first two files.
The names below load on first use, so that ``catalogue`` alone costs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cascade_kd.lazy import lazy

if TYPE_CHECKING:
    from cascade_kd.config.catalogue import find, names, resolve
    from cascade_kd.config.dataset import load_dataset_definition
    from cascade_kd.config.describe import describe_catalogue, describe_distillers
    from cascade_kd.config.experiment import ExperimentConfig, load_experiment
    from cascade_kd.config.init import write_first_files
    from cascade_kd.config.resolved import config_sha256, resolved_toml
    from cascade_kd.config.schema import json_schemas
    from cascade_kd.config.stage import StageConfig, TeacherConfig
    from cascade_kd.config.tables import DISTILLERS, models, resolve_type
else:
    __getattr__ = lazy(
        __name__,
        {
            "DISTILLERS": "tables",
            "ExperimentConfig": "experiment",
            "StageConfig": "stage",
            "TeacherConfig": "stage",
            "config_sha256": "resolved",
            "describe_catalogue": "describe",
            "describe_distillers": "describe",
            "find": "catalogue",
            "json_schemas": "schema",
            "load_dataset_definition": "dataset",
            "load_experiment": "experiment",
            "models": "tables",
            "names": "catalogue",
            "resolve": "catalogue",
            "resolve_type": "tables",
            "resolved_toml": "resolved",
            "write_first_files": "init",
        },
    )

__all__ = [
    "DISTILLERS",
    "ExperimentConfig",
    "StageConfig",
    "TeacherConfig",
    "config_sha256",
    "describe_catalogue",
    "describe_distillers",
    "find",
    "json_schemas",
    "load_dataset_definition",
    "load_experiment",
    "models",
    "names",
    "resolve",
    "resolve_type",
    "resolved_toml",
    "write_first_files",
]

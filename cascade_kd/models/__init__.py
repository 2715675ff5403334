"""Models: plain ``nn.Module`` classes that map :class:`~cascade_kd.types.Inputs` to logits (floor 3).

A model class has ``Config`` (a frozen pydantic model, the ``[model]`` table of a stage TOML), ``levels`` (the levels
it can serve), a constructor ``(config, features)``, ``forward(inputs, hidden=()) -> Output`` and ``hidden_names``.
A model that can serve recall also has ``user_vectors`` and ``item_vectors``.
The names below load on first use: the check of a TOML reads ``settings`` alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cascade_kd.lazy import lazy

if TYPE_CHECKING:
    from cascade_kd.models.dcnv2 import DCNv2
    from cascade_kd.models.din import DIN
    from cascade_kd.models.fields import FieldEmbedding
    from cascade_kd.models.final_mlp import FinalMLP
    from cascade_kd.models.interface import Model, SequenceModel, Stretches, TowerModel
    from cascade_kd.models.mlp import MLP
    from cascade_kd.models.multi_task import MultiTask
    from cascade_kd.models.ranker import Ranker
    from cascade_kd.models.table import Table
    from cascade_kd.models.two_tower import TwoTower
else:
    __getattr__ = lazy(
        __name__,
        {
            "DCNv2": "dcnv2",
            "DIN": "din",
            "FieldEmbedding": "fields",
            "FinalMLP": "final_mlp",
            "MLP": "mlp",
            "Model": "interface",
            "MultiTask": "multi_task",
            "Ranker": "ranker",
            "SequenceModel": "interface",
            "Stretches": "interface",
            "Table": "table",
            "TowerModel": "interface",
            "TwoTower": "two_tower",
        },
    )

__all__ = [
    "DIN",
    "MLP",
    "DCNv2",
    "FieldEmbedding",
    "FinalMLP",
    "Model",
    "MultiTask",
    "Ranker",
    "SequenceModel",
    "Stretches",
    "Table",
    "TowerModel",
    "TwoTower",
]

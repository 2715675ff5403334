"""Models: plain ``nn.Module`` classes that map :class:`~cascade_kd.types.Inputs` to logits (floor 3).

A model class has ``Config`` (a frozen pydantic model, the ``[model]`` table of a stage TOML), ``levels`` (the levels
it can serve), a constructor ``(config, features)``, ``forward(inputs, hidden=()) -> Output`` and ``hidden_names``.
A model that can serve recall also has ``user_vectors`` and ``item_vectors``.
"""

from cascade_kd.models.dcnv2 import DCNv2
from cascade_kd.models.fields import FieldEmbedding
from cascade_kd.models.interface import Model, TowerModel
from cascade_kd.models.mlp import MLP
from cascade_kd.models.two_tower import TwoTower

__all__ = ["MLP", "DCNv2", "FieldEmbedding", "Model", "TowerModel", "TwoTower"]

"""Distillers: who teaches whom, by which pure loss, at which weight (floor 4). They know no optimiser and no data.

The names below load on first use: ``settings`` alone, which the check of a TOML reads, takes no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cascade_kd.lazy import lazy

if TYPE_CHECKING:
    from cascade_kd.distill.adapters import Experts, Regressor, gumbel_temperature
    from cascade_kd.distill.logit import LOGIT_LOSSES, logit_loss
    from cascade_kd.distill.pair import ListsConfig, PairConfig
    from cascade_kd.distill.schedule import weight_at
    from cascade_kd.distill.settings import HiddenDistillConfig, LayersConfig, LogitDistillConfig, RelationDistillConfig
else:
    __getattr__ = lazy(
        __name__,
        {
            "Experts": "adapters",
            "LOGIT_LOSSES": "logit",
            "HiddenDistillConfig": "settings",
            "LayersConfig": "settings",
            "ListsConfig": "pair",
            "LogitDistillConfig": "settings",
            "PairConfig": "pair",
            "RelationDistillConfig": "settings",
            "Regressor": "adapters",
            "gumbel_temperature": "adapters",
            "logit_loss": "logit",
            "weight_at": "schedule",
        },
    )

__all__ = [
    "LOGIT_LOSSES",
    "Experts",
    "HiddenDistillConfig",
    "LayersConfig",
    "ListsConfig",
    "LogitDistillConfig",
    "PairConfig",
    "Regressor",
    "RelationDistillConfig",
    "gumbel_temperature",
    "logit_loss",
    "weight_at",
]

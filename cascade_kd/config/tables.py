"""The explicit tables: every name that a TOML may write as ``type`` or ``method``, and what it stands for.

A new model is one entry in ``TYPES``, a new distiller one line in ``DISTILLERS``, a new objective in
``OBJECTIVES``. A plug-in needs no entry: its
``type`` is ``"package.module:Class"``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from cascade_kd.config.words import choose, suggest
from cascade_kd.distill.objectives import (
    AnyObjective,
    ARFConfig,
    COPRConfig,
    FSConfig,
    ICCConfig,
    LCRONConfig,
    RankFlowConfig,
)
from cascade_kd.distill.order_settings import (
    CDConfig,
    DCDConfig,
    ListwiseConfig,
    OrderConfig,
    PairwiseConfig,
    PointwiseConfig,
    RDConfig,
    RRDConfig,
    UnKDConfig,
)
from cascade_kd.distill.settings import HiddenDistillConfig, LogitDistillConfig, RelationDistillConfig
from cascade_kd.errors import UserError
from cascade_kd.models.settings import (
    DCNv2Config,
    DINConfig,
    FinalMLPConfig,
    MultiTaskConfig,
    RankerConfig,
    TwoTowerConfig,
)
from cascade_kd.types import Level, Side

DistillConfig = LogitDistillConfig | HiddenDistillConfig | RelationDistillConfig | OrderConfig

DISTILLERS: Mapping[str, type[DistillConfig]] = {
    "logit": LogitDistillConfig,
    "hidden": HiddenDistillConfig,
    "relation": RelationDistillConfig,
    "topk-pointwise": PointwiseConfig,
    "topk-pairwise": PairwiseConfig,
    "topk-listwise": ListwiseConfig,
    "rd": RDConfig,
    "cd": CDConfig,
    "rrd": RRDConfig,
    "dcd": DCDConfig,
    "unkd": UnKDConfig,
}

OBJECTIVES: Mapping[str, type[AnyObjective]] = {
    "rankflow": RankFlowConfig,
    "icc": ICCConfig,
    "arf": ARFConfig,
    "lcron": LCRONConfig,
    "copr": COPRConfig,
    "fs": FSConfig,
}

STAGE_LEVELS: tuple[Level, ...] = ("recall", "prerank", "rank")
SIDES: tuple[Side, ...] = ("user", "context", "item", "pair")
SIGNALS_OF_MODEL = ("hidden", "logits", "ranking")


@dataclass(frozen=True)
class StageType:
    """What a check must know of a ``type``; of the built-in ones without loading their class, which takes torch."""

    home: str  # package.module:Class
    config: type[BaseModel]  # the ``[model]`` table
    levels: tuple[Level, ...]  # that it can serve
    sides: tuple[Side, ...]  # whose features it can see
    signals: tuple[str, ...] = SIGNALS_OF_MODEL  # that it can teach with
    is_model: bool = True  # a torch module, which the library trains and makes a stage of; else a stage itself
    is_tower: bool = False  # has user and item vectors, so that an index can serve it
    has_sequences: bool = False  # gives a user's vector at every event of a history in one pass


TYPES: Mapping[str, StageType] = {
    "two-tower": StageType(
        "cascade_kd.models.two_tower:TwoTower",
        TwoTowerConfig,
        TwoTowerConfig.levels,
        TwoTowerConfig.sides,
        is_tower=True,
        has_sequences=True,
    ),
    "dcnv2": StageType("cascade_kd.models.dcnv2:DCNv2", DCNv2Config, DCNv2Config.levels, DCNv2Config.sides),
    "din": StageType("cascade_kd.models.din:DIN", DINConfig, DINConfig.levels, DINConfig.sides),
    "final-mlp": StageType(
        "cascade_kd.models.final_mlp:FinalMLP", FinalMLPConfig, FinalMLPConfig.levels, FinalMLPConfig.sides
    ),
    "multi-task": StageType(
        "cascade_kd.models.multi_task:MultiTask", MultiTaskConfig, MultiTaskConfig.levels, MultiTaskConfig.sides
    ),
    "ranker": StageType("cascade_kd.models.ranker:Ranker", RankerConfig, RankerConfig.levels, RankerConfig.sides),
}


def stage_type(name: str) -> StageType:
    """What ``type = "name"`` stands for. Raises UserError; a plug-in is loaded, a built-in type is not."""
    if ":" in name:
        return describe_class(name, _load(name))
    if name not in TYPES:
        raise UserError(
            f"no stage type '{name}'{choose(name, TYPES)}, or a class of your own as \"my_package.my_module:MyStage\""
        )
    return TYPES[name]


def describe_class(home: str, kind: type[Any]) -> StageType:
    """What a class says of itself: its attributes ``levels``, ``sides`` and ``signals`` may be left out."""
    from torch import nn

    is_model = issubclass(kind, nn.Module)
    default = SIGNALS_OF_MODEL if is_model else ("ranking",)
    signals = getattr(kind, "signals", default)
    return StageType(
        home,
        kind.Config,
        getattr(kind, "levels", STAGE_LEVELS),
        getattr(kind, "sides", SIDES),
        tuple(sorted(signals)) if isinstance(signals, tuple | list | set | frozenset) else default,
        is_model=is_model,
        is_tower=hasattr(kind, "user_vectors") and hasattr(kind, "item_vectors"),
        has_sequences=hasattr(kind, "vectors_along"),
    )


def models() -> dict[str, type[Any]]:
    """Type name -> model class."""
    return {name: resolve_type(name) for name in TYPES}


def resolve_type(name: str) -> type[Any]:
    """The class that ``type = "name"`` stands for; it has ``Config``, a pydantic model. Raises UserError.

    A ``torch.nn.Module`` is a model, which the library trains and makes a stage of; any other class is a stage itself.
    """
    return _load(stage_type(name).home)


def _load(name: str) -> type[Any]:
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute.isidentifier():
        raise UserError(f"want \"my_package.my_module:MyStage\", got '{name}'")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name != missing and not module_name.startswith(f"{missing}."):
            raise UserError(f"module '{module_name}' needs '{missing}', which is not installed") from error
        raise UserError(
            f"there is no module '{missing}' on Python's path; install its package, or set PYTHONPATH to its folder"
        ) from error
    except Exception as error:
        raise UserError(f"module '{module_name}' cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, attribute, None)
    if found is None:
        classes = [key for key, value in vars(module).items() if isinstance(value, type)]
        raise UserError(f"module '{module_name}' has no '{attribute}'{suggest(attribute, classes)}")
    config = getattr(found, "Config", None)
    if not isinstance(found, type) or not isinstance(config, type) or not issubclass(config, BaseModel):
        raise UserError(f"'{name}' has no Config; want a class with a pydantic model as its attribute Config")
    return found

"""The explicit tables: every name that a TOML may write as ``type`` or ``method``, and what it stands for.

A new model is one line in :func:`models`, a new distiller one line in ``DISTILLERS``. A plug-in needs no line: its
``type`` is ``"package.module:Class"``.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from cascade_kd.config.words import choose, suggest
from cascade_kd.distill.settings import LogitDistillConfig
from cascade_kd.errors import UserError
from cascade_kd.types import Level, Side

DistillConfig = LogitDistillConfig  # a union, once there are more

DISTILLERS: Mapping[str, type[DistillConfig]] = {
    "logit": LogitDistillConfig,
}

STAGE_LEVELS: tuple[Level, ...] = ("recall", "prerank", "rank")


def models() -> dict[str, type[Any]]:
    """Type name -> model class. A function, so that torch modules are imported only where a type is looked up."""
    from cascade_kd.models import DCNv2, TwoTower

    return {
        "two-tower": TwoTower,
        "dcnv2": DCNv2,
    }


def resolve_type(name: str) -> type[Any]:
    """The class that ``type = "name"`` stands for; it has ``Config``, a pydantic model. Raises UserError.

    A ``torch.nn.Module`` is a model, which the library trains and makes a stage of; any other class is a stage itself.
    """
    if ":" in name:
        return _plug_in(name)
    known = models()
    if name not in known:
        raise UserError(
            f"no stage type '{name}'{choose(name, known)}, or a class of your own as \"my_package.my_module:MyStage\""
        )
    return known[name]


def config_of(kind: type[Any]) -> type[BaseModel]:
    """The pydantic model of a stage's ``[model]`` table."""
    config: type[BaseModel] = kind.Config
    return config


def levels_of(kind: type[Any]) -> tuple[Level, ...]:
    """The levels that a class can serve; all of them if it does not say."""
    levels: tuple[Level, ...] = getattr(kind, "levels", STAGE_LEVELS)
    return levels


def sides_of(kind: type[Any]) -> tuple[Side, ...]:
    """The sides whose features it can see; all of them if it does not say."""
    sides: tuple[Side, ...] = getattr(kind, "sides", ("user", "context", "item", "pair"))
    return sides


def signals_of(kind: type[Any]) -> tuple[str, ...]:
    """What it can teach with: a model has logits; a stage says so in its class attribute ``signals``."""
    default = ("ranking", "logits", "hidden") if is_model(kind) else ("ranking",)
    signals = getattr(kind, "signals", default)
    return tuple(sorted(signals)) if isinstance(signals, tuple | list | set | frozenset) else default


def is_model(kind: type[Any]) -> bool:
    """Whether the library trains it (a torch module), or it comes as a stage of its own."""
    from torch import nn

    return issubclass(kind, nn.Module)


def is_tower(kind: type[Any]) -> bool:
    """Whether its logit is an inner product of a user and an item vector, so that an index can serve it."""
    return hasattr(kind, "user_vectors") and hasattr(kind, "item_vectors")


def _plug_in(name: str) -> type[Any]:
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

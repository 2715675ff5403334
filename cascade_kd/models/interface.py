"""What a model offers, for type checking only: nothing needs to subclass these protocols (floor 3)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from pydantic import BaseModel
from torch import Tensor

from cascade_kd.types import Inputs, Level, Output, Side


@dataclass(frozen=True)
class Stretches:
    """Stretches of B users' histories, and P events of the same users, each with the place that it follows."""

    history: str  # the feature
    item_BL: Tensor  # codes, oldest first, padding 0 behind
    place_P: Tensor  # b * L + l: of the stretch b, the event's history ends with item l; -1: it is empty


@runtime_checkable
class Model(Protocol):
    """A scoring model: logits of R rows, and hidden states by name where asked for.

    One that learns auxiliary labels has ``auxiliary``, label -> weight of the loss, and hidden states ``head.LABEL``.
    """

    Config: ClassVar[type[BaseModel]]
    levels: ClassVar[tuple[Level, ...]]
    sides: ClassVar[tuple[Side, ...]]

    def __call__(self, inputs: Inputs, hidden: Collection[str] = ()) -> Output:
        """Logits [R] and the hidden states named in ``hidden``."""
        ...

    @property
    def hidden_names(self) -> tuple[str, ...]:
        """All hidden states that can be asked for."""
        ...

    def parameters(self) -> Any:
        """As in ``nn.Module``."""
        ...


@runtime_checkable
class TowerModel(Model, Protocol):
    """A model whose logit is an inner product of a user and an item vector, so an index can serve it."""

    def user_vectors(self, columns: Mapping[str, Tensor]) -> Tensor:
        """[B, D] of the user and context columns."""
        ...

    def item_vectors(self, columns: Mapping[str, Tensor]) -> Tensor:
        """[R, D] of the item columns."""
        ...


@runtime_checkable
class SequenceModel(TowerModel, Protocol):
    """A tower model that gives a user's vector at every event of a stretch of its history in one causal pass."""

    def vectors_along(self, columns: Mapping[str, Tensor], stretches: Stretches) -> Tensor:
        """[P, D] of the events of ``stretches``; ``columns`` are their user and context columns but the history."""
        ...

"""The interface of a stage, for type checking (a plug-in need not subclass it), and its one rule (floor 4)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from torch import Tensor

from cascade_kd.errors import UserError
from cascade_kd.types import Candidates, Feature, Level, Requests


def require_online(stage: str, level: Level, features: Iterable[Feature]) -> None:
    """Refuse features that are online later than a stage's level. Raises ``UserError`` that names them all."""
    late = [
        f"'{feature.name}' (available at {feature.available})" for feature in features if not feature.online_at(level)
    ]
    if late:
        raise UserError(
            f"stage '{stage}' is of level '{level}', where these features are not online: {', '.join(late)}; they are "
            "privileged: leave them to a teacher, or give the stage a later level"
        )


@runtime_checkable
class Stage(Protocol):
    """Orders what it receives and keeps its budget.

    ``signals`` says what it can teach with: ``ranking`` (every stage has an order), ``logits``, ``hidden``,
    ``embedding``. The first stage of a cascade receives None and draws on the whole catalogue.
    """

    @property
    def name(self) -> str:
        """Unique within a cascade."""
        ...

    @property
    def level(self) -> Level:
        """Which features it may see."""
        ...

    @property
    def keep(self) -> int:
        """Its budget: how many candidates it hands on."""
        ...

    @property
    def signals(self) -> frozenset[str]:
        """What it can teach with."""
        ...

    def order(self, requests: Requests, candidates: Candidates | None) -> Candidates:
        """All the candidates that were received, best first; a recall stage: its own best ``keep``."""
        ...

    def __call__(self, requests: Requests, candidates: Candidates | None) -> Candidates:
        """The first ``keep`` of :meth:`order`."""
        ...


@runtime_checkable
class LogitStage(Stage, Protocol):
    """A stage whose ``signals`` hold ``logits``: it can be measured by AUC and can teach or learn by logits."""

    def logits(self, requests: Requests, item_R: Tensor, row_R: Tensor, event_R: Tensor | None = None) -> Tensor:
        """Logits [R] of the rows (request, item)."""
        ...

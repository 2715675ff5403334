"""Which input columns reach a stage's logits, traced through its model, against what its level has online (floor 6).

Every tensor is followed from the columns that it was computed from, operation by operation, as a small batch of logged
rows runs through the model. So sparse products and gradients of our own, which exporters refuse, are followed as well;
what the batch does not run is not seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from cascade_kd.errors import UserError
from cascade_kd.models.modes import evaluating
from cascade_kd.stages import RetrievalStage, ScoringStage

EXAMPLES = 4  # rows of the batch
TO_PYTHON = {Tensor.tolist, Tensor.numpy, Tensor.__array__}  # leave torch without an operation

ModelStage = ScoringStage | RetrievalStage


def prove_availability(stage: ModelStage) -> frozenset[str]:
    """The inputs that reach the stage's logits, if its level has them all online. Raises ``UserError`` with the others.

    The data set's availability decides, whatever the stage's own list of features says.
    """
    reached = traced_inputs(stage)
    features = [stage.dataset.feature(name) for name in sorted(reached)]
    late = [f"'{f.name}' (available at {f.available})" for f in features if not f.online_at(stage.level)]
    if late:
        raise UserError(
            f"stage '{stage.name}' is of level '{stage.level}', and its logits are computed from {', '.join(late)}, "
            "which the data set has online later; leave these features out of the stage, or give it a later level"
        )
    return reached


def traced_inputs(stage: ModelStage) -> frozenset[str]:
    """The names of the input columns that the stage's logits (of a recall stage: its vectors, too) are computed from.

    A column that is handed to the model and not used does not count; one whose values the model turns into Python
    numbers does, since what these decide cannot be followed.
    """
    dataset, model = stage.dataset, stage.model
    rows = dataset.rows("test")[:EXAMPLES]
    inputs = dataset.inputs(
        [feature.name for feature in stage.features],
        dataset.requests_of(rows, part="test"),
        dataset.events.item_N[rows],
        torch.arange(len(rows), device=rows.device),
        part="test",
        event_R=rows,
    )
    flow = _Flow()
    for name, column in (*inputs.user.items(), *inputs.item.items()):
        flow.mark(column, frozenset([name]))
    assert isinstance(model, nn.Module)
    with evaluating(model), _ToPython(flow), flow:
        reached = [model(inputs).logits_R]
        if isinstance(stage, RetrievalStage):
            reached += [stage.model.user_vectors(inputs.user), stage.model.item_vectors(inputs.item)]
    return flow.of(reached) | flow.escaped


class _Flow(TorchDispatchMode):
    """Column names by tensor: an operation's outputs, and what it writes to, come from all that its inputs come from.

    Views share the names of their memory.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.escaped = frozenset[str]()
        self._names: dict[int, frozenset[str]] = {}
        self._alive: list[Tensor] = []  # the key of a tensor stays its own while the tensor lives

    def of(self, values: object) -> frozenset[str]:
        """The columns that any of the tensors in ``values`` comes from."""
        return frozenset[str]().union(*(self._names.get(_memory(x), frozenset()) for x in _tensors(values)))

    def mark(self, values: object, names: frozenset[str]) -> None:
        """Let all tensors in ``values`` come from ``names`` as well."""
        for x in _tensors(values):
            self._names[_memory(x)] = self._names.get(_memory(x), frozenset()) | names
            self._alive.append(x)

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        names = self.of((args, kwargs))
        out = func(*args, **kwargs)
        if names:
            self.mark(out, names)
            for place, argument in enumerate(func._schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self.mark(args[place] if place < len(args) else kwargs.get(argument.name), names)
            if any(isinstance(x, (bool, int, float)) for x in tree_iter(out)):
                self.escaped |= names
        return out


class _ToPython(TorchFunctionMode):
    """Notes the columns whose values become Python numbers or arrays."""

    def __init__(self, flow: _Flow) -> None:
        super().__init__()
        self.flow = flow

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in TO_PYTHON:
            self.flow.escaped |= self.flow.of(args)
        return func(*args, **(kwargs or {}))


def _tensors(values: object) -> Iterable[Tensor]:
    return (x for x in tree_iter(values) if isinstance(x, Tensor))


def _memory(x: Tensor) -> int:
    """What views of a tensor share; sparse tensors are known by themselves."""
    return id(x) if x.layout != torch.strided else x.untyped_storage()._cdata

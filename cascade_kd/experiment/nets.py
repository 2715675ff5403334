"""The models of an experiment before they are trained: what they read, and the hidden states they give (floor 8)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import nn

from cascade_kd.config import ExperimentConfig, StageConfig
from cascade_kd.config.tables import DistillConfig
from cascade_kd.data import Dataset
from cascade_kd.distill import LayersConfig, LogitDistillConfig, RelationDistillConfig
from cascade_kd.errors import UserError
from cascade_kd.models import Model
from cascade_kd.models.modes import evaluating
from cascade_kd.stages import RetrievalStage, ScoringStage, Stage
from cascade_kd.streams import scoped_seed
from cascade_kd.types import Feature

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Net:
    """A model and what it reads."""

    model: Model
    features: tuple[Feature, ...]


def stage_features(stage: StageConfig, model: type[Model], dataset: Dataset) -> tuple[Feature, ...]:
    """The features that the stage reads: those listed, or all of the model's sides that its level has online."""
    if stage.features == "all":
        return tuple(feature for feature in dataset.online(stage.level) if feature.side in model.sides)
    return tuple(dataset.feature(name) for name in stage.features)


def nets_of(config: ExperimentConfig, dataset: Dataset, *, taught_only: bool = False) -> dict[str, Net]:
    """The models of stages and teachers with some weights; ``taught_only``: those whose layers a distiller names."""
    named = {who for p in config.distill for who in (p.teacher, p.student) if p.mode == "joint"}
    named |= {
        who for p in config.distill for who in (p.teacher, p.student) if p.method != "logit" or p.layer is not None
    }
    stages = [*config.stages, *(teacher.model for teacher in config.teachers if teacher.model is not None)]
    nets: dict[str, Net] = {}
    for stage in stages:
        if (stage.name in named or not taught_only) and issubclass(stage.model_type, nn.Module):
            features = stage_features(stage, stage.model_type, dataset)
            with scoped_seed(0):
                nets[stage.name] = Net(
                    stage.model_type(stage.model, features).to(dataset.events.user_N.device), features
                )
    return nets


def describe_layers(config: ExperimentConfig, dataset: Dataset) -> list[tuple[str, str, tuple[int, ...]]]:
    """(stage, layer, shape for one row) of every hidden state that a model of the experiment gives."""
    shapes = {name: layer_shapes(net, dataset) for name, net in nets_of(config, dataset).items()}
    return [(name, layer, shape) for name, of in shapes.items() for layer, shape in of.items()]


def layer_shapes(net: Net, dataset: Dataset) -> dict[str, Shape]:
    """Every hidden state's shape for one row, by a pass over two training rows."""
    rows = dataset.rows("train")[:2]
    requests = dataset.requests_of(rows, part="train")
    row_R = torch.arange(len(rows), device=rows.device)
    names = [feature.name for feature in net.features]
    inputs = dataset.inputs(names, requests, dataset.events.item_N[rows], row_R, part="train", event_R=rows)
    with evaluating(net.model):
        hidden = net.model(inputs, net.model.hidden_names).hidden
    return {name: tuple(hidden[name].shape[1:]) for name in net.model.hidden_names}


def check_layers(config: ExperimentConfig, nets: Mapping[str, Net], dataset: Dataset) -> None:
    """Refuse hidden layers that there are not, and widths that do not fit, before anything is trained.

    ``nets`` are stages and teachers by name. Raises UserError with the layers that there are.
    """
    shapes = {name: layer_shapes(net, dataset) for name, net in nets.items()}
    for pair in config.distill:
        if isinstance(pair, LogitDistillConfig) and pair.layer is not None:
            _shape(pair, shapes, pair.student, pair.layer)
        if not isinstance(pair, LayersConfig):
            continue
        for of_teacher, of_student in pair.layers:
            theirs = _shape(pair, shapes, pair.teacher, of_teacher)
            ours = _shape(pair, shapes, pair.student, of_student)
            if isinstance(pair, RelationDistillConfig):
                continue
            attention = pair.loss == "attention"
            fits = theirs[:-1] == ours[:-1] if attention and len(theirs) == 2 else theirs == ours
            if not fits and (attention or pair.projector == "none"):
                remedy = (
                    "attention maps compare places one by one; name layers of one width or number of fields"
                    if attention
                    else 'add projector = "linear", or name layers of one shape'
                )
                raise UserError(
                    f"distill {pair.name}: layer '{of_teacher}' of '{pair.teacher}' has the shape {list(theirs)} and "
                    f"'{of_student}' of '{pair.student}' {list(ours)}; {remedy}"
                )


def width_of(shape: Shape) -> int:
    """The width of a state once it is flattened."""
    return prod(shape)


def _shape(pair: DistillConfig, shapes: Mapping[str, Mapping[str, Shape]], who: str, layer: str) -> Shape:
    there = shapes[who]
    if layer not in there:
        listed = ", ".join(f"'{name}'" for name in there) or "none"
        raise UserError(f"distill {pair.name}: '{who}' has no hidden layer '{layer}'; it has {listed}")
    return there[layer]


def net_of(stage: Stage) -> Net:
    """The model of a stage that has one, and what it reads."""
    assert isinstance(stage, ScoringStage | RetrievalStage), "config refuses a teacher without hidden states"
    return Net(stage.model, stage.features)

"""The ``[[distill]]`` tables of the methods on logits and hidden states, one pydantic model a method."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from cascade_kd.distill.pair import LABEL_LOSSES, ListsConfig, PairConfig

LAYER_PAIR = 2  # [teacher, student]
SOFTENED = ("kl",)  # losses on logits that have a temperature


class LogitDistillConfig(ListsConfig):
    """The student's logits are drawn to the teacher's, row by row or list by list."""

    needs: ClassVar[tuple[str, ...]] = ("logits",)
    student_losses: ClassVar[tuple[str, ...]] = ("bce",)
    row_losses: ClassVar[tuple[str, ...] | None] = ("kl", "bce", "mse", "mimic", "prob-mse")

    method: Literal["logit"]
    """The distiller."""
    loss: Literal["kl", "bce", "mse", "mimic", "prob-mse", "clid"] = "kl"
    """`kl`: Bernoulli KL at `temperature`, times its square (Hinton et al.); `bce`: the same plus the
    teacher's entropy, as PFD writes it; `mse`: squared difference of logits (Rocket Launching); `mimic`: half of it
    after both are standardised by the teacher's mean and deviation (SNN-MIMIC), which a `joint` teacher has not, so
    that it is half of `mse` there; `prob-mse`: of probabilities; `clid`: KL of the probabilities normalised over a
    list, which leaves calibration to the label (CLID). With `lists`, `kl` and `prob-mse` are of the softmax over the
    list."""
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Softens both sides; for loss `kl` only."""
    head: Literal["served", "auxiliary"] = "served"
    """Whose logits learn: the served ones, or those of a second head on `layer`, which is never served and leaves the
    served head's calibration alone (Khani et al., RecSys 2024)."""
    layer: str | None = Field(default=None, validate_default=True)
    """The student's hidden layer under an `auxiliary` head, as `cascade-kd list layers` names it."""

    @field_validator("temperature")
    @classmethod
    def _temperature_softens(cls, value: float, info: ValidationInfo) -> float:
        loss = info.data.get("loss")
        if loss is not None and loss not in SOFTENED and value != 1:
            raise ValueError(f'loss = "{loss}" has no temperature, got {value:g}; leave it out or choose loss = "kl"')
        return value

    @field_validator("layer")
    @classmethod
    def _layer_under_a_head(cls, value: str | None, info: ValidationInfo) -> str | None:
        head = info.data.get("head")
        if head == "served" and value is not None:
            raise ValueError('the served head stays where it is; leave layer out, or write head = "auxiliary"')
        if head == "auxiliary" and value is None:
            raise ValueError('head = "auxiliary" needs the layer it stands on, such as layer = "mlp.1"')
        return value


class LayersConfig(PairConfig):
    """What every method on hidden states says."""

    needs: ClassVar[tuple[str, ...]] = ("hidden",)
    student_losses: ClassVar[tuple[str, ...]] = LABEL_LOSSES

    layers: tuple[tuple[str, ...], ...] = Field(min_length=1)
    """Pairs [teacher's layer, student's layer], as `cascade-kd list layers` names them."""

    @field_validator("layers")
    @classmethod
    def _pairs(cls, value: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
        for pair in value:
            if len(pair) != LAYER_PAIR:
                raise ValueError(f"want pairs [teacher's layer, student's layer], got {list(pair)}")
        return value


class HiddenDistillConfig(LayersConfig):
    """The student's hidden states are drawn to the teacher's, layer by layer."""

    method: Literal["hidden"]
    """The distiller."""
    loss: Literal["hint", "attention"] = "hint"
    """`hint`: half the squared distance (FitNets); `attention`: of normalised squared activations, so that only where
    a layer is active counts (attention transfer)."""
    projector: Literal["none", "linear", "mlp", "experts"] = Field(default="none", validate_default=True)
    """What maps the student's state to the teacher's width: nothing, a linear map, one hidden layer, or a mixture of
    `experts` (DE, Kang et al., CIKM 2020). Trained with the student, never served; for `hint` only."""
    experts: int | None = Field(default=None, ge=1, validate_default=True)
    """How many, for projector `experts`; 30 unless given."""
    phases: tuple[Literal["hint", "full"], ...] = ("full",)
    """["full"]: this loss beside all others. ["hint", "full"]: at first this loss alone, then all others without it
    (FitNets)."""
    hint_epochs: int | None = Field(default=None, ge=1, validate_default=True)
    """Epochs of phase `hint`; 1 unless given."""

    @field_validator("projector")
    @classmethod
    def _projector_is_for_hints(cls, value: str, info: ValidationInfo) -> str:
        if value != "none" and info.data.get("loss") == "attention":
            raise ValueError(f'loss = "attention" compares places, not units, and takes no projector, got "{value}"')
        return value

    @field_validator("experts")
    @classmethod
    def _experts_of_a_projector(cls, value: int | None, info: ValidationInfo) -> int | None:
        projector = info.data.get("projector")
        if projector == "experts":
            return 30 if value is None else value
        if value is not None and projector is not None:
            raise ValueError(f'projector = "{projector}" has no experts, got {value}; leave it out')
        return value

    @field_validator("phases")
    @classmethod
    def _known_phases(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if value not in (("full",), ("hint", "full")):
            raise ValueError(f'want ["full"] or ["hint", "full"], got {list(value)}')
        for key, default in (("warmup_steps", 0), ("schedule", "constant")):
            if value != ("full",) and info.data.get(key, default) != default:
                raise ValueError(f'phase "hint" has one weight from the first step on; leave {key} out')
        return value

    @field_validator("hint_epochs")
    @classmethod
    def _epochs_of_a_phase(cls, value: int | None, info: ValidationInfo) -> int | None:
        phases = info.data.get("phases")
        if phases == ("hint", "full"):
            return 1 if value is None else value
        if value is not None and phases is not None:
            raise ValueError('hint_epochs is for phases = ["hint", "full"]; leave it out')
        return value


class RelationDistillConfig(LayersConfig):
    """The cosines between all states of a batch are drawn to the teacher's (FTD, Kang et al., KDD 2021)."""

    method: Literal["relation"]
    """The distiller."""

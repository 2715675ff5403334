"""The ``[[distill]]`` tables, one pydantic model a method.

``needs`` names the signals that the teacher must give, ``student_losses`` the label losses that a student may have.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

LAYER_PAIR = 2  # [teacher, student]
SOFTENED = ("kl",)  # losses on logits that have a temperature


class PairConfig(BaseModel):
    """What every ``[[distill]]`` table says."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    needs: ClassVar[tuple[str, ...]] = ("logits",)
    student_losses: ClassVar[tuple[str, ...]] = ("bce",)

    teacher: str
    """The stage or `[[teacher]]` that teaches."""
    student: str
    """The stage that learns."""
    mode: Literal["offline", "joint"] = "offline"
    """`offline`: the teacher is trained first and frozen. `joint`: one step trains a fresh teacher and the student on
    the student's rows."""
    weight: float = Field(default=0.5, ge=0, allow_inf_nan=False)
    """Factor of the distillation loss in the student's loss."""
    warmup_steps: int = Field(default=0, ge=0)
    """The weight is 0 for so many optimiser steps."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the weight goes from `weight` to `end_weight`."""
    end_weight: float | None = Field(default=None, ge=0, allow_inf_nan=False, validate_default=True)
    """The weight at the last step; for schedules `linear` and `cosine` only."""
    share: tuple[str, ...] = ()
    """With mode `joint`: what both nets have in common. `embedding`: all that embeds a feature both read; `mlp.0` and
    the like: that layer's weights, batch norm excepted."""
    unshared: tuple[str, ...] = Field(default=(), alias="except")
    """With `embedding` shared: features that each net embeds for itself, as `embedding.user_id`, and with them all
    features of the same vocabulary."""
    block: bool = True
    """With mode `joint`: the distillation gradient does not reach the teacher."""

    @field_validator("end_weight")
    @classmethod
    def _end_weight_fits_the_schedule(cls, value: float | None, info: ValidationInfo) -> float | None:
        schedule = info.data.get("schedule")
        if schedule == "constant" and value is not None:
            raise ValueError('schedule = "constant" has no end_weight; leave it out or choose "linear" or "cosine"')
        if schedule in ("linear", "cosine") and value is None:
            raise ValueError(f'schedule = "{schedule}" needs end_weight, the weight at the last step')
        return value

    @field_validator("share")
    @classmethod
    def _shared_when_joint(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if value and info.data.get("mode") == "offline":
            raise ValueError('only mode = "joint" shares modules; leave share out, or train the pair jointly')
        return value

    @field_validator("unshared")
    @classmethod
    def _excepted_from_the_embedding(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if value and "embedding" not in info.data.get("share", ("embedding",)):
            raise ValueError('except names features of the shared embedding; want share = ["embedding"] beside it')
        wrong = [name for name in value if not name.startswith("embedding.") or name == "embedding."]
        if wrong:
            raise ValueError(f"want embedding.FEATURE, as in 'embedding.user_id', got '{wrong[0]}'")
        return value

    @field_validator("block")
    @classmethod
    def _open_when_joint(cls, value: bool, info: ValidationInfo) -> bool:
        if not value and info.data.get("mode") == "offline":
            raise ValueError('an offline teacher is frozen whatever block says; leave it out, or take mode = "joint"')
        return value

    @property
    def name(self) -> str:
        """How reports and logs call the pair: ``teacher->student:method``, and `` joint`` behind it if it is."""
        method = getattr(self, "method")  # noqa: B009 - every table of a method has one
        return f"{self.teacher}->{self.student}:{method}{' joint' if self.mode == 'joint' else ''}"

    @property
    def source(self) -> str:
        """The net that teaches: a joint one is another than the stage of that name."""
        return f"{self.teacher} joint" if self.mode == "joint" else self.teacher

    @property
    def is_cached(self) -> bool:
        """Whether the teacher's logits of all training rows are computed before the training."""
        return isinstance(self, LogitDistillConfig) and self.mode == "offline"


class LogitDistillConfig(PairConfig):
    """The student's logits are drawn to the teacher's, row by row."""

    method: Literal["logit"]
    """The distiller."""
    loss: Literal["kl", "bce", "mse", "mimic", "prob-mse"] = "kl"
    """`kl`: Bernoulli KL at `temperature`, times its square (Hinton et al.); `bce`: the same plus the
    teacher's entropy, as PFD writes it; `mse`: squared difference of logits (Rocket Launching); `mimic`: half of it
    after both are standardised by the teacher's mean and deviation (SNN-MIMIC), which a `joint` teacher has not, so
    that it is half of `mse` there; `prob-mse`: of probabilities."""
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
    student_losses: ClassVar[tuple[str, ...]] = ("bce", "sampled-softmax", "full-softmax", "bpr", "ccl")

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

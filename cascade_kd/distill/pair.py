"""What every ``[[distill]]`` table says, and what every table of a method on lists or of several stages says.

``needs`` names the signals that the teacher must give, ``student_losses`` the label losses that a student may have.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

LABEL_LOSSES = ("bce", "sampled-softmax", "full-softmax", "bpr", "ccl")
LIST_KINDS = ("requests", "upstream", "catalogue", "log")
STRICT = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
CATALOGUE_DEPTH = 500  # places of a catalogue list, unless a method says how many it wants


class Weighted(BaseModel):
    """How much a term counts, step by step."""

    model_config = STRICT

    weight: float = Field(default=0.5, ge=0, allow_inf_nan=False)
    """Factor of the term in the loss."""
    warmup_steps: int = Field(default=0, ge=0)
    """The weight is 0 for so many optimiser steps."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the weight goes from `weight` to `end_weight`."""
    end_weight: float | None = Field(default=None, ge=0, allow_inf_nan=False, validate_default=True)
    """The weight at the last step; for schedules `linear` and `cosine` only."""

    @field_validator("end_weight")
    @classmethod
    def _end_weight_fits_the_schedule(cls, value: float | None, info: ValidationInfo) -> float | None:
        schedule = info.data.get("schedule")
        if schedule == "constant" and value is not None:
            raise ValueError('schedule = "constant" has no end_weight; leave it out or choose "linear" or "cosine"')
        if schedule in ("linear", "cosine") and value is None:
            raise ValueError(f'schedule = "{schedule}" needs end_weight, the weight at the last step')
        return value


class ListKeys(BaseModel):
    """Which lists are learned from."""

    model_config = STRICT
    cut_to_k: ClassVar[bool] = False  # whether a list of the catalogue ends with the method's k

    lists: Literal["requests", "upstream", "catalogue", "log"] | None = None
    """What the teacher orders. `requests`: the rows of one request; `upstream`: what the stages before the student hand
    on for every training user at the end of training; `catalogue`: all items; `log`: nothing, the order that was shown
    is in the log (`[roles] position`). Unless given, `requests` where the data set has them, else `catalogue` for a
    recall stage and `upstream` for others."""
    depth: int | None = Field(default=None, ge=2)
    """The teacher's first places that are kept of every list. Unless given, all, and of `catalogue` lists 500, or `k`
    for the `topk-` methods."""
    lists_per_step: int = Field(default=64, ge=1)
    """Lists that a step learns from; all lists are gone through in a new order, then again."""
    approximate: bool = False
    """With `catalogue`: the teacher orders the first stage's best 10 x `depth` items alone."""

    def kind(self, *, has_requests: bool, alone: bool) -> str:
        """What the teacher orders; ``alone``: the student stands at the recall level, or no stage before it."""
        return self.lists or ("requests" if has_requests else "catalogue" if alone else "upstream")

    def depth_of(self, kind: str) -> int | None:
        """Places that are kept of a list of this kind; None: all."""
        if self.depth is not None or kind != "catalogue":
            return self.depth
        return getattr(self, "k", CATALOGUE_DEPTH) if self.cut_to_k else CATALOGUE_DEPTH


class Ends(BaseModel):
    """Who teaches whom."""

    model_config = STRICT

    teacher: str
    """The stage or `[[teacher]]` that teaches."""
    student: str
    """The stage that learns."""
    mode: Literal["offline", "joint"] = "offline"
    """`offline`: the teacher is trained first and frozen. `joint`: one step trains a fresh teacher and the student on
    the student's rows."""


def joint_name(teacher: str) -> str:
    """How a round calls the teacher that was trained with its students; no stage can have the name."""
    return f"{teacher}.joint"


class PairConfig(Weighted, Ends):  # whose keys come first
    """What every ``[[distill]]`` table says."""

    needs: ClassVar[tuple[str, ...]] = ("logits",)
    student_losses: ClassVar[tuple[str, ...]] = ("bce",)

    share: tuple[str, ...] = ()
    """With mode `joint`: what both nets have in common. `embedding`: all that embeds a feature both read; `mlp.0` and
    the like: that layer's weights, batch norm excepted."""
    unshared: tuple[str, ...] = Field(default=(), alias="except")
    """With `embedding` shared: features that each net embeds for itself, as `embedding.user_id`, and with them all
    features of the same vocabulary."""
    block: bool = True
    """With mode `joint`: the distillation gradient does not reach the teacher."""
    teacher_epochs: int = Field(default=0, ge=0)
    """With mode `joint`: epochs that the teacher goes on alone, on its label, when its students are done."""

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

    @field_validator("teacher_epochs")
    @classmethod
    def _alone_after_joint(cls, value: int, info: ValidationInfo) -> int:
        if value and info.data.get("mode") == "offline":
            raise ValueError('an offline teacher is complete; leave teacher_epochs out, or take mode = "joint"')
        return value

    @property
    def name(self) -> str:
        """How reports and logs call the pair: ``teacher->student:method``, and `` joint`` behind it if it is."""
        method = getattr(self, "method")  # noqa: B009 - every table of a method has one
        return f"{self.teacher}->{self.student}:{method}{' joint' if self.mode == 'joint' else ''}"

    @property
    def shown(self) -> str:
        """How messages call the table."""
        return f"distill {self.name}"

    @property
    def source(self) -> str:
        """The net that teaches: a joint one is another than the stage of that name."""
        return joint_name(self.teacher) if self.mode == "joint" else self.teacher

    @property
    def is_cached(self) -> bool:
        """Whether the teacher's logits of all training rows are computed before the training."""
        method = getattr(self, "method")  # noqa: B009 - as above
        return method == "logit" and self.mode == "offline" and not self.on_lists

    @property
    def on_lists(self) -> bool:
        """Whether the student learns on lists that the teacher ordered, and not on its own training rows."""
        if not isinstance(self, ListsConfig):
            return False
        return self.row_losses is None or getattr(self, "loss") not in self.row_losses or self.lists is not None  # noqa: B009


class ListsConfig(ListKeys, PairConfig):
    """What every method on lists says; one that has ``row_losses`` can work row by row, too."""

    needs: ClassVar[tuple[str, ...]] = ("ranking",)
    student_losses: ClassVar[tuple[str, ...]] = LABEL_LOSSES
    row_losses: ClassVar[tuple[str, ...] | None] = None

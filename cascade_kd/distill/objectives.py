"""The ``[[objective]]`` tables: methods that train neighbouring stages together on the same lists.

One pydantic model a method. ``ordered`` methods read the whole order of a list and not only its truth.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from cascade_kd.distill.pair import ListKeys, Weighted

Budget = Annotated[int, Field(ge=1)]


class ObjectiveConfig(ListKeys, Weighted):
    """What every ``[[objective]]`` table says."""

    ordered: ClassVar[bool] = False

    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Factor of the objective beside the stages' own label losses."""
    stages: tuple[str, ...] = Field(min_length=2)
    """Neighbouring stages in the order of the cascade, which are trained in the same steps."""
    truth: Literal["top", "label"] = "top"
    """What should come through. `top`: the first places of every list in the order of `teacher`, or of the log with
    `lists = "log"`; `label`: the rows of a request whose `label` is true."""
    teacher: str | None = None
    """With truth `top`: the stage or `[[teacher]]` of the round before that orders the lists; a `[[teacher]]` with
    `column` brings logged outcomes, such as how far every row came. The last stage unless given."""
    label: str | None = None
    """With truth `label`: a label of the data set; that of the last of `stages` unless given."""

    k: int | None = Field(default=None, ge=1)
    """With truth `top`: so many truths of a list, fewer where it is shorter; the last stage's `keep` unless given.
    `icc`, `fs` and `copr` read the order alone, and k counts in their `joint_recall@k@m`."""

    @field_validator("stages")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({name for name in value if value.count(name) > 1})
        if twice:
            raise ValueError(f"'{twice[0]}' is listed twice")
        return value

    @field_validator("truth")
    @classmethod
    def _truth_with_an_order(cls, value: str, info: ValidationInfo) -> str:
        if value == "label" and cls.ordered:
            raise ValueError('this method learns the whole order of a list, which a label has not; want truth = "top"')
        lists, depth = info.data.get("lists"), info.data.get("depth")
        if value == "label" and lists not in (None, "requests"):
            raise ValueError(f'labels are those of the rows of a request, and lists = "{lists}"; want "requests"')
        if value == "label" and depth is not None:
            raise ValueError("labels are in no order that depth could cut; leave depth out")
        return value

    @field_validator("teacher")
    @classmethod
    def _teacher_of_an_order(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("truth") == "label":
            raise ValueError('truth = "label" asks nobody for an order; leave teacher out, or want truth = "top"')
        if value is not None and info.data.get("lists") == "log":
            raise ValueError('lists = "log" is the order that was shown; leave teacher out, or want lists = "requests"')
        return value

    @field_validator("label")
    @classmethod
    def _label_of_a_truth(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("truth") == "top":
            raise ValueError('truth = "top" reads no label; leave it out, or want truth = "label"')
        return value

    @field_validator("k")
    @classmethod
    def _k_of_an_order(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("truth") == "label":
            raise ValueError('truth = "label" has as many truths as true labels; leave k out')
        depth = info.data.get("depth")
        if value is not None and depth is not None and value > depth:
            raise ValueError(f"the lists end at depth = {depth}, before k; got {value}")
        return value

    @property
    def name(self) -> str:
        """How reports and logs call it: ``method:first+second``."""
        return f"{getattr(self, 'method')}:{'+'.join(self.stages)}"  # noqa: B009 - every table of a method has one

    @property
    def shown(self) -> str:
        """How messages call the table."""
        return f"objective {self.name}"

    @property
    def student(self) -> str:
        """The stage before which the lists stand: the first."""
        return self.stages[0]


def _one_a_stage(value: tuple[int, ...] | None, info: ValidationInfo) -> tuple[int, ...] | None:
    stages = info.data.get("stages")
    if value is not None and stages is not None and len(value) != len(stages):
        raise ValueError(f"want one number for each of {len(stages)} stages, got {list(value)}")
    return value


class LCRONConfig(ObjectiveConfig):
    """The chance of the truths to survive the cuts of all stages, by NeuralSort, beside that of every stage alone."""

    method: Literal["lcron"]
    """The objective (Wang et al., 2025). Its weights of the single stages are learnt."""
    budgets: tuple[Budget, ...] | None = None
    """How many of a list every stage keeps; the stages' `keep` unless given. A stage that keeps the whole list cuts
    nothing. The authors' code has the number of truths for every stage."""
    temperature: float = Field(default=50.0, gt=0, allow_inf_nan=False)
    """Of NeuralSort: the logits of a list of n places are multiplied by up to n before it divides them."""

    _budgets = field_validator("budgets")(_one_a_stage)


class ARFConfig(ObjectiveConfig):
    """Every stage's recall of the truths at its budget beside the whole order of the list, both by NeuralSort."""

    ordered: ClassVar[bool] = True

    method: Literal["arf"]
    """The objective (Wang et al., WWW 2024), for every stage by itself. The weight of the order is learnt."""
    budgets: tuple[Budget, ...] | None = None
    """How many of a list every stage keeps; the stages' `keep` unless given. A list that is not longer teaches the
    stage nothing."""
    temperature: float = Field(default=200.0, gt=0, allow_inf_nan=False)
    """Of NeuralSort."""
    two_sided: bool = False
    """Whether places that are no truth are pushed behind the budget, too (ARF-v2)."""

    _budgets = field_validator("budgets")(_one_a_stage)


class ICCConfig(ObjectiveConfig):
    """Pairs of a list in the order of the score that the whole cascade gives them, through soft cuts."""

    method: Literal["icc"]
    """The objective (Gallagher et al., WSDM 2019); with truth `label`, pairs of a true and a false row."""
    budgets: tuple[Budget, ...] | None = None
    """How many of a list every stage keeps; the stages' `keep` unless given."""
    width: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    """Of the soft cut about the score of the last place that is kept."""
    gate: Literal["sigmoid", "clip"] = "sigmoid"
    """The form of the cut: `clip` is a ramp that ends."""

    _budgets = field_validator("budgets")(_one_a_stage)


class FSConfig(ObjectiveConfig):
    """Pairs of a list whose upper place came further down the cascade, for every stage by itself."""

    method: Literal["fs"]
    """The objective (FS-LTR of RecFlow, ICLR 2025, in its RankNet form). A `[[teacher]]` with `column` says how far
    every row came, and equal values are no pair; with truth `label`, pairs of a true and a false row."""


class COPRConfig(ObjectiveConfig):
    """Pairs of places drawn from chunks of the teacher's list, weighted by what swapping them does to its nDCG."""

    ordered: ClassVar[bool] = True

    method: Literal["copr"]
    """The objective (Zhao et al., CIKM 2023), for every stage by itself; without bids."""
    chunks: int = Field(default=10, ge=2)
    """Chunks of equal length that a list is cut into; one place of each is drawn in every step."""


class RankFlowConfig(ObjectiveConfig):
    """Every stage learns the truths of what the stage before passes, and from the stage behind it."""

    method: Literal["rankflow"]
    """The objective (Qin et al., SIGIR 2022). Who passes and who tutors are the stages of the round before: undistilled
    in round 1, so `rounds = 2` is the published number."""
    budgets: tuple[Budget, ...] | None = None
    """How many of a list every stage passes; the stages' `keep` unless given."""
    tutor_k: int | None = Field(default=None, ge=1)
    """The first places of the tutor that stand above the rest of what it receives; its budget unless given."""
    mix: float = Field(default=0.5, ge=0, le=1)
    """Share of that term; the rest is the squared difference of probabilities (published: .2 or .5)."""

    _budgets = field_validator("budgets")(_one_a_stage)


AnyObjective = LCRONConfig | ARFConfig | ICCConfig | FSConfig | COPRConfig | RankFlowConfig

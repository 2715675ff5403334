"""The keys of the TOML files, as pydantic models: stage files, the entries of ``[[stage]]``, experiments.

They check each key by itself. What must hold between keys, stages and files is in ``checks``; what a run gets are
the frozen objects of ``stage`` and ``experiment``.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from cascade_kd.evaluate.settings import EvaluateConfig
from cascade_kd.retrieval.settings import IndexConfig
from cascade_kd.train.codistill_settings import CodistillConfig
from cascade_kd.train.settings import TrainConfig, TransferConfig

StageLevel = Literal["recall", "prerank", "rank"]
TeacherLevel = Literal["recall", "prerank", "rank", "never"]

# Names of the report's own rows; a stage of that name could not be told from them.
RESERVED = ("cascade", "found", "oracle", "popularity", "random")

_NAME = "^[A-Za-z0-9][A-Za-z0-9_.-]*$"  # a folder name: runs/NAME
_STAGE_NAME = "^[A-Za-z0-9][A-Za-z0-9_-]*$"  # without a dot, which parts the keys of --set


def _name(value: str) -> str:
    if not re.fullmatch(_NAME, value):
        raise ValueError(f"want letters, digits and - _ . in a name, a letter or digit first, got '{value}'")
    return value


def _stage_name(value: str) -> str:
    if not re.fullmatch(_STAGE_NAME, value):
        raise ValueError(f"want letters, digits, - and _ in a stage's name, a letter or digit first, got '{value}'")
    if value in RESERVED:
        raise ValueError(f"'{value}' is a name of the report's own rows; choose another")
    return value


def _band(value: tuple[float, ...]) -> tuple[float, ...]:
    if len(value) != 2 or value[0] > value[1]:
        raise ValueError(f"want [low, high] with low <= high, got {list(value)}")
    return value


Name = Annotated[str, AfterValidator(_name), Field(json_schema_extra={"pattern": _NAME})]
StageName = Annotated[str, AfterValidator(_stage_name), Field(json_schema_extra={"pattern": _STAGE_NAME})]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Band = Annotated[
    tuple[Annotated[float, Field(allow_inf_nan=False)], ...],
    AfterValidator(_band),
    Field(json_schema_extra={"minItems": 2, "maxItems": 2}),
]


class StageFile(BaseModel):
    """A stage TOML: what kind of model serves which level, and how it is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    type: str | None = None
    """The model: a built-in name such as "two-tower" or "dcnv2", or "my_package.my_module:MyModel"."""
    level: StageLevel | None = None
    """The level it serves, which says what features it may see."""
    features: Literal["all"] | tuple[str, ...] = "all"
    """Names of features, or "all" that the level has online."""
    model: dict[str, Any] = Field(default_factory=dict)
    """Keys of the type's own config."""
    train: TrainConfig | None = None
    """How it is trained."""
    index: IndexConfig | None = None
    """What serves the nearest items; recall level only."""
    keep: Annotated[int, Field(ge=1)] | None = None
    """The budget: how many candidates the stage hands on."""
    label_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] | Literal["rest", "learned"] = 1.0
    """Factor of the label loss; "rest" makes it 1 minus the weights of the stage's distillers; "learned" balances all
    terms by learnt uncertainties (Kendall et al., CVPR 2018), in which a distiller's weight is a factor before it."""
    upstream_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """The stage orders by its logit + this weight x the score it received; not for the first stage."""
    refresh: bool = False
    """Train the stage again in every round even if nobody teaches it."""

    @field_validator("features")
    @classmethod
    def _some_features(cls, value: Literal["all"] | tuple[str, ...]) -> Literal["all"] | tuple[str, ...]:
        if not isinstance(value, str):
            twice = sorted({name for name in value if value.count(name) > 1})
            if not value:
                raise ValueError('the list is empty; name features, or write features = "all"')
            if twice:
                raise ValueError(f"'{twice[0]}' is listed twice")
        return value


class StageEntry(StageFile):
    """One ``[[stage]]`` of an experiment: a stage file by ``use``, keys laid over it, or all keys here."""

    name: StageName | None = None
    """The stage's name in this experiment: letters, digits, - and _."""
    use: str | None = None
    """A stage of the catalogue such as "recall/two-tower", or the path of a stage TOML."""


class TeacherEntry(StageEntry):
    """One ``[[teacher]]``: a model that teaches and is never served, an ensemble, or scores of the user's own."""

    name: StageName | None = None
    """The teacher's name in this experiment; stages and teachers have different names."""
    level: TeacherLevel | None = None  # type: ignore[assignment]
    """Which features it may see; "never" sees those known only after the event, too."""
    copies: Annotated[int, Field(ge=1)] = 1
    """So many initialisations of the model; more than one teach by the mean of their probabilities."""
    members: tuple[str, ...] = ()
    """An ensemble of these teachers and stages, in the place of a model: the mean of their probabilities."""
    column: str | None = None
    """Scores of your own, in the place of a model: a numeric feature of the data set with `transform = "none"`."""
    scores: Literal["logit", "probability", "rank"] = "logit"
    """What `column` holds."""


class ExperimentFile(BaseModel):
    """An experiment TOML. Stages and distillers are checked one by one, each by its own model."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: Name
    """The name of the experiment; its runs go to `runs/NAME`."""
    dataset: str
    """A data set of the catalogue such as "movielens-1m", or the path of a data-set TOML."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    """One run a seed: initialisation, order, dropout and sampled negatives; never the split."""
    rounds: Annotated[int, Field(ge=1)] = 1
    """Rounds of distillation after the undistilled round 0."""
    init_from: str | None = None
    """A run to continue from on newer events."""
    deterministic: bool = False
    """Use torch's deterministic algorithms on CUDA too."""
    stage: Annotated[tuple[dict[str, Any], ...], Field(min_length=1)]
    """The stages of the cascade, upstream first."""
    teacher: tuple[dict[str, Any], ...] = ()
    """Models that teach and are never served."""
    distill: tuple[dict[str, Any], ...] = ()
    """Who teaches whom."""
    objective: tuple[dict[str, Any], ...] = ()
    """Which stages are trained together, on the same lists."""
    transfer: TransferConfig | None = None
    """Rows without a label for the students of `logit` distillers."""
    codistill: CodistillConfig | None = None
    """Copies of one stage that learn from each other."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """What the evaluation counts."""
    expected: dict[str, dict[str, Band]] = Field(default_factory=dict)
    """Bands [low, high] of metrics by stage or "cascade", over seeds; outside them `run` exits 3."""

    @field_validator("seeds")
    @classmethod
    def _unique_seeds(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        twice = sorted({seed for seed in value if value.count(seed) > 1})
        if twice:
            raise ValueError(f"seed {twice[0]} is listed twice")
        return value

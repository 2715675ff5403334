"""The ``[[distill]]`` tables of the methods that learn from a teacher's order, one pydantic model a method."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from cascade_kd.distill.pair import ListsConfig

SCORED = ("listnet", "rankdistil")  # losses that read the teacher's scores


class TopKConfig(ListsConfig):
    """What the three methods on the teacher's first k say."""

    cut_to_k: ClassVar[bool] = True

    k: int = Field(default=50, ge=1)
    """The teacher's first places of a list; cut to a list that is shorter."""
    alpha: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """A place among the first `k` weighs 1 + alpha / position."""
    negatives: int | None = Field(default=None, ge=0)
    """Items from the rest of the catalogue, drawn anew for every list in every step, that stand behind the list in no
    order; none of them is in the user's training. Unless given, 100 with `lists = "catalogue"` where the
    loss reads no scores, else 0."""
    negatives_from: Literal["uniform", "popularity"] = "uniform"
    """How they are drawn: all items alike, or by their training events."""

    @field_validator("k")
    @classmethod
    def _k_in_the_list(cls, value: int, info: ValidationInfo) -> int:
        depth = info.data.get("depth")
        if depth is not None and value > depth:
            raise ValueError(f"the lists end at depth = {depth}, before k; got {value}")
        return value

    def negatives_of(self, kind: str) -> int:
        """Negatives of a list of this kind."""
        if self.negatives is not None:
            return self.negatives
        return 100 if kind == "catalogue" and not self.reads_scores else 0

    @property
    def reads_scores(self) -> bool:
        """Whether the order alone is not enough, so that nothing without a score can stand on a list."""
        return getattr(self, "loss", "") in SCORED


class PointwiseConfig(TopKConfig):
    """The teacher's first k are positives, what is behind them is negative; weighted binary cross entropy."""

    method: Literal["topk-pointwise"]
    """The distiller."""


class PairwiseConfig(TopKConfig):
    """Of two places of which one is among the first k, the upper should score higher."""

    method: Literal["topk-pairwise"]
    """The distiller."""
    loss: Literal["ranknet", "bpr", "hinge"] = "ranknet"
    """`ranknet` and `bpr`: two names of log(1 + exp(lower - upper)); `hinge`: max(0, margin + lower - upper)."""
    margin: float | None = Field(default=None, gt=0, allow_inf_nan=False, validate_default=True)
    """For `hinge`; 1 unless given."""
    pairs: int | None = Field(default=None, ge=1)
    """So many pairs of a list, drawn alike; all of them unless given, which costs k x length."""
    lambdas: bool = False
    """Whether a pair weighs what swapping it changes of nDCG, too (LambdaRank); with all pairs."""

    @field_validator("margin")
    @classmethod
    def _margin_of_a_hinge(cls, value: float | None, info: ValidationInfo) -> float | None:
        if info.data.get("loss") == "hinge":
            return 1.0 if value is None else value
        if value is not None and "loss" in info.data:
            raise ValueError('only loss = "hinge" has a margin; leave it out')
        return value

    @field_validator("lambdas")
    @classmethod
    def _lambdas_of_all_pairs(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("pairs") is not None:
            raise ValueError("the weights of LambdaRank are those of all pairs; leave `pairs` out")
        return value


class ListwiseConfig(TopKConfig):
    """The student's Plackett-Luce model should give the teacher's order of the first k a high chance."""

    method: Literal["topk-listwise"]
    """The distiller."""
    loss: Literal["listmle", "listnet", "rankdistil"] = "listmle"
    """`listmle`: the order as it is; `listnet`: the chance of every place to be first, from the teacher's scores;
    `rankdistil`: the mean over `draws` orders drawn from the teacher's scores."""
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Of the teacher's scores in `listnet` and `rankdistil`."""
    draws: int | None = Field(default=None, ge=1, validate_default=True)
    """For `rankdistil`; 8 unless given."""

    @field_validator("loss")
    @classmethod
    def _scored_places_only(cls, value: str, info: ValidationInfo) -> str:
        if value in SCORED and info.data.get("negatives"):
            raise ValueError(f'"{value}" reads the teacher\'s scores, which negatives have not; want negatives = 0')
        return value

    @field_validator("temperature")
    @classmethod
    def _temperature_of_scores(cls, value: float, info: ValidationInfo) -> float:
        if value != 1 and info.data.get("loss") == "listmle":
            raise ValueError(f'loss = "listmle" reads no score and has no temperature, got {value:g}; leave it out')
        return value

    @field_validator("draws")
    @classmethod
    def _draws_of_rankdistil(cls, value: int | None, info: ValidationInfo) -> int | None:
        if info.data.get("loss") == "rankdistil":
            return 8 if value is None else value
        if value is not None and "loss" in info.data:
            raise ValueError('only loss = "rankdistil" draws orders; leave it out')
        return value


class RDConfig(ListsConfig):
    """Ranking distillation: the teacher's first k are positives, weighted by place and by how far the student is."""

    cut_to_k: ClassVar[bool] = True

    method: Literal["rd"]
    """The distiller (Tang and Wang, KDD 2018)."""
    k: int = Field(default=10, ge=1)
    """The teacher's first places."""
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Weights fall as exp(-position / scale)."""
    mu: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    """A place that the student ranks n places lower than the teacher weighs tanh(mu n), too."""
    hybrid_from: int = Field(default=10, ge=0)
    """Epochs before that second weight counts; the rank needs a student that has learnt something."""
    sampled: int = Field(default=100, ge=1)
    """Items of which the student's ranks are estimated."""


class CDConfig(ListsConfig):
    """Collaborative distillation: binary cross entropy to the teacher's softened probabilities on sampled places."""

    needs: ClassVar[tuple[str, ...]] = ("logits",)

    method: Literal["cd"]
    """The distiller (Lee et al., ICDM 2019)."""
    sampled: int = Field(default=50, ge=1)
    """Places drawn from a list in every step."""
    guide: Literal["teacher", "student"] = "teacher"
    """By whose order: places are drawn in proportion to exp(-rank / scale)."""
    scale: float = Field(default=50.0, gt=0, allow_inf_nan=False)
    """See `guide`."""
    temperature: float = Field(default=2.0, gt=0, allow_inf_nan=False)
    """The target is sigmoid((logit + offset) / temperature)."""
    offset: float = Field(default=0.0, allow_inf_nan=False)
    """See `temperature`."""


class RRDConfig(ListsConfig):
    """Relaxed ranking distillation: interesting items in the teacher's order, all above uninteresting ones."""

    method: Literal["rrd"]
    """The distiller (Kang et al., CIKM 2020)."""
    k: int = Field(default=40, ge=1)
    """Interesting items of a list, drawn in every step."""
    scale: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    """They are drawn in proportion to exp(-position / scale)."""
    interesting: Literal["drawn", "first"] = "drawn"
    """`drawn` from the list, as published, or the `first` k, which the authors' later code prefers."""
    negatives: int = Field(default=40, ge=1)
    """Uninteresting items, drawn alike from outside the list and the user's training."""


class DCDConfig(ListsConfig):
    """Dual correction: items that the student ranks too low above items that it ranks too high."""

    method: Literal["dcd"]
    """The distiller (Lee and Kim, CIKM 2021), for the user's lists."""
    k: int = Field(default=40, ge=1)
    """Places drawn of each kind, in proportion to tanh(epsilon x difference of the ranks)."""
    epsilon: float = Field(default=0.01, gt=0, allow_inf_nan=False)
    """See `k`."""
    sampled: int = Field(default=100, ge=1)
    """Items of which the student's ranks are estimated."""


class UnKDConfig(ListsConfig):
    """Pairs of places inside groups of equally popular items, so that popularity is not what is taught."""

    method: Literal["unkd"]
    """The distiller (Chen et al., WSDM 2023)."""
    groups: int = Field(default=4, ge=1)
    """Groups of items of equal popularity mass."""
    pairs: int = Field(default=30, ge=1)
    """Pairs of every group and list in a step."""
    scale: float = Field(default=20.0, gt=0, allow_inf_nan=False)
    """A place is drawn in proportion to exp(-rank in its group / scale)."""


OrderConfig = (
    PointwiseConfig | PairwiseConfig | ListwiseConfig | RDConfig | CDConfig | RRDConfig | DCDConfig | UnKDConfig
)

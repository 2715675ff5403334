"""The ``[model]`` table of a stage, one pydantic model a type (floor 3), read without loading the models.

``levels`` names the levels that the model can serve, ``sides`` the sides whose features it can see.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cascade_kd.types import Level, Side

EMBEDDING_STD = 0.05
EmbeddingStd = Annotated[
    float, Field(gt=0.0, allow_inf_nan=False, description="standard deviation of the embeddings' first values")
]
EmbeddingMaxRows = Annotated[
    Annotated[int, Field(ge=2)] | None,
    Field(description="a vocabulary of more values shares rows by quotient and remainder; none: a row a value"),
]


class HistoryConfig(BaseModel):
    """``[model.history]``: how a tower reads the user's histories, beside their mean, which stays a field."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["last", "attention", "transformer"] = Field(description="the encoder")
    last: int = Field(default=1, ge=1, description="last: how many of the most recent items are averaged")
    blocks: int = Field(default=2, ge=1, description="transformer: blocks of attention and feed-forward")
    heads: int = Field(default=1, ge=1, description="transformer: heads; divides the embedding size")
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="transformer: after every layer")

    @property
    def causal(self) -> bool:
        """Whether one pass over a history also encodes every shorter one that it begins with."""
        return self.kind != "attention"


class TwoTowerConfig(BaseModel):
    """``[model]`` of a stage of type "two-tower"."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    levels: ClassVar[tuple[Level, ...]] = ("recall", "prerank", "rank", "never")
    sides: ClassVar[tuple[Side, ...]] = ("user", "context", "item")

    embedding_size: int = Field(default=16, ge=1, description="width of every field's embedding")
    embedding_std: EmbeddingStd = EMBEDDING_STD
    embedding_max_rows: EmbeddingMaxRows = None
    hidden: tuple[int, ...] = Field(default=(64,), description="hidden widths of both towers")
    output_size: int = Field(
        default=32,
        ge=0,
        description="width of the user and item vectors; 0: they are what `hidden` leaves, or with hidden = [] the "
        "fields' embeddings side by side: matrix factorisation, where each side has its id alone",
    )
    similarity: Literal["dot", "cosine"] = Field(default="dot", description="cosine: both vectors have length 1")
    temperature: float = Field(default=1.0, gt=0.0, description="the similarity is divided by it")
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="after each hidden layer")
    history: HistoryConfig | None = Field(default=None, description="an encoder of the histories; none: their mean")

    @model_validator(mode="after")
    def _heads_divide(self) -> TwoTowerConfig:
        if self.history is not None and self.embedding_size % self.history.heads:
            raise ValueError(f"heads = {self.history.heads} does not divide embedding_size = {self.embedding_size}")
        return self


class ScorerConfig(BaseModel):
    """The keys that all models of (user, item) pairs have."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    levels: ClassVar[tuple[Level, ...]] = ("prerank", "rank", "never")
    sides: ClassVar[tuple[Side, ...]] = ("user", "context", "item", "pair")

    embedding_size: int = Field(default=16, ge=1, description="width of every field's embedding")
    embedding_std: EmbeddingStd = EMBEDDING_STD
    embedding_max_rows: EmbeddingMaxRows = None
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="after each hidden layer")
    batch_norm: bool = Field(default=False, description="before each hidden layer's activation")


class DCNv2Config(ScorerConfig):
    """``[model]`` of a stage of type "dcnv2"."""

    hidden: tuple[int, ...] = Field(default=(128, 64), min_length=1, description="widths of the deep network")
    cross_layers: int = Field(default=3, ge=1, description="layers of the cross network")


class RankerConfig(ScorerConfig):
    """``[model]`` of a stage of type "ranker": what its parts are says which of the known models it is."""

    hidden: tuple[int, ...] = Field(default=(128, 64), description="widths of the deep network; [] for none")
    linear: bool = Field(default=False, description="a first-order weight for every value, as in LR and FM")
    interaction: Literal["none", "fm", "cross", "cin", "attention"] = Field(
        default="none", description="the layer beside the deep network"
    )
    layers: int = Field(default=3, ge=1, description="layers of cross, cin and attention")
    maps: int = Field(default=16, ge=1, description="cin: maps of a layer")
    heads: int = Field(default=2, ge=1, description="attention: heads of a layer")
    attention_size: int = Field(default=8, ge=1, description="attention: width of a head")


class FinalMLPConfig(ScorerConfig):
    """``[model]`` of a stage of type "final-mlp"."""

    hidden: tuple[int, ...] = Field(default=(128, 64), min_length=1, description="widths of the first stream")
    second_hidden: tuple[int, ...] = Field(
        default=(), description="widths of the second stream; [] for those of hidden"
    )
    gate_hidden: int = Field(default=0, ge=0, description="hidden width of the feature gates; 0 for no gates")
    fusion_heads: int = Field(default=1, ge=1, description="heads of the bilinear fusion; divides both last widths")

    @model_validator(mode="after")
    def _heads_divide(self) -> FinalMLPConfig:
        for name, widths in (("hidden", self.hidden), ("second_hidden", self.second_hidden or self.hidden)):
            if widths[-1] % self.fusion_heads:
                raise ValueError(f"fusion_heads = {self.fusion_heads} does not divide the last of {name}, {widths[-1]}")
        return self


class DINConfig(ScorerConfig):
    """``[model]`` of a stage of type "din"."""

    hidden: tuple[int, ...] = Field(default=(128, 64), min_length=1, description="widths of the deep network")
    attention_hidden: tuple[int, ...] = Field(default=(32,), min_length=1, description="widths of the attention unit")


class MultiTaskConfig(ScorerConfig):
    """``[model]`` of a stage of type "multi-task"."""

    kind: Literal["shared-bottom", "mmoe", "esmm"] = Field(default="mmoe", description="what the labels share")
    auxiliary: dict[str, Annotated[float, Field(gt=0.0, allow_inf_nan=False)]] = Field(
        min_length=1, description="further labels learnt beside the stage's own, each with the weight of its loss"
    )
    hidden: tuple[int, ...] = Field(default=(128,), min_length=1, description="widths of the bottom, or of each expert")
    head_hidden: tuple[int, ...] = Field(default=(64,), description="widths of each label's own network")
    experts: int = Field(default=4, ge=2, description="mmoe: networks that every label mixes in its own way")

    @model_validator(mode="after")
    def _esmm_has_one_step(self) -> MultiTaskConfig:
        if self.kind == "esmm" and len(self.auxiliary) != 1:
            got = ", ".join(self.auxiliary)
            raise ValueError(
                f"kind 'esmm' has one step before its label, such as auxiliary = {{ click = 1.0 }}; got {got}"
            )
        return self

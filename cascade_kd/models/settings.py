"""The ``[model]`` table of a stage, one pydantic model a type (floor 3), read without loading the models.

``levels`` names the levels that the model can serve, ``sides`` the sides whose features it can see.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from cascade_kd.types import Level, Side


class TwoTowerConfig(BaseModel):
    """``[model]`` of a stage of type "two-tower"."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    levels: ClassVar[tuple[Level, ...]] = ("recall", "prerank", "rank", "never")
    sides: ClassVar[tuple[Side, ...]] = ("user", "context", "item")

    embedding_size: int = Field(default=16, ge=1, description="width of every field's embedding")
    hidden: tuple[int, ...] = Field(default=(64,), description="hidden widths of both towers")
    output_size: int = Field(default=32, ge=1, description="width of the user and item vectors")
    similarity: Literal["dot", "cosine"] = Field(default="dot", description="cosine: both vectors have length 1")
    temperature: float = Field(default=1.0, gt=0.0, description="the similarity is divided by it")
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="after each hidden layer")


class DCNv2Config(BaseModel):
    """``[model]`` of a stage of type "dcnv2"."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    levels: ClassVar[tuple[Level, ...]] = ("prerank", "rank", "never")
    sides: ClassVar[tuple[Side, ...]] = ("user", "context", "item", "pair")

    embedding_size: int = Field(default=16, ge=1, description="width of every field's embedding")
    hidden: tuple[int, ...] = Field(default=(128, 64), min_length=1, description="widths of the deep network")
    cross_layers: int = Field(default=3, ge=1, description="layers of the cross network")
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="after each deep layer")
    batch_norm: bool = Field(default=False, description="before each deep layer's activation")

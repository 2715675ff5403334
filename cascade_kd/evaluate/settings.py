"""The ``[evaluate]`` table of an experiment (a pydantic model, nothing else)."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator


class EvaluateConfig(BaseModel):
    """What the evaluation counts."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    k: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 10, 50), min_length=1)
    """Cut-offs of recall@k, ndcg@k and the like; every stage is also counted at its own `keep`."""
    mask_seen: bool = True
    """Leave items out of a list that the user has in the training (and, at test, validation) part."""

    @field_validator("k")
    @classmethod
    def _sorted_and_unique(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(value)))

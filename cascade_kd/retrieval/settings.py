"""The ``[index]`` table of a recall stage."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class IndexConfig(BaseModel):
    """Which index serves a recall stage: ``flat`` (faiss, exact) or ``torch`` (exact, no faiss needed)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["flat", "torch"] = "flat"

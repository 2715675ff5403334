"""The ``[codistill]`` table of an experiment (a pydantic model, nothing else)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator


class CodistillConfig(BaseModel):
    """Several copies of one stage learn in parallel and from each other, by weights that they exchange now and then."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    stage: str
    """The stage that is trained so, in round 1; its [train] loss is `bce`. Peer 0 is served."""
    peers: int = Field(default=2, ge=2)
    """How many copies, each with an initialisation and an order of its own."""
    burn_in_steps: int = Field(default=1000, ge=0)
    """In so many first optimiser steps a peer learns from the label alone."""
    exchange_steps: int = Field(default=100, ge=1)
    """Every so many steps a peer publishes its weights and reads the others', which teach until the next time."""
    data: Literal["disjoint", "same"] = "disjoint"
    """Whether each peer trains on a share of its own of the training rows, or all on all of them."""
    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Factor of the cross entropy against the mean of the other peers' probabilities."""
    peer: int | None = Field(default=None, ge=0)
    """Train this peer alone, 0 to peers - 1; the others run in processes or on machines of their own."""
    shared: str | None = Field(default=None, validate_default=True)
    """With `peer`: a folder that all peers can reach, new for every experiment. Nothing else connects them."""
    wait_seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """With `peer`: how long to wait at an exchange for the others' weights of the same step, which makes a run repeat
    itself. 0 takes the newest there are. A peer that does not come is never waited for longer."""

    @field_validator("peer")
    @classmethod
    def _one_of_the_peers(cls, value: int | None, info: ValidationInfo) -> int | None:
        peers = info.data.get("peers")
        if value is not None and peers is not None and value >= peers:
            raise ValueError(f"peers are numbered 0 to {peers - 1}, got {value}")
        return value

    @field_validator("shared")
    @classmethod
    def _with_peer(cls, value: str | None, info: ValidationInfo) -> str | None:
        if "peer" in info.data and (value is None) != (info.data["peer"] is None):
            if value is None:
                raise ValueError("a peer that trains alone needs a folder that all peers can reach; name it here")
            raise ValueError("only a `peer` that trains alone reads a shared folder; set `peer`, or leave `shared` out")
        return value

"""The ``[index]`` table of a recall stage (a pydantic model, nothing else)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

Kind = Literal["flat", "ivf", "ivfpq", "hnsw", "sq", "torch"]
EXACT: tuple[Kind, ...] = ("flat", "torch")

_LISTS: tuple[Kind, ...] = ("ivf", "ivfpq", "sq")
TAKEN_BY: dict[str, tuple[Kind, ...]] = {  # key -> the kinds that take it; the others refuse it
    "nlist": _LISTS,
    "nprobe": _LISTS,
    "pq_m": ("ivfpq",),
    "pq_bits": ("ivfpq",),
    "sq_type": ("sq",),
    "hnsw_m": ("hnsw",),
    "ef_construction": ("hnsw",),
    "ef_search": ("hnsw",),
    "rerank": ("ivfpq", "sq"),
    "recall_floor": ("flat", "ivf", "ivfpq", "hnsw", "sq"),
    "check_queries": ("flat", "ivf", "ivfpq", "hnsw", "sq"),
}


class IndexConfig(BaseModel):
    """Which index serves a recall stage, by largest inner product, and how good it must be.

    ``flat`` (faiss) and ``torch`` (needs no faiss) are exact. ``ivf`` looks into the nearest of ``nlist`` lists, ``sq``
    does so over numbers of 16 or 8 bits, ``ivfpq`` over product codes; ``hnsw`` walks a graph. Keys left out get the
    defaults named below; those that depend on the catalogue are chosen when the index is built, and reported.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Kind = "flat"
    """The index; every key below names the kinds that take it."""
    nlist: int | None = Field(default=None, ge=1)
    """ivf, ivfpq, sq: lists that the items are divided into; 2 sqrt(items) by default. With sq, 1 is a plain scan."""
    nprobe: int | None = Field(default=None, ge=1)
    """ivf, ivfpq, sq: lists that a query looks into; by default the fewest that reach `recall_floor`."""
    pq_m: int | None = Field(default=None, ge=1)
    """ivfpq: parts that a vector is cut into, a divisor of its width; by default parts of 2 numbers."""
    pq_bits: int | None = Field(default=None, ge=4, le=8)
    """ivfpq: bits of a part's code; 8 by default."""
    sq_type: Literal["fp16", "8bit"] | None = None
    """sq: how a number is stored; fp16 by default."""
    hnsw_m: int | None = Field(default=None, ge=2, le=512)
    """hnsw: links of a vertex; 32 by default."""
    ef_construction: int | None = Field(default=None, ge=1)
    """hnsw: candidates looked at when a vertex is linked; 100 by default."""
    ef_search: int | None = Field(default=None, ge=1)
    """hnsw: candidates looked at by a query; by default the fewest that reach `recall_floor`."""
    rerank: int | None = Field(default=None, ge=0)
    """ivfpq, sq: order rerank x k candidates by exact inner products, which keeps the vectors; 0 leaves it out. By
    default 2 with ivfpq, 0 with sq."""
    recall_floor: float | None = Field(default=None, gt=0, le=1)
    """all but torch: the recall@keep against exact search below which no index serves; .95, with flat .999."""
    check_queries: int | None = Field(default=None, ge=1)
    """all but torch: users of validation events that recall is measured on; 256 by default."""

    @model_validator(mode="after")
    def _check(self) -> IndexConfig:
        problems = [
            (key, f"kind '{self.kind}' takes no {key}; it belongs to kind {_either(kinds)}")
            for key, kinds in TAKEN_BY.items()
            if getattr(self, key) is not None and self.kind not in kinds
        ]
        if not problems and self.nlist is not None and self.nprobe is not None and self.nprobe > self.nlist:
            problems = [("nprobe", f"want at most the {self.nlist} lists of nlist, got {self.nprobe}")]
        if problems:
            raise ValidationError.from_exception_data(type(self).__name__, [_located(*problem) for problem in problems])
        return self

    @property
    def is_exact(self) -> bool:
        """Whether the index finds what a full sort finds."""
        return self.kind in EXACT

    @property
    def floor(self) -> float:
        """The recall that is asked for."""
        return self.recall_floor or (0.999 if self.is_exact else 0.95)

    @property
    def num_queries(self) -> int:
        """How many queries measure it."""
        return self.check_queries or 256


def _located(key: str, message: str) -> InitErrorDetails:
    return InitErrorDetails(
        type=PydanticCustomError("index", "{message}", {"message": message}), loc=(key,), input=None
    )


def _either(kinds: tuple[Kind, ...]) -> str:
    *others, last = (f"'{kind}'" for kind in kinds)
    return f"{', '.join(others)} or {last}" if others else last

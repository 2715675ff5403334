"""From the keys of ``[index]`` and the size of a catalogue to what is built: no faiss, no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from cascade_kd.errors import UserError
from cascade_kd.retrieval.settings import IndexConfig, Kind

TRAINING_POINTS = 39  # a centroid; faiss warns below
FEWEST_LISTS = 4
LISTED = ("ivf", "ivfpq", "sq")


@dataclass(frozen=True)
class Plan:
    """What is built: every parameter of its kind as it will be, the others None, and notes for the user.

    ``effort`` is nprobe or ef_search where the user set it; None leaves it to be found.
    """

    kind: Kind
    nlist: int | None = None
    pq_m: int | None = None
    pq_bits: int | None = None
    sq_type: str | None = None
    hnsw_m: int | None = None
    ef_construction: int | None = None
    rerank: int = 0
    effort: int | None = None
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def effort_key(self) -> str:
        """The key that says how much a query looks at; empty for exact search."""
        return "ef_search" if self.kind == "hnsw" else "nprobe" if self.kind in LISTED else ""

    @property
    def parameters(self) -> dict[str, int | str]:
        """The keys of its kind but the effort, for a report."""
        keys = ("nlist", "pq_m", "pq_bits", "sq_type", "hnsw_m", "ef_construction")
        set_ = {key: getattr(self, key) for key in keys if getattr(self, key) is not None}
        return set_ | ({"rerank": self.rerank} if self.rerank else {})


def make_plan(config: IndexConfig, num_items: int, dim: int) -> Plan:
    """What ``config`` builds over ``num_items`` vectors of width ``dim``.

    Lists and codes that the catalogue is too small to train (39 vectors a centroid) are made fewer; where next to
    nothing would be left, ``flat`` takes their place, with a note. Raises UserError for a pq_m that does not divide
    ``dim``.
    """
    if num_items == 0 or config.is_exact:
        return Plan("flat" if num_items == 0 else config.kind)
    if config.kind == "hnsw":
        return Plan(
            "hnsw",
            hnsw_m=config.hnsw_m or 32,
            ef_construction=config.ef_construction or 100,
            effort=config.ef_search,
        )
    bits, parts = config.pq_bits or 8, 0
    if config.kind == "ivfpq":
        parts = _parts(config.pq_m, dim)
        if num_items < TRAINING_POINTS << bits:
            return _flat_instead(config.kind, f"{TRAINING_POINTS << bits:,}", f"its codes of {bits} bits", num_items)
    most = num_items // TRAINING_POINTS
    nlist = min(config.nlist or round(2 * math.sqrt(num_items)), max(most, 1))
    if nlist < min(FEWEST_LISTS, config.nlist or FEWEST_LISTS):
        return _flat_instead(config.kind, f"{TRAINING_POINTS * FEWEST_LISTS:,}", "a few lists", num_items)
    notes: tuple[str, ...] = ()
    if config.nlist is not None and nlist < config.nlist:
        need = f"{config.nlist} lists need {TRAINING_POINTS * config.nlist:,} items to be trained"
        notes = (f"[index] nlist: {need}, {TRAINING_POINTS} each, and there are {num_items:,}: {nlist} lists serve",)
    return Plan(
        config.kind,
        nlist=nlist,
        pq_m=parts or None,
        pq_bits=bits if config.kind == "ivfpq" else None,
        sq_type=(config.sq_type or "fp16") if config.kind == "sq" else None,
        rerank=config.rerank if config.rerank is not None else 2 if config.kind == "ivfpq" else 0,
        effort=None if config.nprobe is None else min(config.nprobe, nlist),
        notes=notes,
    )


def _flat_instead(kind: Kind, need: str, what: str, num_items: int) -> Plan:
    note = f"[index] kind '{kind}' needs {need} items to train {what}, and there are {num_items:,}: 'flat' serves"
    return Plan("flat", notes=(note,))


def _parts(asked: int | None, dim: int) -> int:
    """The parts of a product code: as asked, else the fewest that have at most 2 numbers each."""
    divisors = [m for m in range(1, dim + 1) if dim % m == 0]
    if asked is None:
        return next(m for m in divisors if 2 * m >= dim)
    if asked not in divisors:
        raise UserError(
            f"[index] pq_m = {asked} does not divide the {dim} numbers of an item vector; want one of "
            f"{', '.join(map(str, divisors))}, or another width of the model's vectors"
        )
    return asked

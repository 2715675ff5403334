"""What a run found, as plain data: the trees of ``metrics.json`` and what the pictures need."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any

from cascade_kd.report.files import atomic_write_text
from cascade_kd.report.tree import jsonable, summarise

SCHEMA = 1


def to_json(report: Report) -> str:
    """``metrics.json``: strict JSON (no NaN), keys in the order in which the trees were built, one final newline."""
    document = {"schema": SCHEMA, "run": report.run, "seeds": report.seeds, "summary": report.summary}
    return json.dumps(jsonable(document), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


@dataclass(frozen=True)
class Report:
    """Everything that a reader of a run is shown; it computes nothing but the summary over seeds.

    run: name, hashes, commit, versions, device, threads, wall_s (seconds), peak_rss_bytes; further plain values are
        shown beside them.
    seeds: per seed "stages", "cascade", "teachers", "baseline", "distill", "objective", each a tree whose leaves are
        metrics {"mean", "stderr", "n"} (+ "why" when null) or plain numbers (recovery). Further entries of a leaf that
        are text or True, such as {"platt": True}, mark the figure in every table.
    config_toml: the resolved configuration; ``keep`` of every [[stage]] is read from it.
    curves: {"seed", "round", "stage", "epoch", "step", "loss", "metric", "value"} per epoch.
    calibration: stage -> [{"predicted", "observed", "n"}, ...] bins of the first seed.
    agreement: distiller -> [{"teacher", "student", "n"}, ...], counts at the midpoints of probability bins.
    notes: warnings and remarks, shown first.
    """

    run: dict[str, Any]
    seeds: dict[str, dict[str, Any]]
    config_toml: str
    curves: list[dict[str, Any]] = field(default_factory=list)
    calibration: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    agreement: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def summary(self) -> dict[str, Any]:
        """The tree of one seed with {"mean", "sd", "seeds"} at every leaf."""
        return summarise(list(self.seeds.values()))

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Write ``metrics.json`` to ``path``, whole or not at all."""
        atomic_write_text(path, to_json(self))

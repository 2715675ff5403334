"""Is every feature as early as it is declared? (floor 6)

For each feature: the AUC that it alone reaches on the test rows, the share of missing values, and whether its values in
earlier rows change when later events are taken away or later labels shuffled.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import Progress

from cascade_kd.data import Dataset, DatasetDefinition, load, prepare
from cascade_kd.data.download import locate
from cascade_kd.data.prepare import read_tables
from cascade_kd.data.problems import did_you_mean
from cascade_kd.errors import UserError
from cascade_kd.evaluate.alone import Rows, auc_alone, column_of
from cascade_kd.evaluate.leaks import Change, Leaks, find_leaks
from cascade_kd.metrics import Metric
from cascade_kd.streams import generator_at, stream
from cascade_kd.types import ITEM_ID, USER_ID, Feature, Part

SAMPLE = 100_000  # rows of train and of test that the AUC of a feature is taken on

REMEDY = (
    'set available = "never" if it is known only after the event (a teacher may still see it), or declare it as kind = '
    '"statistic" if it sums up other events (it then counts earlier ones only)'
)
APART = (  # of ids, and of look-ups that pass
    "no later event is read, so positives and negatives may have been collected in different ways (where negatives are "
    "drawn from the catalogue at random, popularity tells them apart); --allow it if so"
)
AHEAD = (  # of look-ups that do not
    'a label or key that it is made of comes true after its own event; set available = "never", or choose another'
)


@dataclass(frozen=True)
class FeatureAudit:
    """What was found of one feature; ``flags`` are sentences with a remedy, none for a feature that is ``never``."""

    feature: Feature
    auc: Metric
    missing: float | None  # share of the test rows without a value; None for ids and statistics
    cut: Change | None  # when later events are taken away
    shuffled: Change | None  # when later labels are shuffled
    flags: tuple[str, ...]
    allowed: bool


@dataclass(frozen=True)
class Audit:
    """All features of a data set under one label."""

    name: str
    label: str
    limit: float
    rows: dict[Part, tuple[int, int]]  # part -> rows used, rows there are
    features: tuple[FeatureAudit, ...]

    @property
    def refused(self) -> tuple[str, ...]:
        """The features that are flagged and not allowed."""
        return tuple(f.feature.name for f in self.features if f.flags and not f.allowed)


def audit_dataset(
    definition: DatasetDefinition,
    *,
    base: Path,
    label: str | None = None,
    limit: float = 0.9,
    allow: Collection[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> Audit:
    """Audit a data set; ``base`` is the folder of its TOML, ``label`` by default its first label.

    A feature that is online somewhere is flagged where it alone reaches an AUC above ``limit``, where earlier rows
    change without the later events, or with later labels shuffled; ``allow`` names features whose flags are accepted.
    Where there are more, ``SAMPLE`` rows of train and test are drawn by ``seed``. Raises ``UserError`` for an unknown
    label or feature, and for a data set that is kept as a stream.
    """
    label = next(iter(definition.labels)) if label is None else label
    if label not in definition.labels:
        raise UserError(
            f"data set '{definition.name}' has no label '{label}'; it has: {', '.join(definition.labels)}"
            f"{did_you_mean(label, definition.labels)}"
        )
    if definition.storage.layout == "stream":
        raise UserError(
            f"data set '{definition.name}' is kept as a stream, and an audit holds the whole log in memory: audit a "
            "TOML without [storage] that names a part of its files"
        )
    dataset = load(prepare(definition, base=base, progress=progress))
    for name in allow:
        dataset.feature(name)
    folder = base if definition.generator else locate(definition, base=base)
    leaks = find_leaks(definition, read_tables(definition, folder), dataset, seed=seed)
    train, test = (_rows(dataset, part, label, seed) for part in ("train", "test"))
    task = progress.add_task(f"audit {definition.name}", total=len(dataset.features)) if progress else None
    audits = []
    for feature in dataset.features:
        metric = auc_alone(dataset, feature, train, test)
        audits.append(_audited(dataset, feature, metric, leaks, test, limit, feature.name in allow))
        if progress and task is not None:
            progress.advance(task)
    rows = {rows.part: (len(rows.row_R), len(dataset.rows(rows.part))) for rows in (train, test)}
    return Audit(definition.name, label, limit, rows, tuple(audits))


def _rows(dataset: Dataset, part: Part, label: str, seed: int) -> Rows:
    """All rows of a part, or ``SAMPLE`` of them."""
    row_R = dataset.rows(part)
    if len(row_R) > SAMPLE:
        drawn = torch.randperm(len(row_R), generator=generator_at(stream(seed, "audit", part), 0))[:SAMPLE]
        row_R = row_R[drawn.sort().values]
    return Rows(part, row_R, dataset.events.labels[label][row_R])


def _audited(
    dataset: Dataset, feature: Feature, metric: Metric, leaks: Leaks, test: Rows, limit: float, allowed: bool
) -> FeatureAudit:
    name = feature.name
    missing = leaks.missing.get(name)
    if feature.kind == "history":
        history_RT = column_of(dataset, name, test.row_R, part=test.part)
        missing = float((history_RT == 0).all(1).double().mean())
    cut, shuffled = leaks.cut.get(name), leaks.shuffled.get(name)
    looked_up = feature.kind in ("history", "statistic")
    is_clean = (looked_up or name in (USER_ID, ITEM_ID)) and not (cut or shuffled)
    found = []
    if metric.mean is not None and metric.mean > limit:
        cause = APART if is_clean else f"it may tell the outcome itself; {AHEAD if looked_up else REMEDY}"
        found.append(f"alone reaches AUC {metric.mean:.4f}, above {limit:g}: {cause}")
    remedy = AHEAD if looked_up else REMEDY
    if cut is not None:
        found.append(f"is computed from the future: {_told(cut, 'later events are cut off')}; {remedy}")
    if shuffled is not None:
        found.append(f"depends on later labels: {_told(shuffled, 'these are shuffled')}; {remedy}")
    flags = () if feature.available == "never" else found
    who = f"'{name}' (available at {feature.available})"
    return FeatureAudit(feature, metric, missing, cut, shuffled, tuple(f"{who} {flag}." for flag in flags), allowed)


def _told(change: Change, when: str) -> str:
    """``12 of 340 earlier rows change when ... (user 7, item 3: 5 becomes 4)``."""
    return f"{change.rows:,} of {change.compared:,} earlier rows change when {when} ({change.example})"

"""A data set prepared in bounded memory (floor 2).

    ids      one pass over the raw rows: which ids there are, how many events each user has (and the types of text)
    read     another: checked, labelled, coded, dealt into ranges of users on disk
    sort     range by range: sorted, split into parts, appended to the columns of the log
    learn    vocabularies and scales of the log's features, from the training rows
    deal     the log, dealt into buckets of time
    write    bucket by bucket: statistics, and the files that training reads

What a step no longer needs leaves the disk as it goes. Beside ``meta.json``, ``users``, ``items`` and ``vocabulary``,
as those of a log in memory, there are ``log/`` (:mod:`.columns`, sorted by user) and ``events/`` (:mod:`.buckets`, by
time). In memory at once: one range or bucket with its copies (some 50 bytes x columns x ``bucket_rows``), the ids, the
values of a column of text, what a pass of statistics carries, and a whole column for a feature cut into quantiles.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import polars as pl
from rich.progress import Progress, TaskID

from cascade_kd.data.checks import check_no_nan, check_positives
from cascade_kd.data.definition import DatasetDefinition
from cascade_kd.data.delimited import ROW
from cascade_kd.data.encode import Encoded, encode
from cascade_kd.data.expect import check_expected
from cascade_kd.data.log import HOLDERS, Tables
from cascade_kd.data.meta import SCHEMA, Summary, prepared_meta
from cascade_kd.data.prepare import (
    attributes,
    entity_rows,
    read_tables,
    vocabulary_table,
    wanted_columns,
    write_prepared,
)
from cascade_kd.data.split import check_parts
from cascade_kd.data.statistics import statistic_pass
from cascade_kd.data.stream.buckets import deal_by_time, write_stream
from cascade_kd.data.stream.columns import column_path, read_rows, spans
from cascade_kd.data.stream.first import FirstRows
from cascade_kd.data.stream.ids import Known, find_ids
from cascade_kd.data.stream.log import deal_by_user, write_log
from cascade_kd.data.stream.raw import TABLE, RawEvents
from cascade_kd.data.stream.values import RawValues
from cascade_kd.types import PARTS

STEPS = ("ids", "read", "sort", "learn", "deal", "write")


def prepare_stream(
    definition: DatasetDefinition,
    folder: Path,
    stage: Path,
    identity: Mapping[str, str],
    progress: Progress | None = None,
) -> None:
    """Fill ``stage`` from the files in ``folder``; ``identity`` goes into ``meta.json``. Raises ``DataError``."""
    steps = _Steps(definition.name, progress)
    tables = read_tables(definition, folder, without=[TABLE])
    for name, table in tables.items():
        check_no_nan(table, table=name)
    wanted = wanted_columns(definition)[TABLE]
    bucket_rows = definition.storage.bucket_rows
    raw = RawEvents(definition.tables[TABLE], folder, wanted, batch_rows=bucket_rows)
    log, spare = stage / "log", stage / "spare"
    log.mkdir()
    spare.mkdir()

    known = find_ids(definition, raw, tables, wanted)
    values, first = RawValues(definition), FirstRows(definition)
    done = steps.next(known.rows)
    ranges = deal_by_user(definition, raw, known=known, values=values, first=first, folder=spare / "users", done=done)
    done = steps.next(known.rows)
    requests = write_log(definition, ranges, known=known, folder=log, raw_folder=spare, done=done)
    steps.next(known.rows)
    summary = _summary(definition, known, log, requests)
    encoded = _encoded(definition, known, tables, first, values.learn(log, spare))
    frames = {
        "users": attributes(encoded, "user"),
        "items": attributes(encoded, "item"),
        "vocabulary": vocabulary_table(known.user_ids, known.item_ids, encoded),
    }
    meta = prepared_meta(definition, summary, encoded, _not_described(known, tables, definition))
    buckets, count = deal_by_time(log, spare / "times", bucket_rows=bucket_rows, done=steps.next(known.rows))
    statistics = statistic_pass(meta, frames["users"], frames["items"]) if meta["statistics"] else None
    write_stream(
        buckets,
        count,
        log=log,
        events=stage / "events",
        statistics=statistics,
        spare=spare / "rows",
        done=steps.next(known.rows),
    )
    shutil.rmtree(spare)
    write_prepared(stage, {"schema": SCHEMA, **identity, **meta}, frames)
    steps.next(known.rows)


class _Steps:
    """A progress bar of as many equal parts as there are steps."""

    def __init__(self, name: str, progress: Progress | None) -> None:
        self._name, self._progress, self._begun = name, progress, 0
        self._task: TaskID | None = None
        if progress is not None:
            self._task = progress.add_task(f"prepare {name}: {STEPS[0]}", total=len(STEPS))

    def next(self, rows: int) -> Callable[[int], None]:
        """The next step has begun; the function to call with the number of its ``rows`` that are done."""
        self._begun += 1
        self._show(self._begun)
        return lambda done: self._show(self._begun + done / rows)

    def _show(self, completed: float) -> None:
        if self._progress is not None and self._task is not None:
            step = STEPS[min(self._begun, len(STEPS) - 1)]
            description = f"prepare {self._name}: {step}"
            self._progress.update(self._task, completed=completed, description=description)


def _encoded(
    definition: DatasetDefinition, known: Known, tables: Tables, first: FirstRows, learned: list[Encoded]
) -> list[Encoded]:
    """All stored features in the order of the definition, those of the log as ``learned``."""
    of_log = {part.feature.name: part for part in learned}
    first_rows = first.frames()
    encoded: list[Encoded] = []
    for feature in definition.feature:
        if feature.name in of_log:
            encoded.append(of_log[feature.name])
        elif feature.is_stored:
            key, ids = _role(feature.side, known, definition)
            table = first_rows[feature.side] if feature.source_table == TABLE else tables.get(feature.source_table)
            frame = entity_rows(key, ids, table)
            encoded.append(encode(feature, frame, frame[ROW].is_not_null()))
    return encoded


def _not_described(known: Known, tables: Tables, definition: DatasetDefinition) -> dict[str, int]:
    """Table -> ids of the log that it lacks."""
    return {
        holder: entity_rows(*_role(role, known, definition), tables[holder])[ROW].null_count()
        for role, holder in HOLDERS.items()
        if holder in tables
    }


def _role(role: str, known: Known, definition: DatasetDefinition) -> tuple[str, pl.Series]:
    """The column of the ids of a role, and the ids."""
    roles = definition.roles
    return (roles.user, known.user_ids) if role == "user" else (roles.item, known.item_ids)


def _summary(definition: DatasetDefinition, known: Known, log: Path, requests: int | None) -> Summary:
    """The counts of the log. Raises ``DataError`` for an empty part, no positives, and what ``[expect]`` does not."""
    seen = {
        "user": np.zeros((len(PARTS), len(known.user_ids) + 1), np.bool_),
        "item": np.zeros((len(PARTS), len(known.item_ids) + 1), np.bool_),
    }
    rows_P = np.zeros(len(PARTS), np.int64)
    first_P, last_P = np.full(len(PARTS), np.iinfo(np.int64).max), np.full(len(PARTS), np.iinfo(np.int64).min)
    positives = {label: np.zeros(len(PARTS), np.int64) for label in definition.labels}
    for span in spans(known.rows):
        part_N, time_N = (read_rows(column_path(log, name), *span) for name in ("part", "time"))
        rows_P += np.bincount(part_N, minlength=len(PARTS))
        np.minimum.at(first_P, part_N, time_N)
        np.maximum.at(last_P, part_N, time_N)
        for role, seen_PV in seen.items():
            seen_PV[part_N, read_rows(column_path(log, role), *span)] = True
        for label, count_P in positives.items():
            true_N = read_rows(column_path(log, f"label:{label}"), *span) > 0
            count_P += np.bincount(part_N[true_N], minlength=len(PARTS))
    check_parts(rows_P.tolist(), len(known.user_ids), definition.split)
    check_positives({label: int(count_P[0]) for label, count_P in positives.items()}, int(rows_P[0]))
    counts = {"events": known.rows, "users": len(known.user_ids), "items": len(known.item_ids)}
    rates = {label: int(count_P.sum()) / known.rows for label, count_P in positives.items()}
    check_expected(definition.expect, counts, rates)
    distinct = {role: dict(zip(PARTS, seen_PV.sum(axis=1).tolist(), strict=True)) for role, seen_PV in seen.items()}
    return Summary(
        num_users=counts["users"],
        num_items=counts["items"],
        rows=dict(zip(PARTS, rows_P.tolist(), strict=True)),
        users=distinct["user"],
        items=distinct["item"],
        time=dict(zip(PARTS, zip(first_P.tolist(), last_P.tolist(), strict=True), strict=True)),
        positives={label: dict(zip(PARTS, count_P.tolist(), strict=True)) for label, count_P in positives.items()},
        requests=requests,
        dropped=known.dropped,
    )

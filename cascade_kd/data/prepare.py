"""Raw tables to a prepared directory, once per (definition, content of the files, this code) (floor 2).

The directory holds ``meta.json``, ``users.parquet``, ``items.parquet``, ``events.parquet`` and ``vocabulary.parquet``,
which :mod:`cascade_kd.data.dataset` reads. It appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
from rich.progress import Progress

from cascade_kd.data.cache import cache_root, file_digest, staging
from cascade_kd.data.checks import as_ids
from cascade_kd.data.definition import DatasetDefinition
from cascade_kd.data.delimited import ROW, check_columns
from cascade_kd.data.derived import derived_tables
from cascade_kd.data.download import locate
from cascade_kd.data.encode import Encoded, encode, with_unknown
from cascade_kd.data.files import digests
from cascade_kd.data.log import HOLDERS, Log, Tables, build_log
from cascade_kd.data.meta import SCHEMA, prepared_meta, summary_of
from cascade_kd.data.readers import read_table
from cascade_kd.data.statistics import statistic_pass
from cascade_kd.data.synthetic import generate
from cascade_kd.data.vectors import vector_files, with_vectors
from cascade_kd.types import ITEM_ID, USER_ID

CODE = (
    "checks",
    "definition",
    "delimited",
    "derived",
    "draws",
    "encode",
    "expect",
    "features",
    "files",
    "log",
    "meta",
    "moments",
    "prepare",
    "query",
    "readers",
    "schema",
    "source",
    "split",
    "statistic",
    "statistics",
    "vectors",
)


def prepare(definition: DatasetDefinition, *, base: Path, progress: Progress | None = None) -> Path:
    """The prepared directory of a data set, made now or found in the cache.

    ``base`` is the folder of its TOML. Raises ``DataError`` for whatever is wrong with the data, and then leaves no
    trace in the cache.
    """
    folder = base if definition.generator else locate(definition, base=base, progress=progress)
    sha256 = data_sha256(definition, folder)
    final = cache_root() / "datasets" / sha256
    if (final / "meta.json").is_file():
        return final
    if definition.storage.layout == "stream":
        from cascade_kd.data.stream.layout import prepare_stream  # imports this module

        with staging(final) as stage:
            prepare_stream(definition, folder, stage, {"name": definition.name, "sha256": sha256}, progress)
        return final
    task = progress.add_task(f"prepare {definition.name}", total=3) if progress else None
    tables = read_tables(definition, folder)
    if progress and task is not None:
        progress.advance(task)
    meta, frames = encode_tables(definition, tables)
    if progress and task is not None:
        progress.advance(task)
    with staging(final) as stage:
        write_prepared(stage, {"schema": SCHEMA, "name": definition.name, "sha256": sha256, **meta}, frames)
    if progress and task is not None:
        progress.advance(task)
    return final


def write_prepared(folder: Path, meta: Mapping[str, Any], frames: Mapping[str, pl.DataFrame]) -> None:
    """The files of a prepared directory, ``meta.json`` last."""
    for name in frames:
        frames[name].write_parquet(folder / f"{name}.parquet", compression="lz4", statistics=False)
    (folder / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")


def data_sha256(definition: DatasetDefinition, folder: Path) -> str:
    """What a prepared directory is named by: definition, content of the source files, schema, and the code at work."""
    sources: dict[str, list[Any]] = {
        name: digests(name, source, folder) for name, source in sorted(definition.files.items())
    }
    sources |= {name: [file_digest(path)] for name, path in vector_files(definition, folder).items()}
    modules = [*CODE, "synthetic"] if definition.generator else [*CODE]
    if definition.storage.layout == "stream":
        modules += [f"stream/{path.stem}" for path in sorted((Path(__file__).parent / "stream").glob("*.py"))]
    identity = {
        "schema": SCHEMA,
        "definition": definition.content(),
        "sources": sources,
        "code": _code_sha256(tuple(modules)),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def read_tables(definition: DatasetDefinition, folder: Path, *, without: Collection[str] = ()) -> Tables:
    """The wanted columns of every table, with row numbers. Raises ``DataError``."""
    wanted = wanted_columns(definition)
    if definition.generator is None:
        read = derived_tables(definition.queries, definition.files, folder, wanted)
        for name, source in definition.tables.items():
            if source.sql is None and name not in without:
                read[name] = read_table(name, source, folder, wanted[name])
        return with_vectors(definition, read, folder)
    tables = generate(definition.generator)
    for name, table in tables.items():
        check_columns(name, table.columns, wanted[name])
    kept = {name: table.select(list(wanted[name])).with_row_index(ROW, offset=1) for name, table in tables.items()}
    return with_vectors(definition, kept, folder)


def wanted_columns(definition: DatasetDefinition) -> dict[str, dict[str, str]]:
    """Table -> column -> who wants it, for messages."""
    roles = definition.roles.model_dump(exclude={"time_unit"}, exclude_none=True)
    wanted: dict[str, dict[str, str]] = {
        "events": {column: f"[roles] {role}" for role, column in roles.items()},
        "users": {definition.roles.user: "[roles] user"},
        "items": {definition.roles.item: "[roles] item"},
    }
    for name, expression in definition.labels.items():
        for column in pl.sql_expr(expression).meta.root_names():
            wanted["events"].setdefault(column, f"label {name} = {expression!r}")
    for feature in definition.feature:
        if not feature.is_stored or feature.file is not None:
            continue
        columns = [feature.source_column]
        if feature.expression is not None:
            columns = pl.sql_expr(feature.expression).meta.root_names()
        for column in columns:
            wanted[feature.source_table].setdefault(column, f"feature {feature.name}")
    return wanted


def encode_tables(definition: DatasetDefinition, tables: Tables) -> tuple[dict[str, Any], dict[str, pl.DataFrame]]:
    """``meta.json`` (without name and digest) and the four tables of a prepared directory."""
    return encode_log(definition, build_log(definition, tables), tables)


def encode_log(
    definition: DatasetDefinition, log: Log, tables: Tables
) -> tuple[dict[str, Any], dict[str, pl.DataFrame]]:
    """The same of a log that is built already."""
    in_train = log.events["part"] == 0
    frames = source_frames(definition, log, tables)
    encoded: list[Encoded] = []
    for feature in definition.feature:
        if feature.is_stored:
            frame = frames[feature.side, feature.source_table]
            fit = in_train if feature.side in ("context", "pair") else frame[ROW].is_not_null()
            encoded.append(encode(feature, frame, fit))
    not_described = {
        holder: frames[role, holder][ROW].null_count() for role, holder in HOLDERS.items() if holder in tables
    }
    stored = {
        "users": attributes(encoded, "user"),
        "items": attributes(encoded, "item"),
        "events": log.events.with_columns(
            part.column.alias(f"feature:{part.feature.name}")
            for part in encoded
            if part.feature.side in ("context", "pair")
        ),
        "vocabulary": vocabulary_table(log.user_ids, log.item_ids, encoded),
    }
    meta = prepared_meta(definition, summary_of(log), encoded, not_described)
    if meta["statistics"]:
        columns = statistic_pass(meta, stored["users"], stored["items"]).columns(stored["events"])
        stored["events"] = stored["events"].with_columns(columns)
    return meta, stored


def source_frames(definition: DatasetDefinition, log: Log, tables: Tables) -> dict[tuple[str, str], pl.DataFrame]:
    """(side, table) -> the rows that its stored features are read from: the log's, or one a user or item code."""
    frames: dict[tuple[str, str], pl.DataFrame] = {}
    if any(feature.is_stored and feature.source_table == "events" for feature in definition.feature):
        frames = {("context", "events"): log.raw, ("pair", "events"): log.raw}
    keys: dict[str, tuple[str, pl.Series]] = {
        "user": (definition.roles.user, log.user_ids),
        "item": (definition.roles.item, log.item_ids),
    }
    for role, (key, ids) in keys.items():
        frames[role, HOLDERS[role]] = entity_rows(key, ids, tables.get(HOLDERS[role]))
        if any((feature.side, feature.source_table) == (role, "events") for feature in definition.feature):
            frames[role, "events"] = _first_values(definition, log, role)
    return frames


def entity_rows(key: str, ids: pl.Series, table: pl.DataFrame | None) -> pl.DataFrame:
    """Row c - 1 describes code c: the table's row of that id, missing values where it has none."""
    frame = pl.DataFrame({key: ids})
    if table is None:
        return frame.with_columns(pl.lit(None, pl.UInt32).alias(ROW))
    table = table.with_columns(as_ids(table[key], ids.dtype))
    return frame.join(table, on=key, how="left", maintain_order="left")


def _first_values(definition: DatasetDefinition, log: Log, side: str) -> pl.DataFrame:
    """Attributes that stand in the log: of each user or item, its earliest event."""
    key = definition.roles.user if side == "user" else definition.roles.item
    ids = log.user_ids if side == "user" else log.item_ids
    first = log.raw.with_columns(log.events["time"].alias("__time")).sort("__time", maintain_order=True)
    first = first.unique(key, keep="first", maintain_order=True).drop("__time")
    return entity_rows(key, ids, first)


def attributes(encoded: list[Encoded], side: str) -> pl.DataFrame:
    """The stored features of the users or items; row c is code c."""
    return pl.DataFrame([with_unknown(part.column) for part in encoded if part.feature.side == side])


def vocabulary_table(user_ids: pl.Series, item_ids: pl.Series, encoded: Sequence[Encoded]) -> pl.DataFrame:
    """Every vocabulary: its name, the codes from 1, and the raw values as text."""
    known = {USER_ID: user_ids.cast(pl.String), ITEM_ID: item_ids.cast(pl.String)}
    known |= {part.feature.vocabulary: part.vocabulary for part in encoded if part.vocabulary is not None}
    return pl.concat(
        pl.DataFrame({"value": values.alias("value")}).select(
            pl.lit(name).alias("vocabulary"), pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias("code"), "value"
        )
        for name, values in known.items()
    )


@cache
def _code_sha256(modules: tuple[str, ...]) -> str:
    """One digest of the modules of this package that decide what is prepared."""
    digest = hashlib.sha256()
    for module in modules:
        digest.update((Path(__file__).parent / f"{module}.py").read_bytes())
    return digest.hexdigest()

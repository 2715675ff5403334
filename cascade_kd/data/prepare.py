"""Raw tables to a prepared directory, once per (definition, content of the files, this code) (floor 2).

The directory holds ``meta.json``, ``users.parquet``, ``items.parquet``, ``events.parquet`` and ``vocabulary.parquet``,
which :mod:`cascade_kd.data.dataset` reads. It appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
from rich.progress import Progress

from cascade_kd.data.cache import cache_root, file_digest, staging
from cascade_kd.data.checks import as_ids
from cascade_kd.data.definition import DatasetDefinition
from cascade_kd.data.delimited import ROW, check_columns
from cascade_kd.data.download import locate
from cascade_kd.data.encode import Encoded, encode, with_unknown
from cascade_kd.data.log import HOLDERS, Log, Tables, build_log
from cascade_kd.data.meta import prepared_meta
from cascade_kd.data.readers import read_table, source_files
from cascade_kd.data.synthetic import generate
from cascade_kd.types import ITEM_ID, USER_ID

SCHEMA = 1
CODE = (
    "checks",
    "definition",
    "delimited",
    "encode",
    "features",
    "log",
    "meta",
    "prepare",
    "readers",
    "schema",
    "split",
)
FILES = ("users", "items", "events", "vocabulary")


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
    task = progress.add_task(f"prepare {definition.name}", total=3) if progress else None
    tables = read_tables(definition, folder)
    if progress and task is not None:
        progress.advance(task)
    meta, frames = encode_tables(definition, tables)
    if progress and task is not None:
        progress.advance(task)
    with staging(final) as stage:
        for name in FILES:
            frames[name].write_parquet(stage / f"{name}.parquet", compression="lz4")
        text = json.dumps({"schema": SCHEMA, "name": definition.name, "sha256": sha256, **meta}, indent=1)
        (stage / "meta.json").write_text(text, encoding="utf-8")
    if progress and task is not None:
        progress.advance(task)
    return final


def data_sha256(definition: DatasetDefinition, folder: Path) -> str:
    """What a prepared directory is named by: definition, content of the source files, schema, and the code at work."""
    sources = {
        table: [file_digest(path) for path in source_files(table, source, folder)]
        for table, source in sorted(definition.tables.items())
    }
    modules = (*CODE, "synthetic") if definition.generator else CODE
    identity = {"schema": SCHEMA, "definition": definition.content(), "sources": sources, "code": _code_sha256(modules)}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def read_tables(definition: DatasetDefinition, folder: Path) -> Tables:
    """The wanted columns of every table, with row numbers. Raises ``DataError``."""
    wanted = wanted_columns(definition)
    if definition.generator is None:
        return {name: read_table(name, source, folder, wanted[name]) for name, source in definition.tables.items()}
    tables = generate(definition.generator)
    for name, table in tables.items():
        check_columns(name, table.columns, wanted[name])
    return {name: table.select(list(wanted[name])).with_row_index(ROW, offset=1) for name, table in tables.items()}


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
        if not feature.is_stored:
            continue
        columns = [feature.source_column]
        if feature.expression is not None:
            columns = pl.sql_expr(feature.expression).meta.root_names()
        for column in columns:
            wanted[feature.source_table].setdefault(column, f"feature {feature.name}")
    return wanted


def encode_tables(definition: DatasetDefinition, tables: Tables) -> tuple[dict[str, Any], dict[str, pl.DataFrame]]:
    """``meta.json`` (without name and digest) and the four tables of a prepared directory."""
    log = build_log(definition, tables)
    in_train = log.events["part"] == 0
    entities = {
        "user": _entities(definition.roles.user, log.user_ids, tables.get("users")),
        "item": _entities(definition.roles.item, log.item_ids, tables.get("items")),
    }
    encoded: list[Encoded] = []
    for feature in definition.feature:
        if not feature.is_stored:
            continue
        if feature.side in ("context", "pair"):
            encoded.append(encode(feature, log.raw, in_train))
        else:
            frame = entities[feature.side]
            if feature.source_table == "events":
                frame = _first_values(definition, log, feature.side)
            encoded.append(encode(feature, frame, frame[ROW].is_not_null()))
    not_described = {holder: entities[role][ROW].null_count() for role, holder in HOLDERS.items() if holder in tables}
    frames = {
        "users": _attributes(encoded, "user"),
        "items": _attributes(encoded, "item"),
        "events": log.events.with_columns(
            part.column.alias(f"feature:{part.feature.name}")
            for part in encoded
            if part.feature.side in ("context", "pair")
        ),
        "vocabulary": _vocabulary(log, encoded),
    }
    return prepared_meta(definition, log, encoded, not_described), frames


def _entities(key: str, ids: pl.Series, table: pl.DataFrame | None) -> pl.DataFrame:
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
    return _entities(key, ids, first)


def _attributes(encoded: list[Encoded], side: str) -> pl.DataFrame:
    """The stored features of the users or items; row c is code c."""
    return pl.DataFrame([with_unknown(part.column) for part in encoded if part.feature.side == side])


def _vocabulary(log: Log, encoded: list[Encoded]) -> pl.DataFrame:
    known = {USER_ID: log.user_ids.cast(pl.String), ITEM_ID: log.item_ids.cast(pl.String)}
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

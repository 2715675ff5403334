"""The ids of the events: which there are, how often, and the type of every column (floor 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from cascade_kd.data.checks import as_ids, checked_ids
from cascade_kd.data.definition import DatasetDefinition
from cascade_kd.data.delimited import ROW
from cascade_kd.data.log import HOLDERS, Tables, agreed_ids, known_items, known_users
from cascade_kd.data.stream.raw import TABLE, RawEvents, TextTraits
from cascade_kd.errors import DataError


@dataclass(frozen=True)
class Known:
    """What the codes of users and items stand for, and how many events each user has."""

    user_ids: pl.Series
    item_ids: pl.Series
    events_of: pl.Series  # of the user of code c at c - 1, Int64
    dropped: dict[str, int]

    @property
    def rows(self) -> int:
        """The events of all users."""
        return int(self.events_of.sum())


def find_ids(definition: DatasetDefinition, raw: RawEvents, tables: Tables, wanted: Mapping[str, str]) -> Known:
    """One pass over the ids (of text: over all wanted columns, whose types ``raw`` then knows).

    ``tables``: users and items. Raises ``DataError`` as ``log.build_log``.
    """
    columns = {"user": definition.roles.user, "item": definition.roles.item}
    counts: dict[str, pl.DataFrame] = {}
    traits: dict[str, TextTraits] = {}
    for batch in raw.plain(wanted if raw.needs_types else columns.values()):
        for role, column in columns.items():
            counts[role] = _added(counts.get(role), batch[column])
        if raw.needs_types:
            found = {x.name: TextTraits.of(x) for x in batch if x.dtype == pl.String}
            traits = {name: traits.get(name, TextTraits()).merged(new) for name, new in found.items()}
    if not counts:
        raise raw.empty
    if raw.needs_types:
        raw.set_types(traits)
    by_id = {role: _checked(raw, columns[role], counts[role]) for role in HOLDERS}
    ids = agreed_ids(definition, tables, {(TABLE, role): by_id[role]["id"] for role in HOLDERS})
    events = {role: pl.DataFrame({role: ids[TABLE, role]}) for role in HOLDERS}
    user_ids, no_users = known_users(definition, tables, ids, events["user"])
    item_ids, no_items = known_items(definition, ids, events["item"])
    per_user = pl.DataFrame({"id": ids[TABLE, "user"], "count": by_id["user"]["count"]}).group_by("id").sum().sort("id")
    return Known(user_ids, item_ids, per_user["count"], {"events": 0, "users": no_users, "items": no_items})


def _added(counts: pl.DataFrame | None, values: pl.Series) -> pl.DataFrame:
    """Value -> count, with those of one more batch."""
    new = values.alias("id").to_frame().group_by("id").agg(count=pl.len().cast(pl.Int64))
    return new if counts is None else pl.concat([counts, new], how="vertical_relaxed").group_by("id").sum()


def _checked(raw: RawEvents, column: str, counts: pl.DataFrame) -> pl.DataFrame:
    """The counts by checked id. Raises ``DataError`` at the row of the first id that is none."""
    distinct = raw.typed(counts.select(pl.col("id").alias(column)))
    try:
        ids = checked_ids(distinct.with_columns(pl.lit(0).alias(ROW)), column, table=TABLE)
    except DataError:
        for batch in raw.batches():
            checked_ids(batch, column, table=TABLE)
        raise
    return counts.with_columns(id=ids)


def coded(ids: pl.Series, known: pl.Series) -> pl.Series:
    """Ids of a batch in the type of all ids."""
    return ids if ids.dtype == known.dtype else as_ids(ids, known.dtype)

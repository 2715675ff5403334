"""From raw tables to the coded log and the users and items it speaks of (floor 2)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from cascade_kd.data.checks import (
    TIME_BITS,
    as_ids,
    check_no_nan,
    check_positives,
    checked_ids,
    checked_label,
    checked_numbers,
    checked_parts,
    checked_times,
    evaluated,
    refuse_rows,
)
from cascade_kd.data.definition import DatasetDefinition
from cascade_kd.data.delimited import ROW
from cascade_kd.data.draws import mixed, text_hashes, times_before
from cascade_kd.data.encode import codes_of
from cascade_kd.data.expect import check_expected
from cascade_kd.data.readers import PART
from cascade_kd.data.split import DRAW, assign_parts
from cascade_kd.errors import DataError
from cascade_kd.types import PARTS

Tables = dict[str, pl.DataFrame]
HOLDERS = {"user": "users", "item": "items"}  # role -> the table that describes its ids


@dataclass(frozen=True)
class Log:
    """Events in the order of (user, time, request, row), and the raw ids behind codes 1, 2, ...."""

    events: pl.DataFrame  # user, item, time, request, part, label:NAME, oracle, position: as they are stored
    user_ids: pl.Series
    item_ids: pl.Series
    dropped: dict[str, int]  # what the filter left out
    table: pl.DataFrame  # the wanted raw columns
    row: pl.Series  # where the events stand in it

    @cached_property
    def raw(self) -> pl.DataFrame:
        """The wanted raw columns of the events."""
        return self.table[self.row]


def build_log(definition: DatasetDefinition, tables: Tables) -> Log:
    """Check, label, filter, sort, code and split the events. Raises ``DataError``; see ``checks`` and ``split``."""
    for name, table in tables.items():
        check_no_nan(table, table=name)
    raw, roles = tables["events"], definition.roles
    ids = _ids(definition, tables)
    events = pl.DataFrame({"user": ids["events", "user"], "item": ids["events", "item"], ROW: _row_order(raw)})
    events = events.with_columns(event_columns(definition, raw))
    kept = _filtered(events, definition)
    user_ids, dropped_users = known_users(definition, tables, ids, kept)
    item_ids, dropped_items = known_items(definition, ids, kept)
    dropped = {"events": len(events) - len(kept), "users": dropped_users, "items": dropped_items}
    kept = kept.with_columns(codes_of(kept["user"], user_ids), codes_of(kept["item"], item_ids))
    if roles.request is not None:
        kept = kept.with_columns(dense_requests(kept))
    kept = in_time_order(kept)
    if PART in kept.columns and definition.hold_out == "random":
        kept = kept.with_columns(draws(kept, text_hashes(user_ids), text_hashes(item_ids)))
    kept = kept.with_columns(assign_parts(kept, definition.split)).drop(PART, DRAW, strict=False)
    labels = kept.select(f"label:{name}" for name in definition.labels)
    train = labels.filter(kept["part"] == 0)
    check_positives({column.name.removeprefix("label:"): int((column > 0).sum()) for column in train}, len(train))
    counts = {"events": len(kept), "users": len(user_ids), "items": len(item_ids)}
    rates = {column.name.removeprefix("label:"): float(column.cast(pl.Float64).mean()) for column in labels}  # type: ignore[arg-type]
    check_expected(definition.expect, counts, rates)
    return Log(kept.drop(ROW), user_ids, item_ids, dropped, raw, kept[ROW])


def event_columns(definition: DatasetDefinition, raw: pl.DataFrame, *, first: int = 0) -> list[pl.Series]:
    """What stands in the row alone: time, request, position, oracle, ``PART``, labels. ``first``: number of row 0."""
    roles = definition.roles
    columns = [
        (_row_order(raw) + first if roles.time is None else checked_times(raw, roles.time, unit=roles.time_unit)).alias(
            "time"
        ),
        *_optional_columns(definition, raw),
    ]
    for name, expression in definition.labels.items():
        values = evaluated(expression, raw, table="events", who=f"label {name}")
        columns.append(checked_label(values, raw, label=name, expression=expression).alias(f"label:{name}"))
    return columns


def in_time_order(kept: pl.DataFrame) -> pl.DataFrame:
    """Coded events, which come in the order of rows, in the order of (user, time, request, row).

    User and time are packed into one key: it sorts in half the time of two.
    """
    assert kept["user"].max() < 1 << 63 - TIME_BITS  # type: ignore[operator]  # codes
    key = pl.col("user") * (1 << TIME_BITS) + (pl.col("time") - pl.col("time").min())
    return kept.sort(key, "request", ROW) if "request" in kept.columns else kept.sort(key, maintain_order=True)


def draws(kept: pl.DataFrame, user_V: np.ndarray, item_V: np.ndarray) -> pl.Series:
    """A random number of each coded event, of the hashes of its raw ids and how often its part had the pair before."""
    pair_N = kept["user"].to_numpy() * (len(item_V) + 1) + kept["item"].to_numpy()
    pair_N = pair_N * len(PARTS) + kept[PART].to_numpy()
    user_N, item_N = user_V[kept["user"].to_numpy() - 1], item_V[kept["item"].to_numpy() - 1]
    return pl.Series(DRAW, mixed(user_N, item_N, times_before(pair_N)))


def _row_order(raw: pl.DataFrame) -> pl.Series:
    return pl.int_range(len(raw), dtype=pl.Int64, eager=True)


def _ids(definition: DatasetDefinition, tables: Tables) -> dict[tuple[str, str], pl.Series]:
    """(table, role) -> checked ids; the two tables of a role agree in type (else both are text)."""
    columns = {"user": definition.roles.user, "item": definition.roles.item}
    ids = {("events", role): checked_ids(tables["events"], columns[role], table="events") for role in HOLDERS}
    return agreed_ids(definition, tables, ids)


def agreed_ids(
    definition: DatasetDefinition, tables: Tables, ids: dict[tuple[str, str], pl.Series]
) -> dict[tuple[str, str], pl.Series]:
    """``ids`` of the events, checked, with those of the other tables beside them, of the same type."""
    columns = {"user": definition.roles.user, "item": definition.roles.item}
    for role, holder in HOLDERS.items():
        if holder not in tables:
            continue
        ids[holder, role] = checked_ids(tables[holder], columns[role], table=holder, distinct=True)
        both = [("events", role), (holder, role)]
        if ids[both[0]].dtype != ids[both[1]].dtype:
            ids |= {key: as_ids(ids[key], pl.String()) for key in both}
        log, described = (ids[key] for key in both)
        if not log.is_in(described.implode()).any():
            raise DataError(
                f"no {role} of the events is in this table: ids look like {log[0]!r} there, {described[0]!r} here",
                table=holder,
                column=columns[role],
            )
    return ids


def _optional_columns(definition: DatasetDefinition, raw: pl.DataFrame) -> list[pl.Series]:
    """Request (raw), position, oracle and the part of a split by files, checked."""
    roles, columns = definition.roles, list[pl.Series]()
    if roles.request is not None:
        columns.append(checked_ids(raw, roles.request, table="events").alias("request"))
    for name, role, dtype in (("position", roles.position, pl.Int64), ("oracle", roles.oracle, pl.Float32)):
        if role is not None:
            numbers = checked_numbers(raw[role], raw, table="events", column=role)
            refuse_rows(numbers.is_null(), f"a {name} is missing ({{count}} rows)", raw, table="events", column=role)
            columns.append(numbers.cast(dtype).alias(name))
    if roles.oracle is not None:
        outside = (columns[-1] < 0) | (columns[-1] > 1)
        message = "a probability is outside 0 to 1 ({count} rows)"
        refuse_rows(outside, message, raw, table="events", column=roles.oracle)
    if roles.part is not None:
        columns.append(checked_parts(raw, roles.part))
    return [*columns, raw[PART]] if PART in raw.columns else columns


def _filtered(events: pl.DataFrame, definition: DatasetDefinition) -> pl.DataFrame:
    """Events of users and items that have enough of them, until both bounds hold."""
    users, items = definition.filter.min_user_events, definition.filter.min_item_events
    while users > 1 or items > 1:
        bounds = {role: least for role, least in (("user", users), ("item", items)) if least > 1}
        kept = events.filter(pl.len().over(role) >= least for role, least in bounds.items())
        if len(kept) == 0:
            raise DataError(
                f"min_user_events = {users} and min_item_events = {items} leave no event; lower them under [filter]",
                table="events",
            )
        if len(kept) == len(events):
            break
        events = kept
    return events


def known_users(
    definition: DatasetDefinition, tables: Tables, ids: dict[tuple[str, str], pl.Series], kept: pl.DataFrame
) -> tuple[pl.Series, int]:
    """The users that have events, sorted, and how many the filter left out."""
    known = kept["user"].unique().sort()
    everyone = ids["events", "user"].unique()
    if ("users", "user") in ids:
        table_ids = ids["users", "user"]
        idle = ~table_ids.is_in(known.implode())
        if definition.filter.min_user_events == 0:
            example = table_ids.filter(idle)[0] if idle.any() else ""
            refuse_rows(
                idle,
                f"user {example!r} has no events ({{count}} users); [filter] min_user_events = 1 leaves such users out",
                tables["users"],
                table="users",
                column=definition.roles.user,
            )
        everyone = pl.concat([everyone, table_ids]).unique()
    return known, len(everyone) - len(known)


def known_items(
    definition: DatasetDefinition, ids: dict[tuple[str, str], pl.Series], kept: pl.DataFrame
) -> tuple[pl.Series, int]:
    """The sorted catalogue: items of events and, unless ``min_item_events`` asks for events, of the item table."""
    everyone = pl.concat([column.unique() for (_, role), column in ids.items() if role == "item"]).unique()
    if definition.filter.min_item_events:
        known = kept["item"].unique()
    else:
        known = pl.concat([kept["item"].unique(), ids.get(("items", "item"), kept["item"].clear())]).unique()
    return known.sort(), len(everyone) - len(known)


def dense_requests(events: pl.DataFrame) -> pl.Series:
    """Request numbers 0, 1, ... by user and raw id: the same raw id of two users is two requests."""
    pairs = events.select("user", "request").unique().sort("user", "request").with_row_index("dense")
    joined = events.select("user", "request").join(pairs, on=["user", "request"], how="left", maintain_order="left")
    return joined["dense"].cast(pl.Int64).alias("request")

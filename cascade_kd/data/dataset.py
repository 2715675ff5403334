"""The encoded star schema that models read: users, items, the log, and what the log says as of a time (floor 2).

Axes: N events, U users, I items, B requests, R rows (request, item), K candidates, T tags or history length.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
import torch
from torch import Tensor

from cascade_kd.data.lookup import Events, History, Lookup, context_column
from cascade_kd.data.seen import SeenPairs, seen_pairs
from cascade_kd.data.statistic import Statistic, statistics_of
from cascade_kd.data.stored import histories_of, read_events, read_meta, read_table, read_vocabularies
from cascade_kd.errors import UserError
from cascade_kd.types import ITEM_ID, PARTS, USER_ID, Feature, Inputs, Level, Part, Requests

T = TypeVar("T")
__all__ = ["Dataset", "Events", "load"]


def load(prepared: Path) -> Dataset:
    """Read a prepared directory, onto the CPU. Raises ``DataError`` if it is incomplete or of another schema."""
    meta = read_meta(prepared)
    return Dataset(
        name=meta["name"],
        sha256=meta["sha256"],
        split=meta["split"],
        features=tuple(Feature(**fields) for fields in meta["features"]),
        num_users=meta["num_users"],
        num_items=meta["num_items"],
        users=read_table(prepared / "users.parquet"),
        items=read_table(prepared / "items.parquet"),
        events=read_events(prepared),
        vocabularies=read_vocabularies(prepared / "vocabulary.parquet"),
        meta=meta,
        stream=prepared / "events" if (prepared / "events").is_dir() else None,
    )


def _moved(columns: Mapping[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
    return {name: x.to(device) for name, x in columns.items()}


@dataclass(frozen=True, eq=False)
class Dataset:
    """One prepared data set in memory. Codes: 0 is unknown and padding, known users and items are 1..U and 1..I.

    ``users`` and ``items`` hold one row a code (row 0 the unknown); ids, histories and statistics are not stored but
    answered by :meth:`inputs`. Which events histories and statistics read follows from ``part`` and the split, see
    :mod:`cascade_kd.data.lookup`; events of the request's own second are never among them.
    """

    name: str
    sha256: str
    split: str
    features: tuple[Feature, ...] = field(repr=False)
    num_users: int
    num_items: int
    users: Mapping[str, Tensor] = field(repr=False)  # feature -> [U+1] or [U+1, T]
    items: Mapping[str, Tensor] = field(repr=False)  # feature -> [I+1] or [I+1, T]
    events: Events = field(repr=False)
    vocabularies: Mapping[str, pl.Series] = field(repr=False)  # code - 1 -> value, as text
    meta: Mapping[str, Any] = field(repr=False)
    stream: Path | None = None  # the folder of the log's training files, of layout "stream"; see data.stream
    _cache: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def feature(self, name: str) -> Feature:
        """The feature of that name. Raises ``UserError`` with the nearest names."""
        return self._features([name])[0]

    def online(self, level: Level) -> tuple[Feature, ...]:
        """The features that a stage of ``level`` may see."""
        return tuple(feature for feature in self.features if feature.online_at(level))

    def rows(self, part: Part) -> Tensor:
        """The event rows of a part, ascending, int64."""
        return self._once(("rows", part), lambda: (self.events.part_N == PARTS.index(part)).nonzero()[:, 0])

    def log_end(self, part: Part) -> Tensor:
        """The second after the last event that ``part`` may look back on: of train, for test of validation too.

        With a global time split, where look-ups read every earlier event, never after the first later event.
        """

        def end() -> Tensor:
            before_N = self.events.part_N <= (part == "test")
            last = self.events.time_N[before_N].max() + 1
            later_N = self.events.time_N[~before_N]
            return torch.minimum(last, later_N.min()) if self.split == "time" and len(later_N) else last

        return self._once(("end", part == "test"), end)

    def item_codes(self) -> Tensor:
        """1..I, int64."""
        return torch.arange(1, self.num_items + 1, device=self.events.item_N.device)

    def training_counts(self) -> Tensor:
        """[I + 1] the training events of every item, whatever their labels."""
        return self._once(
            "training counts",
            lambda: torch.bincount(self.events.item_N[self.rows("train")], minlength=self.num_items + 1),
        )

    def code_of(self, vocabulary: str, value: object) -> int:
        """The code of a raw value (compared as text), 0 if unknown. Raises ``UserError`` for an unknown vocabulary."""
        if vocabulary not in self.vocabularies:
            raise UserError(self._unknown("vocabulary", vocabulary, self.vocabularies))
        codes = self._once(
            ("codes", vocabulary),
            lambda: {text: code for code, text in enumerate(self.vocabularies[vocabulary].to_list(), start=1)},
        )
        return codes.get(str(value), 0)

    def to(self, device: torch.device | str) -> Dataset:
        """The same data set on another device; indices are built there at first use."""
        events = self.events
        moved = Events(
            user_N=events.user_N.to(device),
            item_N=events.item_N.to(device),
            time_N=events.time_N.to(device),
            part_N=events.part_N.to(device),
            labels=_moved(events.labels, device),
            columns=_moved(events.columns, device),
            request_N=None if events.request_N is None else events.request_N.to(device),
            position_N=None if events.position_N is None else events.position_N.to(device),
            oracle_N=None if events.oracle_N is None else events.oracle_N.to(device),
            statistics=_moved(events.statistics, device),
        )
        return replace(self, users=_moved(self.users, device), items=_moved(self.items, device), events=moved)

    def requests_of(self, rows_B: Tensor, *, part: Part = "test") -> Requests:
        """The requests that the events ``rows_B`` answered: user, time, context columns, request id.

        ``part`` is the log that look-ups for these requests may read: the part of the events, as a rule.
        """
        events = self.events
        context = {
            f.name: events.columns[f.name][rows_B]
            for f in self.features
            if f.side == "context" and f.kind != "statistic"
        }
        request_B = None if events.request_N is None else events.request_N[rows_B]
        return Requests(events.user_N[rows_B], events.time_N[rows_B], context, request_B, part)

    def inputs(
        self,
        names: Sequence[str],
        requests: Requests,
        item_R: Tensor,
        row_R: Tensor,
        *,
        part: Part,
        event_R: Tensor | None = None,
    ) -> Inputs:
        """A model's input: the features ``names`` of R rows (request ``row_R``, item ``item_R``).

        ``part`` says which log histories and statistics may read. ``event_R`` names the event of a row (-1: none), for
        columns known only with the event; they are 0 elsewhere. Raises ``UserError`` for unknown names.
        """
        features = self._features(names)
        item_side = [f.name for f in features if f.side in ("item", "pair")]
        context_R: Mapping[str, Tensor] = {}
        user_R = time_R = row_R
        if any(f.kind == "statistic" for f in features if f.side in ("item", "pair")):
            user_R = requests.user_B.index_select(0, row_R)
            time_R = requests.time_B.index_select(0, row_R)
            context_R = {name: x.index_select(0, row_R) for name, x in requests.context.items()}
        user_side = [f.name for f in features if f.side in ("user", "context")]
        return Inputs(
            user=self.user_inputs(user_side, requests, part=part),
            item=self.item_inputs(
                item_side, item_R, time_R=time_R, user_R=user_R, part=part, event_R=event_R, context_R=context_R
            ),
            row_R=row_R,
        )

    def user_inputs(self, names: Sequence[str], requests: Requests, *, part: Part) -> dict[str, Tensor]:
        """The user and context features among ``names``, once a request: [B] or [B, T]."""
        user_B, out = requests.user_B, dict[str, Tensor]()
        statistics: list[Statistic] = []
        histories: list[History] = []
        for f in self._features(names):
            if f.side not in ("user", "context"):
                continue
            if f.kind == "statistic":
                statistics.append(self._statistics[f.name])
            elif f.kind == "history":
                histories.append(self._histories[f.name])
            elif f.name == USER_ID:
                out[f.name] = user_B
            elif f.side == "context":
                out[f.name] = context_column(f.name, requests.context)
            else:
                out[f.name] = self.users[f.name].index_select(0, user_B)
        if histories:
            out |= self._lookup.histories(histories, user_B, requests.time_B, part)
        if statistics:
            out |= self._lookup.statistics(
                statistics,
                user_R=user_B,
                item_R=torch.zeros_like(user_B),
                time_R=requests.time_B,
                context=requests.context,
                part=part,
            )
        return out

    def history_entries(self, name: str, requests: Requests) -> tuple[Tensor, Tensor, Tensor]:
        """A history before it is cut to its length: ``item_M1, start_B, end_B``.

        The user of request b has the items ``item_M1[start + 1 : end + 1]`` before the request's moment, oldest first;
        start is the same for all requests of a user. ``item_M1[0]`` is 0, for padding.
        """
        history = self._histories[name]
        return self._lookup.history_entries(history, requests.user_B, requests.time_B, requests.part)

    def item_inputs(
        self,
        names: Sequence[str],
        item_R: Tensor,
        *,
        time_R: Tensor,
        user_R: Tensor,
        part: Part,
        event_R: Tensor | None = None,
        context_R: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The item and pair features among ``names``, once a row: [R] or [R, T].

        ``time_R``, ``user_R`` and ``context_R`` are read by statistics only.
        """
        out: dict[str, Tensor] = {}
        statistics: list[Statistic] = []
        for f in self._features(names):
            if f.side not in ("item", "pair"):
                continue
            if f.kind == "statistic":
                statistics.append(self._statistics[f.name])
            elif f.name == ITEM_ID:
                out[f.name] = item_R
            elif f.side == "pair":
                out[f.name] = self._event_column(f.name, item_R, event_R)
            else:
                out[f.name] = self.items[f.name].index_select(0, item_R)
        if statistics:
            out |= self._lookup.statistics(
                statistics, user_R=user_R, item_R=item_R, time_R=time_R, context=context_R or {}, part=part
            )
        return out

    def is_seen(self, user_B: Tensor, item_BK: Tensor, *, part: Part) -> Tensor:
        """Whether the user has an event with the item before ``part``, bool [B, K].

        Asked for test: in the train and validation parts; for train and validation: in the train part.
        """
        return self._seen(part).contains(user_B, item_BK)

    def seen(self, user_B: Tensor, *, part: Part) -> tuple[Tensor, Tensor]:
        """The same as CSR: offsets [B+1] and the distinct items of each user, ascending."""
        return self._seen(part).of_users(user_B)

    def _seen(self, part: Part) -> SeenPairs:
        def build() -> SeenPairs:
            before_N = self.events.part_N <= (part == "test")
            return seen_pairs(self.events.user_N[before_N], self.events.item_N[before_N], self.num_items)

        return self._once(("seen", part == "test"), build)

    @property
    def _by_name(self) -> dict[str, Feature]:
        return self._once("features", lambda: {feature.name: feature for feature in self.features})

    @property
    def _statistics(self) -> dict[str, Statistic]:
        return self._once("statistics", lambda: statistics_of(self.meta))

    @property
    def _histories(self) -> dict[str, History]:
        return self._once("histories", lambda: histories_of(self.meta))

    @property
    def _lookup(self) -> Lookup:
        return self._once("lookup", self._make_lookup)

    def _make_lookup(self) -> Lookup:
        sizes = {"user": self.num_users + 1, "item": self.num_items + 1}
        sizes |= {f"{f.side}.{f.name}": f.size for f in self.features if f.size}
        return Lookup(self.events, self.users, self.items, sizes, self.split, int(self.meta["time_offset"]))

    def _once(self, key: object, make: Callable[[], T]) -> T:
        """What ``make`` returns, made at the first call."""
        if key not in self._cache:
            self._cache[key] = make()
        value: T = self._cache[key]
        return value

    def _features(self, names: Sequence[str]) -> list[Feature]:
        by_name = self._by_name
        for name in names:
            if name not in by_name:
                raise UserError(self._unknown("feature", name, by_name))
        return [by_name[name] for name in names]

    def _unknown(self, what: str, name: str, known: Iterable[str]) -> str:
        near = difflib.get_close_matches(name, list(known), n=1)
        guess = f"; did you mean '{near[0]}'?" if near else ""
        return f"data set '{self.name}' has no {what} '{name}'; it has: {', '.join(known)}{guess}"

    def _event_column(self, name: str, item_R: Tensor, event_R: Tensor | None) -> Tensor:
        """A column of the log in the rows that are events, 0 in the others."""
        column_N = self.events.columns[name]
        if event_R is None:
            return torch.zeros(len(item_R), dtype=column_N.dtype, device=column_N.device)
        return column_N.index_select(0, event_R.clamp(min=0)).masked_fill(event_R < 0, 0)

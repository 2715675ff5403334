"""A data set as its TOML declares it: the sections of ``schema`` and what must hold between them (floor 2)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from cascade_kd.data.features import FeatureDefinition
from cascade_kd.data.origins import origin_problems
from cascade_kd.data.problems import Loc, did_you_mean, refuse, repeated, sql_problems
from cascade_kd.data.query import is_ordered, reads_other_rows
from cascade_kd.data.schema import (
    TABLES,
    ExpectDefinition,
    FilterDefinition,
    Name,
    Roles,
    SplitDefinition,
    StorageDefinition,
    StrictModel,
)
from cascade_kd.data.source import TableSource
from cascade_kd.data.synthetic import WorldConfig
from cascade_kd.types import LEVELS

__all__ = [
    "DatasetDefinition",
    "ExpectDefinition",
    "FeatureDefinition",
    "FilterDefinition",
    "Roles",
    "SplitDefinition",
    "StorageDefinition",
    "TableSource",
    "WorldConfig",
]

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$", to_lower=True)]
Url = Annotated[str, StringConstraints(pattern=r"^https?://")]
WHEREABOUTS = {"path", "url", "sha256", "max_bytes", "licence", "description"}  # keys that change no prepared value


class DatasetDefinition(StrictModel):
    """A whole data-set TOML. Raises pydantic's ``ValidationError`` with every problem at the ``loc`` of its key."""

    name: Name
    """The name of the data set."""
    licence: str
    """Whose data it is and what may be done with it."""
    description: str = ""
    """What the data is, in a line."""
    path: str | None = None
    """The folder with the files: under $CASCADE_KD_DATA, else relative to the TOML ("./" and "../": only there)."""
    url: Url | None = None
    """Where to download it from if the folder is not there."""
    sha256: Sha256 | None = None
    """The sha256 of what the url serves."""
    max_bytes: Annotated[int, Field(ge=1)] | None = None
    """The most that the url may serve."""
    generator: WorldConfig | None = None
    """A generated world instead of tables."""
    sources: dict[Name, TableSource] = Field(default_factory=dict)
    """Raw files that only the sql of a table reads, by the name that it has there."""
    tables: dict[str, TableSource] = Field(default_factory=dict)
    """Where the rows of `events`, `users` and `items` come from."""
    roles: Roles
    """Which columns are the user, the item, the time and so on: `[roles]`."""
    labels: dict[Name, str]
    """What counts as good, as Polars SQL over the events: `[labels]` with, for example, `like = "rating >= 4"`."""
    feature: tuple[FeatureDefinition, ...] = ()
    """What models may see, beside the ids."""
    filter: FilterDefinition = FilterDefinition()
    """Which users and items are left out."""
    split: SplitDefinition = SplitDefinition()
    """How events become train, valid and test."""
    expect: ExpectDefinition = ExpectDefinition()
    """What the data must come to."""
    storage: StorageDefinition = StorageDefinition()
    """How the prepared log lies on disk."""

    @model_validator(mode="after")
    def _check(self) -> DatasetDefinition:
        return refuse(
            self,
            [*self._source_problems(), *self._column_problems(), *self._feature_problems(), *self._stream_problems()],
        )

    @property
    def table_names(self) -> tuple[str, ...]:
        """The tables that there are: those of the TOML, or all three of a generated world."""
        return TABLES if self.generator is not None else tuple(name for name in TABLES if name in self.tables)

    @property
    def files(self) -> dict[str, TableSource]:
        """All that is read from files, by name: sources and the tables that no sql makes."""
        return {name: source for name, source in (self.sources | self.tables).items() if source.sql is None}

    @property
    def queries(self) -> dict[str, str]:
        """Table -> the sql that makes it."""
        return {name: source.sql for name, source in self.tables.items() if source.sql is not None}

    @property
    def hold_out(self) -> Literal["last", "random"]:
        """How validation is taken from the training events where the data set brings no such part."""
        return self.split.hold_out or ("last" if self.roles.time else "random")

    def content(self) -> dict[str, Any]:
        """The definition as JSON values, without the keys that say only where the data is and who owns it."""
        return self.model_dump(mode="json", exclude=WHEREABOUTS)

    def _source_problems(self) -> list[tuple[Loc, str]]:
        problems: list[tuple[Loc, str]] = []
        for name, source in self.tables.items():
            if name not in TABLES:
                problems.append(
                    (("tables", name), f"unknown table; use {', '.join(TABLES)}{did_you_mean(name, TABLES)}")
                )
            elif name != "events" and source.files is not None:
                problems.append((("tables", name, "files"), "only the events table comes in train, valid and test"))
        if self.generator is not None:
            for key in ("sources", "tables", "path", "url"):
                if getattr(self, key):
                    problems.append(((key,), f"a generated data set takes no `{key}`"))
        elif "events" not in self.tables:
            problems.append((("tables",), "the table [tables.events] is missing (or give a [generator])"))
        problems += origin_problems(self)
        if self.url is not None and self.sha256 is None:
            problems.append((("url",), "a url needs the sha256 of what it serves: add sha256 (64 hex digits)"))
        if self.url is None:
            problems += [((key,), f"{key} belongs to a url") for key in ("sha256", "max_bytes") if getattr(self, key)]
        return problems

    def _column_problems(self) -> list[tuple[Loc, str]]:
        roles = self.roles.model_dump(exclude={"time_unit"}, exclude_none=True)
        twice = repeated(roles.values())
        problems: list[tuple[Loc, str]] = [
            (("roles", role), f"column '{column}' plays two roles") for role, column in roles.items() if column in twice
        ]
        if not self.labels:
            problems.append((("labels",), 'at least one label is needed, for example like = "rating >= 4"'))
        for name, expression in self.labels.items():
            problems += [(("labels", name), problem) for problem in sql_problems(expression)]
        for label in self.expect.label_rate:
            if label not in self.labels:
                known = f"there are: {', '.join(self.labels)}{did_you_mean(label, self.labels)}"
                problems.append((("expect", "label_rate", label), f"no label '{label}'; {known}"))
        return problems

    def _feature_problems(self) -> list[tuple[Loc, str]]:
        problems: list[tuple[Loc, str]] = []
        seen: set[str] = set()
        for number, feature in enumerate(self.feature):
            place: Loc = ("feature", number)
            if feature.name in seen:
                problems.append(((*place, "name"), f"feature '{feature.name}' is declared twice"))
            seen.add(feature.name)
            if feature.is_stored and feature.source_table not in self.table_names:
                problems.append(
                    (
                        (*place, "table"),
                        f"feature '{feature.name}' needs [tables.{feature.source_table}], which is missing",
                    )
                )
            query = self.queries.get(feature.source_table) if feature.is_stored else None
            if feature.file is not None and query is not None and not is_ordered(query):
                message = "row i of the file belongs to row i of the table: end the query of the table with ORDER BY"
                problems.append(((*place, "file"), message))
            if self.roles.time is None:
                problems += [((*place, key), problem) for key, problem in _problems_without_time(feature)]
            for key in ("events", "value"):
                label = getattr(feature, key)
                if label is not None and label not in self.labels:
                    known = ", ".join(self.labels)
                    problems.append(
                        ((*place, key), f"no label '{label}'; there are: {known}{did_you_mean(label, self.labels)}")
                    )
            problems += [
                ((*place, "keys"), problem) for key in feature.keys for problem in self._key_problems(feature, key)
            ]
        return problems

    def _stream_problems(self) -> list[tuple[Loc, str]]:
        """What a log that is never whole in memory cannot have."""
        if self.storage.layout != "stream":
            return []
        remedy = 'for layout "stream"'
        problems: list[tuple[Loc, str]] = []
        if self.generator is not None:
            problems.append((("storage", "layout"), "a generated data set is made in memory; leave [storage] out"))
        for key in ("min_user_events", "min_item_events"):
            if getattr(self.filter, key) > 1:
                message = f"a filter counts again and again; {remedy}, filter the files before and leave `{key}` out"
                problems.append((("filter", key), message))
        events = self.tables.get("events")
        if events is not None:
            problems += [(("tables", "events", key), problem) for key, problem in _stream_source_problems(events)]
        expressions: list[tuple[Loc, str]] = [(("labels", name), text) for name, text in self.labels.items()]
        for number, feature in enumerate(self.feature):
            if feature.expression is not None and feature.source_table == "events":
                expressions.append((("feature", number, "expression"), feature.expression))
        for place, text in expressions:
            if reads_other_rows(text):
                problems.append((place, f"{text!r} reads more than its own row; {remedy}, put it into a column"))
        return problems

    def _key_problems(self, statistic: FeatureDefinition, key: str) -> list[str]:
        side, _, name = key.partition(".")
        if not name:
            return []
        of_side = {feature.name: feature for feature in self.feature if feature.side == side and feature.is_stored}
        if name not in of_side:
            return [f"key '{key}': no feature '{name}' of side '{side}'{did_you_mean(name, of_side)}"]
        if not of_side[name].is_coded:
            kind = of_side[name].kind
            return [f"key '{key}': a key must be categorical, tags or quantile buckets, '{name}' is {kind}"]
        if LEVELS.index(of_side[name].available) > LEVELS.index(statistic.available):
            return [f"key '{key}' is available at '{of_side[name].available}', later than the statistic itself"]
        return []


def _stream_source_problems(events: TableSource) -> list[tuple[str, str]]:
    """Keys of the events table that ask for the whole table at once."""
    remedy = 'layout "stream" reads csv (utf-8, a separator of one character), ndjson, parquet and arrow files'
    problems: list[tuple[str, str]] = []
    if events.sql is not None:
        problems.append(("sql", f"{remedy}, no sql; write what the query gives to parquet files"))
    if events.sql is None and events.format not in ("csv", "ndjson", "parquet", "arrow"):
        problems.append(("format", f"{remedy}; convert the file to one of them"))
    if events.format == "csv" and len(events.separator.encode()) > 1:
        problems.append(("separator", f"{remedy}; replace {events.separator!r} in the file"))
    if events.encoding != "utf-8":
        problems.append(("encoding", f"{remedy}; convert the file, for example with iconv"))
    return problems


def _problems_without_time(feature: FeatureDefinition) -> list[tuple[str, str]]:
    """Keys of a feature that count seconds, which a log without times does not have."""
    remedy = "the data set has no times; name their column: [roles] time = …"
    problems: list[tuple[str, str]] = []
    if feature.window_seconds is not None:
        problems.append(("window", f'window "{feature.window}" counts seconds and {remedy}, or use window "all"'))
    if feature.aggregate == "recency":
        problems.append(("aggregate", f"aggregate 'recency' counts seconds and {remedy}"))
    return problems

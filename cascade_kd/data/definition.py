"""A data set as its TOML declares it: the sections of ``schema`` and what must hold between them (floor 2)."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, StringConstraints, model_validator

from cascade_kd.data.features import FeatureDefinition
from cascade_kd.data.problems import Loc, did_you_mean, refuse, repeated, sql_problems
from cascade_kd.data.schema import (
    TABLES,
    FilterDefinition,
    Name,
    Roles,
    SplitDefinition,
    StrictModel,
    TableSource,
)
from cascade_kd.data.synthetic import WorldConfig
from cascade_kd.types import LEVELS

__all__ = [
    "DatasetDefinition",
    "FeatureDefinition",
    "FilterDefinition",
    "Roles",
    "SplitDefinition",
    "TableSource",
    "WorldConfig",
]

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$", to_lower=True)]
Url = Annotated[str, StringConstraints(pattern=r"^https?://")]
WHEREABOUTS = {"path", "url", "sha256", "max_bytes", "licence", "description"}  # keys that change no prepared value


class DatasetDefinition(StrictModel):
    """A whole data-set TOML. Raises pydantic's ``ValidationError`` with every problem at the ``loc`` of its key."""

    name: Name
    licence: str
    description: str = ""
    path: str | None = None  # under $CASCADE_KD_DATA, else relative to the TOML, else absolute
    url: Url | None = None
    sha256: Sha256 | None = None
    max_bytes: Annotated[int, Field(ge=1)] | None = None
    generator: WorldConfig | None = None
    tables: dict[str, TableSource] = Field(default_factory=dict)
    roles: Roles
    labels: dict[Name, str]
    feature: tuple[FeatureDefinition, ...] = ()
    filter: FilterDefinition = FilterDefinition()
    split: SplitDefinition = SplitDefinition()

    @model_validator(mode="after")
    def _check(self) -> DatasetDefinition:
        return refuse(self, [*self._source_problems(), *self._column_problems(), *self._feature_problems()])

    @property
    def table_names(self) -> tuple[str, ...]:
        """The tables that there are: those of the TOML, or all three of a generated world."""
        return TABLES if self.generator is not None else tuple(name for name in TABLES if name in self.tables)

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
            for key in ("tables", "path", "url"):
                if getattr(self, key):
                    problems.append(((key,), f"a generated data set takes no `{key}`"))
        elif "events" not in self.tables:
            problems.append((("tables",), "the table [tables.events] is missing (or give a [generator])"))
        events = self.tables.get("events")
        if self.split.kind == "files" and (events is None or events.files is None):
            problems.append(
                (("split", "kind"), "split 'files' needs files = { train = …, valid = …, test = … } in [tables.events]")
            )
        elif self.split.kind != "files" and events is not None and events.files is not None:
            problems.append((("tables", "events", "files"), 'files for each part need [split] kind = "files"'))
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

    def _key_problems(self, statistic: FeatureDefinition, key: str) -> list[str]:
        side, _, name = key.partition(".")
        if not name:
            return []
        of_side = {feature.name: feature for feature in self.feature if feature.side == side and feature.is_stored}
        if name not in of_side:
            return [f"key '{key}': no feature '{name}' of side '{side}'{did_you_mean(name, of_side)}"]
        if of_side[name].kind == "numeric":
            return [f"key '{key}': a key must be categorical or tags, '{name}' is numeric"]
        if LEVELS.index(of_side[name].available) > LEVELS.index(statistic.available):
            return [f"key '{key}' is available at '{of_side[name].available}', later than the statistic itself"]
        return []

"""What must hold between the tables, sources, roles and split of a data-set TOML about where its rows come from
(floor 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cascade_kd.data.problems import Loc
from cascade_kd.data.query import is_ordered, table_problems

if TYPE_CHECKING:
    from cascade_kd.data.definition import DatasetDefinition


def origin_problems(definition: DatasetDefinition) -> list[tuple[Loc, str]]:
    """All that is wrong between them."""
    return [*_query_problems(definition), *_part_problems(definition)]


def _query_problems(definition: DatasetDefinition) -> list[tuple[Loc, str]]:
    """The sources, and the sql of the tables that reads them."""
    problems: list[tuple[Loc, str]] = []
    for name, source in definition.sources.items():
        if source.sql is not None:
            message = f"a source is read from files; put its query into that of the table: WITH {name} AS (…) SELECT …"
            problems.append((("sources", name, "sql"), message))
        if name in definition.tables and definition.tables[name].sql is None:
            problems.append((("sources", name), f"[tables.{name}] is read from files too; choose another name"))
    if definition.sources and not definition.queries:
        problems.append((("sources",), "no table has sql, which alone reads sources"))
    for name, query in definition.queries.items():
        problems += [(("tables", name, "sql"), problem) for problem in table_problems(query, definition.files)]
    events = definition.queries.get("events")
    if events is not None and definition.roles.time is None and not is_ordered(events):
        message = "without [roles] time the rows are in time order: end the query with ORDER BY"
        problems.append((("tables", "events", "sql"), message))
    return problems


def _part_problems(definition: DatasetDefinition) -> list[tuple[Loc, str]]:
    """Parts that the data set brings belong to split "files", and one place says them."""
    events = definition.tables.get("events")
    by_file, by_column = events is not None and events.files is not None, definition.roles.part is not None
    problems: list[tuple[Loc, str]] = []
    if definition.split.kind != "files":
        if by_file:
            problems.append((("tables", "events", "files"), 'files for each part need [split] kind = "files"'))
        if by_column:
            problems.append((("roles", "part"), 'a column of parts needs [split] kind = "files"'))
    elif by_file == by_column:
        message = "split 'files' needs files = { train = …, test = … } in [tables.events], or a column [roles] part"
        problems.append((("split", "kind"), f"{message}{', not both' if by_file else ''}"))
    elif events is not None and "valid" in (events.files or ()):
        for key in sorted(definition.split.model_fields_set & {"valid", "hold_out"}):
            problems.append((("split", key), f"the files bring a validation part; leave `{key}` out"))
    return problems

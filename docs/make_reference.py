"""Writes the key tables of docs/data.md from the models that check a data-set TOML: python docs/make_reference.py."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from cascade_kd.data.definition import (
    DatasetDefinition,
    ExpectDefinition,
    FeatureDefinition,
    FilterDefinition,
    Roles,
    SplitDefinition,
    StorageDefinition,
    TableSource,
)
from cascade_kd.data.features import KIND_KEYS

PAGE = Path(__file__).parent / "data.md"
TABLES: dict[str, type[BaseModel]] = {
    "top level": DatasetDefinition,
    "[tables.*], [sources.*]": TableSource,
    "[roles]": Roles,
    "[[feature]]": FeatureDefinition,
    "[filter]": FilterDefinition,
    "[split]": SplitDefinition,
    "[storage]": StorageDefinition,
    "[expect]": ExpectDefinition,
}
SECTIONS = {"roles", "labels", "feature", "filter", "split", "storage", "expect", "tables", "sources", "generator"}


def rows_of(model: type[BaseModel]) -> list[str]:
    """One line of a table a key: name, default, meaning."""
    rows: list[str] = []
    for name, field in model.model_fields.items():
        if model is DatasetDefinition and name in SECTIONS:
            continue
        meaning = re.sub(r"\s+", " ", field.description or "").replace("|", "\\|")
        kinds = [kind for kind, keys in KIND_KEYS.items() if name in keys] if model is FeatureDefinition else []
        if kinds:
            meaning += f" *({', '.join(kinds)})*"
        rows.append(f"| `{name}` | {_default(field)} | {meaning} |")
    return rows


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if default is None or default in ((), {}):
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else repr(default)}`".replace("'", '"').replace(
        "|", "\\|"
    )


def written(text: str) -> str:
    """The page with its tables as the models have them."""
    for name, model in TABLES.items():
        start, end = f"<!-- keys: {name} -->\n", "<!-- end -->"
        before, rest = text.split(start)
        table = "\n".join(["| key | default | meaning |", "|---|---|---|", *rows_of(model)])
        text = f"{before}{start}{table}\n{end}{rest.split(end, 1)[1]}"
    return text


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text("utf-8")), "utf-8")

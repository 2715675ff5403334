"""Writes the key tables of docs/{data,stages,distill}.md from what checks a TOML: python docs/make_reference.py."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from cascade_kd.config.files import StageEntry, StageFile, TeacherEntry
from cascade_kd.config.tables import TYPES
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
from cascade_kd.distill.objectives import (
    ARFConfig,
    COPRConfig,
    FSConfig,
    ICCConfig,
    LCRONConfig,
    ObjectiveConfig,
    RankFlowConfig,
)
from cascade_kd.distill.order_settings import (
    CDConfig,
    DCDConfig,
    ListwiseConfig,
    PairwiseConfig,
    RDConfig,
    RRDConfig,
    TopKConfig,
    UnKDConfig,
)
from cascade_kd.distill.pair import ListsConfig, PairConfig
from cascade_kd.distill.settings import HiddenDistillConfig, LogitDistillConfig, RelationDistillConfig
from cascade_kd.models.settings import HistoryConfig
from cascade_kd.retrieval.settings import IndexConfig
from cascade_kd.train.codistill_settings import CodistillConfig
from cascade_kd.train.settings import SampleSource, TrainConfig, TransferConfig

DOCS = Path(__file__).parent
DATA: dict[str, type[BaseModel]] = {
    "top level": DatasetDefinition,
    "[tables.*], [sources.*]": TableSource,
    "[roles]": Roles,
    "[[feature]]": FeatureDefinition,
    "[filter]": FilterDefinition,
    "[split]": SplitDefinition,
    "[storage]": StorageDefinition,
    "[expect]": ExpectDefinition,
}
STAGES: dict[str, type[BaseModel]] = {
    "stage": StageFile,
    **{f'[model] of type "{name}"': kind.config for name, kind in TYPES.items()},
    "[model.history]": HistoryConfig,
    "[train]": TrainConfig,
    "samples": SampleSource,
    "[index]": IndexConfig,
}
DISTILL: dict[str, type[BaseModel]] = {
    "[[distill]]": PairConfig,
    'method = "logit"': LogitDistillConfig,
    'method = "hidden"': HiddenDistillConfig,
    'method = "relation"': RelationDistillConfig,
    "lists": ListsConfig,
    "topk-": TopKConfig,
    'method = "topk-pairwise"': PairwiseConfig,
    'method = "topk-listwise"': ListwiseConfig,
    'method = "rd"': RDConfig,
    'method = "cd"': CDConfig,
    'method = "rrd"': RRDConfig,
    'method = "dcd"': DCDConfig,
    'method = "unkd"': UnKDConfig,
    "[[objective]]": ObjectiveConfig,
    'method = "lcron"': LCRONConfig,
    'method = "arf"': ARFConfig,
    'method = "icc"': ICCConfig,
    'method = "fs"': FSConfig,
    'method = "copr"': COPRConfig,
    'method = "rankflow"': RankFlowConfig,
    "[[teacher]]": TeacherEntry,
    "[transfer]": TransferConfig,
    "[codistill]": CodistillConfig,
}
PAGES = {DOCS / "data.md": DATA, DOCS / "stages.md": STAGES, DOCS / "distill.md": DISTILL}
SECTIONS = {  # tables of a file, each with rows of its own
    DatasetDefinition: {
        *("roles", "labels", "feature", "filter", "split", "storage", "expect", "tables", "sources", "generator"),
    },
    StageFile: {"model", "train", "index"},
    TeacherEntry: {*StageEntry.model_fields} - {"name", "level"},
    **{method: {*PairConfig.model_fields} for method in (HiddenDistillConfig, RelationDistillConfig, ListsConfig)},
    **{
        method: {*ListsConfig.model_fields}
        for method in (LogitDistillConfig, TopKConfig, RDConfig, CDConfig, RRDConfig, DCDConfig, UnKDConfig)
    },
    **{method: {*TopKConfig.model_fields} for method in (PairwiseConfig, ListwiseConfig)},
    **{
        method: {*ObjectiveConfig.model_fields}
        for method in (LCRONConfig, ARFConfig, ICCConfig, FSConfig, COPRConfig, RankFlowConfig)
    },
}


def rows_of(model: type[BaseModel]) -> list[str]:
    """One line of a table a key: name, default, meaning."""
    rows: list[str] = []
    for name, field in model.model_fields.items():
        if name in SECTIONS.get(model, ()):
            continue
        meaning = re.sub(r"\s+", " ", field.description or "").replace("|", "\\|")
        choices = _choices(field.annotation)
        if not all(choice in meaning for choice in choices):
            meaning = f"{meaning.rstrip('.')}. One of {', '.join(f'`{choice}`' for choice in choices)}."
        kinds = [kind for kind, keys in KIND_KEYS.items() if name in keys] if model is FeatureDefinition else []
        if kinds:
            meaning += f" *({', '.join(kinds)})*"
        rows.append(f"| `{field.serialization_alias or name}` | {_default(field)} | {meaning} |")
    return rows


def _choices(annotation: Any) -> list[str]:
    """The words that a key may be."""
    if get_origin(annotation) is Literal:
        return [choice for choice in get_args(annotation) if re.fullmatch(r"[\w-]+", choice)]
    options = [option for option in get_args(annotation) if get_origin(option) is Literal]
    return _choices(options[0]) if options and type(None) in get_args(annotation) else []


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    if field.default_factory_takes_validated_data:
        return ""  # depends on other keys, which its meaning says
    default = field.get_default(call_default_factory=True)
    if default is None or default in ((), {}):
        return ""
    if isinstance(default, tuple):
        default = list(default)
    return f"`{str(default).lower() if isinstance(default, bool) else repr(default)}`".replace("'", '"').replace(
        "|", "\\|"
    )


def written(text: str, tables: Mapping[str, type[BaseModel]]) -> str:
    """The page with its tables as the models have them."""
    for name, model in tables.items():
        start, end = f"<!-- keys: {name} -->\n", "<!-- end -->"
        before, rest = text.split(start)
        table = "\n".join(["| key | default | meaning |", "|---|---|---|", *rows_of(model)])
        text = f"{before}{start}{table}\n{end}{rest.split(end, 1)[1]}"
    return text


if __name__ == "__main__":
    for page, tables in PAGES.items():
        page.write_text(written(page.read_text("utf-8"), tables), "utf-8")

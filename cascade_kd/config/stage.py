"""A stage of an experiment: its file and the experiment's keys laid over it, checked key by key."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from cascade_kd.config import catalogue
from cascade_kd.config.files import StageEntry, StageFile, TeacherEntry
from cascade_kd.config.lines import Document, KeyPath, read_document
from cascade_kd.config.problems import Fault, keys_of, salvage, validate
from cascade_kd.config.sources import (
    Layer,
    Override,
    OverrideLayer,
    Sources,
    apply_override,
    merge,
)
from cascade_kd.config.tables import StageType, resolve_type, stage_type
from cascade_kd.config.words import listing, show_path
from cascade_kd.errors import ConfigError, Problem, UserError
from cascade_kd.retrieval.settings import IndexConfig
from cascade_kd.train.settings import TrainConfig
from cascade_kd.types import Level

NOT_A_TEACHERS = ("keep", "index", "upstream_weight", "refresh", "label_weight")  # keys of what is served or taught


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage, complete and checked. ``toml_file`` (the stage's own, else the experiment's) takes no part in ==.

    A model of a ``[[teacher]]`` is one as well, which nobody serves: its ``keep`` is 1.
    """

    name: str
    type: str
    level: Level
    features: Literal["all"] | tuple[str, ...]
    model: BaseModel
    train: TrainConfig | None
    index: IndexConfig | None
    keep: int
    label_weight: float | Literal["rest", "learned"]
    upstream_weight: float
    refresh: bool
    toml_file: Path = field(compare=False)

    @property
    def model_type(self) -> Any:
        """The class that ``type`` names: a model, or a stage of the user's own."""
        return resolve_type(self.type)


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """One ``[[teacher]]``, complete and checked: of ``model``, ``members`` and ``column`` there is one.

    ``copies`` of a model are stages of one configuration that differ in their names, and so in their streams.
    """

    name: str
    model: StageConfig | None
    copies: int
    members: tuple[str, ...]
    column: str | None
    scores: Literal["logit", "probability", "rank"]

    @property
    def stages(self) -> tuple[StageConfig, ...]:
        """What is trained for it: its model, once for every copy."""
        if self.model is None:
            return ()
        if self.copies == 1:
            return (self.model,)
        return tuple(replace(self.model, name=f"{self.name}.{copy}") for copy in range(self.copies))


@dataclass(frozen=True)
class StageDraft:
    """What could be read of a stage, for checks that want to say all at once: keys that are wrong are None.

    ``place`` is its number in the experiment; ``kind`` and ``model`` are None where ``type`` or ``[model]`` is wrong.
    """

    place: int
    keys: StageEntry
    kind: StageType | None
    model: BaseModel | None
    sources: Sources
    toml_file: Path

    @property
    def name(self) -> str:
        """Its name, or its number where it has none."""
        return self.keys.name or str(self.place)

    def problem(self, path: KeyPath, message: str) -> Problem:
        """A problem with one of its keys, at the file and line that wrote it."""
        return self.sources.problem(Fault(path, message))

    def config(self) -> StageConfig:
        """The stage, where nothing is wrong with it."""
        keys = self.keys
        teacher = isinstance(keys, TeacherEntry)
        keep = 1 if teacher else keys.keep
        assert keys.name and keys.type and keys.level and keep  # noqa: PT018
        assert self.model is not None
        index = keys.index or IndexConfig() if keys.level == "recall" else None
        return StageConfig(
            name=keys.name,
            type=keys.type,
            level=keys.level,
            features=keys.features,
            model=self.model,
            train=keys.train,
            index=index,
            keep=keep,
            label_weight=keys.label_weight,
            upstream_weight=keys.upstream_weight,
            refresh=keys.refresh,
            toml_file=self.toml_file,
        )

    def teacher(self) -> TeacherConfig:
        """The teacher, where nothing is wrong with it."""
        keys = self.keys
        assert isinstance(keys, TeacherEntry)
        assert keys.name
        return TeacherConfig(
            name=keys.name,
            model=None if stands_in(keys) else self.config(),
            copies=keys.copies,
            members=keys.members,
            column=keys.column,
            scores=keys.scores,
        )


def stands_in(keys: StageEntry) -> bool:
    """Whether a ``[[teacher]]`` is an ensemble or scores of the user's own, with no model of its own."""
    return isinstance(keys, TeacherEntry) and bool(keys.members or keys.column)


def read_stage(
    place: int,
    entry: dict[str, Any],
    document: Document,
    overrides: Sequence[Override],
    kind_of_entry: type[StageEntry] = StageEntry,
) -> tuple[StageDraft, list[Problem]]:
    """The ``place``-th ``[[stage]]`` of an experiment, with the stage file it uses and the overrides that name it.

    With ``TeacherEntry`` the ``place``-th ``[[teacher]]``.
    """
    problems: list[Problem] = []
    served = kind_of_entry is StageEntry
    table = "stage" if served else "teacher"
    name = entry.get("name")
    shown_name = name if isinstance(name, str) and name else str(place)
    own = Layer(document.shown, entry, document.lines, (table, place), show_path((table, shown_name)))
    layers: list[Layer | OverrideLayer] = [own]
    entry = dict(entry)
    _apply(entry, [o for o in overrides if o.path[2:] == ("use",)], layers, problems)

    base, toml_file, complete = _used_file(entry, layers, document, problems)
    if base and not served:
        base = replace(base, data={key: value for key, value in base.data.items() if key not in NOT_A_TEACHERS})
    merged = merge(base.data if base else {}, entry)
    _apply(merged, [o for o in overrides if o.path[2:] != ("use",)], layers, problems)
    sources = Sources((*layers, base) if base else tuple(layers))

    keys, faults = salvage(kind_of_entry, merged)
    assert keys is not None, "every key of a stage has a default"
    has_model = not stands_in(keys)
    if complete:
        own_keys = ("name", "keep") if served else ("name",)
        problems += [own.problem((key,), _missing(key)) for key in own_keys if key not in merged]
        of_model = ("type", "level") if has_model else ()
        faults += [Fault((key,), _missing(key), missing=True) for key in of_model if key not in merged]
    else:  # the file that should hold them could not be read
        faults = [fault for fault in faults if not fault.missing]
    problems += [sources.problem(fault) for fault in faults]

    kind, model = _model(keys, sources, problems)
    if complete and has_model and kind and kind.is_model and "train" not in merged:
        problems.append(sources.problem(Fault(("train",), _missing("train"), missing=True)))
    return StageDraft(place, keys, kind, model, sources, toml_file), problems


def _apply(
    data: dict[str, Any],
    overrides: Iterable[Override],
    layers: list[Layer | OverrideLayer],
    problems: list[Problem],
) -> None:
    """Set the overrides in ``data``; each becomes the highest layer."""
    for override in overrides:
        applied = apply_override(data, override, override.path[2:])
        if isinstance(applied, Problem):
            problems.append(applied)
        else:
            layers.insert(0, applied)


def _used_file(
    entry: dict[str, Any], layers: list[Layer | OverrideLayer], document: Document, problems: list[Problem]
) -> tuple[Layer | None, Path, bool]:
    """The stage file that ``use`` names, as the lowest layer; False where it should be there and cannot be read."""
    use = entry.get("use")
    if not isinstance(use, str):
        return None, document.path, "use" not in entry
    try:
        path = catalogue.resolve("stages", use, beside=document.path.parent)
        base = read_document(path)
    except ConfigError as error:
        problems += error.problems
        return None, document.path, False
    except UserError as error:
        problems.append(Sources(tuple(layers)).problem(Fault(("use",), str(error))))
        return None, document.path, False
    layer = Layer(base.shown, base.data, base.lines)
    known = keys_of(StageFile)
    for key in ("name", "use"):
        if key in base.data:
            message = f"unknown key; it belongs into the experiment's [[stage]]; known keys here: {listing(known)}"
            problems.append(layer.problem((key,), message))
    data = {key: value for key, value in base.data.items() if key not in ("name", "use")}
    return Layer(base.shown, data, base.lines), path, True


def _model(keys: StageEntry, sources: Sources, problems: list[Problem]) -> tuple[StageType | None, BaseModel | None]:
    """What ``type`` stands for, and the validated ``[model]``."""
    if keys.type is None:
        return None, None
    try:
        kind = stage_type(keys.type)
    except UserError as error:
        problems.append(sources.problem(Fault(("type",), str(error))))
        return None, None
    model, faults = validate(kind.config, keys.model)
    problems += [sources.problem(Fault(("model", *f.path), f.message, f.missing)) for f in faults]
    return kind, model


def _missing(key: str) -> str:
    meaning = StageEntry.model_fields[key].description or ""
    first = meaning.partition(". ")[0].rstrip(".").replace("`", "")
    hint = "; or name a stage file with use" if key in ("type", "level") else ""
    hint = "; want a table [train] with at least label" if key == "train" else hint
    return f"required key is missing: {first[:1].lower()}{first[1:]}{hint}"

"""An experiment TOML with everything it names, checked as a whole: one object that a run can trust."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from cascade_kd.config import catalogue
from cascade_kd.config.codistill_checks import check_codistill
from cascade_kd.config.dataset import in_order, read_definition
from cascade_kd.config.experiment_checks import check_distill, check_expected, check_transfer
from cascade_kd.config.files import ExperimentFile, StageEntry, TeacherEntry
from cascade_kd.config.lines import Document, KeyPath, read_document
from cascade_kd.config.list_checks import check_lists
from cascade_kd.config.objective_checks import check_objectives, completed
from cascade_kd.config.problems import Fault, salvage
from cascade_kd.config.sources import (
    Layer,
    Override,
    OverrideLayer,
    Sources,
    apply_override,
    entry_of,
    parse_override,
)
from cascade_kd.config.stage import StageConfig, StageDraft, TeacherConfig, read_stage
from cascade_kd.config.stage_checks import check_stages
from cascade_kd.config.tables import DISTILLERS, OBJECTIVES, DistillConfig
from cascade_kd.config.teacher_checks import check_teachers
from cascade_kd.config.words import choose, listing, show
from cascade_kd.data.definition import DatasetDefinition
from cascade_kd.distill.objectives import AnyObjective
from cascade_kd.errors import ConfigError, Problem, UserError
from cascade_kd.evaluate.settings import EvaluateConfig
from cascade_kd.train.codistill_settings import CodistillConfig
from cascade_kd.train.settings import TransferConfig

Method = TypeVar("Method", bound=BaseModel)
Bands = Mapping[str, Mapping[str, tuple[float, float]]]

_FILL: dict[str, Any] = {"name": "unnamed", "dataset": "unnamed", "stage": [{}]}  # for required keys that are wrong


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """A whole experiment, complete and checked.

    ``dataset`` is a catalogue name or an absolute path. The files that it was read from take no part in ==.
    """

    name: str
    dataset: str
    seeds: tuple[int, ...]
    stages: tuple[StageConfig, ...]
    teachers: tuple[TeacherConfig, ...]
    distill: tuple[DistillConfig, ...]
    objectives: tuple[AnyObjective, ...]
    transfer: TransferConfig | None
    codistill: CodistillConfig | None
    evaluate: EvaluateConfig
    expected: Bands
    rounds: int
    init_from: str | None
    deterministic: bool
    definition: DatasetDefinition
    dataset_file: Path = field(compare=False)
    file: Path = field(compare=False)

    def stage(self, name: str) -> StageConfig:
        """The stage of that name."""
        return next(stage for stage in self.stages if stage.name == name)


def load_experiment(
    path_or_name: str | Path, *, overrides: Sequence[str] = (), without_distill: bool = False
) -> ExperimentConfig:
    """Read an experiment, the stage files and the data-set file it names, and check all of it.

    ``overrides`` are ``KEY=VALUE`` as of ``--set``, applied before validation, later ones over earlier ones.
    ``without_distill`` leaves out distillers and objectives, and the expected bands, which are those of the distilled
    run.
    Raises ConfigError with all problems of all files, UserError where there is no such file or name.
    """
    document = read_document(catalogue.resolve("experiments", str(path_or_name)))
    problems: list[Problem] = []
    data = deepcopy(document.data)
    layers, of_entries = _apply_overrides(data, overrides, problems)
    sources = Sources((*layers, Layer(document.shown, data if not layers else document.data, document.lines)))

    head, faults = salvage(ExperimentFile, data, fill=_FILL)
    assert head is not None, "every required key has a stand-in"
    problems += [sources.problem(fault) for fault in faults]
    dataset, definition, dataset_file = _read_dataset(data, document, sources, problems)
    drafts = _read_stages(data, document, of_entries, problems, StageEntry)
    teachers = _read_stages(data, document, of_entries, problems, TeacherEntry)
    pairs = _read_methods("distill", DISTILLERS, "distiller", data, sources, problems)
    objectives = _read_methods("objective", OBJECTIVES, "objective", data, sources, problems)

    def place(path: KeyPath, message: str) -> Problem:
        return sources.problem(Fault(path, message))

    problems += check_stages(drafts, definition)
    problems += check_teachers(teachers, drafts, definition)
    problems += check_distill(pairs, drafts, teachers, head.init_from, place)
    problems += check_lists(pairs, drafts, teachers, definition, place)
    problems += check_objectives(objectives, pairs, drafts, teachers, definition, head.init_from, place)
    problems += check_transfer(head, pairs, teachers, definition, place)
    problems += check_codistill(head, pairs, objectives, drafts, definition, place)
    problems += check_expected(head, drafts, place)
    if problems:
        raise ConfigError(in_order(problems))
    assert definition is not None
    assert dataset_file is not None
    stages = tuple(draft.config() for draft in drafts)
    return ExperimentConfig(
        name=head.name,
        dataset=dataset,
        seeds=head.seeds,
        stages=stages,
        teachers=() if without_distill else tuple(draft.teacher() for draft in teachers),
        distill=() if without_distill else tuple(pairs.values()),
        objectives=() if without_distill else tuple(completed(o, stages) for o in objectives.values()),
        transfer=None if without_distill else head.transfer,
        codistill=None if without_distill else head.codistill,
        evaluate=head.evaluate,
        expected={} if without_distill else _bands(head),
        rounds=head.rounds,
        init_from=head.init_from,
        deterministic=head.deterministic,
        definition=definition,
        dataset_file=dataset_file,
        file=document.path.resolve(),
    )


def _bands(head: ExperimentFile) -> Bands:
    return {name: {metric: (band[0], band[1]) for metric, band in of.items()} for name, of in head.expected.items()}


def _apply_overrides(
    data: dict[str, Any], texts: Sequence[str], problems: list[Problem]
) -> tuple[list[OverrideLayer], dict[tuple[str, int], list[Override]]]:
    """Set the overrides in ``data``, but for those of stages and teachers, which wait for their files.

    Those are returned by table and number.
    """
    layers: list[OverrideLayer] = []
    of_entries: dict[tuple[str, int], list[Override]] = {}
    for text in texts:
        override = parse_override(text)
        if isinstance(override, Problem):
            problems.append(override)
        elif override.path[0] in ("stage", "teacher"):
            table = str(override.path[0])
            entries = _tables(data.get(table))
            number = entry_of(override, [str(entry.get("name", "")) for entry in entries.values()])
            if isinstance(number, Problem):
                problems.append(number)
            else:
                of_entries.setdefault((table, list(entries)[number]), []).append(override)
        else:
            layer = apply_override(data, override, override.path)
            if isinstance(layer, Problem):
                problems.append(layer)
            else:
                layers.insert(0, layer)
    return layers, of_entries


def _tables(values: object) -> dict[int, dict[str, Any]]:
    """The entries of a list of tables that are tables, by number."""
    entries = values if isinstance(values, list) else []
    return {number: entry for number, entry in enumerate(entries) if isinstance(entry, dict)}


def _read_dataset(
    data: Mapping[str, Any], document: Document, sources: Sources, problems: list[Problem]
) -> tuple[str, DatasetDefinition | None, Path | None]:
    """``dataset`` as a name or an absolute path, its definition and its file; None where something is wrong."""
    written = data.get("dataset")
    if not isinstance(written, str):
        return "", None, None
    try:
        path = catalogue.resolve("datasets", written, beside=document.path.parent)
        definition, path = read_definition(path)
    except ConfigError as error:
        problems += error.problems
        return "", None, None
    except UserError as error:
        problems.append(sources.problem(Fault(("dataset",), str(error))))
        return "", None, None
    return (str(path) if written.endswith(".toml") else written), definition, path


def _read_stages(
    data: Mapping[str, Any],
    document: Document,
    overrides: Mapping[tuple[str, int], list[Override]],
    problems: list[Problem],
    kind: type[StageEntry],
) -> list[StageDraft]:
    """The entries of ``[[stage]]``, or of ``[[teacher]]``, each with the file it uses."""
    table = "stage" if kind is StageEntry else "teacher"
    drafts: list[StageDraft] = []
    for number, entry in _tables(data.get(table)).items():
        draft, found = read_stage(number, entry, document, overrides.get((table, number), ()), kind)
        drafts.append(draft)
        problems += found
    return drafts


def _read_methods(
    table: str,
    models: Mapping[str, type[Method]],
    what: str,
    data: Mapping[str, Any],
    sources: Sources,
    problems: list[Problem],
) -> dict[int, Method]:
    """The entries of ``table`` that can be read, each by the model of its method, by number."""
    found: dict[int, Method] = {}
    for number, entry in _tables(data.get(table)).items():
        at: KeyPath = (table, number)
        method = entry.get("method")
        model = models.get(method) if isinstance(method, str) else None
        if model is None:
            message = f"no {what} {show(method)} in this version{choose(str(method), models)}"
            if "method" not in entry:
                message = f"required key is missing: the {what}; there are: {listing(models)}"
            problems.append(sources.problem(Fault((*at, "method"), message, "method" not in entry)))
            continue
        read, faults = salvage(model, entry)
        problems += [sources.problem(Fault((*at, *fault.path), fault.message, fault.missing)) for fault in faults]
        if read is not None:
            found[number] = read
    return found

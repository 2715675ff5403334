"""What must hold for the ``[[objective]]`` tables of an experiment, and what they leave to it.

Each check is a generator of problems over drafts, in which keys that are wrong by themselves are None; so all that is
wrong is said at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from cascade_kd.config.files import TeacherEntry
from cascade_kd.config.lines import KeyPath
from cascade_kd.config.list_checks import Place, check_kind
from cascade_kd.config.stage import StageConfig, StageDraft
from cascade_kd.config.tables import DistillConfig
from cascade_kd.config.words import choose, listing
from cascade_kd.data.definition import DatasetDefinition
from cascade_kd.distill.objectives import AnyObjective
from cascade_kd.errors import Problem


def completed(objective: AnyObjective, stages: Sequence[StageConfig]) -> AnyObjective:
    """The objective with what it leaves to the stages: whose order, which label, how many truths, which budgets."""
    own = [stage for stage in stages if stage.name in objective.stages]
    found: dict[str, object] = {"budgets": tuple(stage.keep for stage in own)}
    if objective.truth == "label":
        train = own[-1].train
        found["label"] = train.label if train is not None else None
    else:
        found["k"] = stages[-1].keep
        if objective.lists != "log":
            found["teacher"] = stages[-1].name
    missing = {name for name in type(objective).model_fields if getattr(objective, name) is None}
    return objective.model_copy(update={name: value for name, value in found.items() if name in missing})


def check_objectives(
    objectives: Mapping[int, AnyObjective],
    pairs: Mapping[int, DistillConfig],
    drafts: Sequence[StageDraft],
    teachers: Sequence[StageDraft],
    definition: DatasetDefinition | None,
    init_from: str | None,
    place: Place,
) -> Iterator[Problem]:
    """Who is trained together, and on whose order; ``objectives`` by their number in the file."""
    names = [draft.name for draft in drafts]
    taken: dict[str, str] = {}
    for number, objective in objectives.items():
        at: KeyPath = ("objective", number)
        unknown = [name for name in objective.stages if name not in names]
        if unknown:
            yield place((*at, "stages"), f"no stage is named '{unknown[0]}'{choose(unknown[0], names)}")
            continue
        first = names.index(objective.stages[0])
        own = drafts[first : first + len(objective.stages)]
        if tuple(draft.name for draft in own) != objective.stages:
            in_order = sorted(objective.stages, key=names.index)
            message = f"want neighbouring stages in the order of the cascade, {listing(names)}"
            yield place((*at, "stages"), f"{message}; got {listing(objective.stages)}, where that order is {in_order}")
            continue
        for draft in own:
            yield from _check_stage(draft, objective, pairs, taken, (*at, "stages"), place)
        if init_from is not None:
            message = "stages of an objective are trained from scratch and cannot continue the run that init_from names"
            yield place((*at, "stages"), f"{message}; leave init_from out, or the objective")
        yield from _check_truth(objective, drafts, teachers, definition, at, place)
        if definition is not None:
            yield from _check_lists(objective, drafts, teachers, definition, at, place)


def _check_stage(
    draft: StageDraft,
    objective: AnyObjective,
    pairs: Mapping[int, DistillConfig],
    taken: dict[str, str],
    at: KeyPath,
    place: Place,
) -> Iterator[Problem]:
    """The library trains the stage, and nothing else says in which steps."""
    if draft.kind is not None and not draft.kind.is_model:
        message = f"stage '{draft.name}' of type '{draft.keys.type}' is not trained by the library"
        yield place(at, f"{message} and has no part in an objective; leave it out")
    if draft.name in taken:
        message = f"stage '{draft.name}' is trained by '{taken[draft.name]}' already"
        yield place(at, f"{message}; a stage has one objective, of two or more stages")
    taken[draft.name] = objective.name
    if any(pair.mode == "joint" and pair.student == draft.name for pair in pairs.values()):
        message = f"stage '{draft.name}' is trained in the steps of a joint teacher already"
        yield place(at, f'{message}; want mode = "offline" there, or leave the stage out')


def _check_truth(
    objective: AnyObjective,
    drafts: Sequence[StageDraft],
    teachers: Sequence[StageDraft],
    definition: DatasetDefinition | None,
    at: KeyPath,
    place: Place,
) -> Iterator[Problem]:
    """Somebody says what the truth is."""
    if objective.label is not None and definition is not None and objective.label not in definition.labels:
        message = f"data set '{definition.name}' has no label '{objective.label}'"
        yield place((*at, "label"), f"{message}{choose(objective.label, definition.labels)}")
    if objective.truth == "label" or objective.lists == "log":
        return
    everyone = [draft.name for draft in (*drafts, *teachers)]
    if objective.teacher is None and drafts[-1].name in objective.stages:
        message = f"the last stage '{drafts[-1].name}' is trained here, and no other orders the lists"
        remedy = f'want teacher = "{drafts[-1].name}" (of the round before) or a [[teacher]]'
        other = "" if objective.ordered else ', or truth = "label"'
        yield place((*at, "truth"), f"{message}; {remedy}{other}")
    elif objective.teacher is not None and objective.teacher not in everyone:
        message = f"no stage or teacher is named '{objective.teacher}'"
        yield place((*at, "teacher"), f"{message}{choose(objective.teacher, everyone)}")


def _check_lists(
    objective: AnyObjective,
    drafts: Sequence[StageDraft],
    teachers: Sequence[StageDraft],
    definition: DatasetDefinition,
    at: KeyPath,
    place: Place,
) -> Iterator[Problem]:
    """There is something to order, and the teacher can order it."""
    first = next(draft for draft in drafts if draft.name == objective.student)
    alone = first is drafts[0] or first.keys.level == "recall"
    kind = objective.kind(has_requests=definition.roles.request is not None, alone=alone)
    if objective.truth == "label" and definition.roles.request is None:
        message = f"data set '{definition.name}' has no requests, whose rows could be true and false"
        yield place((*at, "truth"), f'{message}; name their column as [roles] request, or want truth = "top"')
        return
    yield from check_kind(objective.student, kind, first is drafts[0], definition, (*at, "lists"), place)
    if objective.approximate and kind != "catalogue":
        message = f"only a catalogue is ordered approximately, and these lists are of '{kind}'"
        yield place((*at, "approximate"), f'{message}; leave the key out, or want lists = "catalogue"')
    columns = {d.name for d in teachers if isinstance(d.keys, TeacherEntry) and d.keys.column is not None}
    if objective.teacher in columns and kind != "requests":
        message = f"'{objective.teacher}' is a column of scores of logged events and orders nothing else"
        yield place((*at, "lists"), f'{message}; want lists = "requests"')

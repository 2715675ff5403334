"""What must hold for the ``[[teacher]]`` tables of an experiment.

Each check is a generator of problems over drafts, in which keys that are wrong by themselves are None; so all that is
wrong is said at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cascade_kd.config.files import TeacherEntry
from cascade_kd.config.stage import NOT_A_TEACHERS, StageDraft, stands_in
from cascade_kd.config.stage_checks import check_features, check_training
from cascade_kd.config.words import choose
from cascade_kd.data.definition import DatasetDefinition
from cascade_kd.errors import Problem
from cascade_kd.train.settings import TrainConfig

OF_A_MODEL = ("type", "level", "model", "train", "use", "copies")


def check_teachers(
    teachers: Sequence[StageDraft], stages: Sequence[StageDraft], definition: DatasetDefinition | None
) -> Iterator[Problem]:
    """Names, what each is made of, and the training of those that are models; one may teach nobody."""
    names = {stage.name.lower(): f"stage '{stage.name}'" for stage in stages if stage.keys.name}
    for draft in teachers:
        keys = draft.keys
        assert isinstance(keys, TeacherEntry)
        if keys.name and draft.name.lower() in names:
            message = f"{names[draft.name.lower()]} has this name too; names of stages and teachers must differ"
            yield draft.problem(("name",), message)
        names.setdefault(draft.name.lower(), f"teacher '{draft.name}'")
        for key in sorted(keys.model_fields_set & set(NOT_A_TEACHERS)):
            yield draft.problem((key,), "a teacher is neither served nor taught; leave the key out")
        if stands_in(keys):
            yield from _check_stand_in(draft, keys, teachers, stages, definition)
            continue
        if keys.train is not None and len(stages) == 1:
            yield from _check_receives_nothing(draft, keys.train)
        yield from check_training(draft, definition)
        if definition is not None:
            yield from check_features(draft, definition)


def _check_receives_nothing(draft: StageDraft, train: TrainConfig) -> Iterator[Problem]:
    """Beside a single stage there are no lists to draw from, or to be monitored by without user and item vectors."""
    if any(source.source == "upstream" for source in train.samples):
        message = "'upstream' samples of a teacher are drawn from what the last stage receives, and it is the first"
        yield draft.problem(("train", "samples"), f"{message}; want 'uniform' or another source")
    tower = draft.kind is None or draft.kind.is_tower
    if train.monitor.startswith("recall@") and not tower:
        message = f"type '{draft.keys.type}' takes recall@K over what the last stage receives, and it is the first"
        yield draft.problem(("train", "monitor"), f"{message}; want 'auc' or 'logloss'")


def _check_stand_in(
    draft: StageDraft,
    keys: TeacherEntry,
    teachers: Sequence[StageDraft],
    stages: Sequence[StageDraft],
    definition: DatasetDefinition | None,
) -> Iterator[Problem]:
    """An ensemble names models, a column of scores is in the data set; neither has keys of a model."""
    what = "members" if keys.members else "column"
    others = {"members", "column"} - {what}
    for key in sorted(keys.model_fields_set & {*OF_A_MODEL, *others}):
        yield draft.problem((key,), f"a teacher of `{what}` has no `{key}`; leave one of the two out")
    options = {other.name: other for other in (*stages, *teachers) if other is not draft and not stands_in(other.keys)}
    for number, member in enumerate(keys.members):
        at = ("members", number)
        if member not in options:
            yield draft.problem(at, f"no stage or teacher with a model is named '{member}'{choose(member, options)}")
        elif (kind := options[member].kind) is not None and "logits" not in kind.signals:
            yield draft.problem(at, f"'{member}' gives no logits to take the mean of; leave it out")
    if keys.column is not None and definition is not None:
        numbers = [f.name for f in definition.feature if f.kind == "numeric" and f.transform == "none"]
        if keys.column not in numbers:
            message = f"data set '{definition.name}' has no numeric feature '{keys.column}' with transform = \"none\""
            yield draft.problem(("column",), f"{message}{choose(keys.column, numbers)}")

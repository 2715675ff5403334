"""What must hold between distillers, stages and expected bands.

Each check is a generator of problems over drafts, in which keys that are wrong by themselves are None; so all that is
wrong is said at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from cascade_kd.config.files import ExperimentFile, TeacherEntry
from cascade_kd.config.list_checks import Place
from cascade_kd.config.stage import StageDraft, stands_in
from cascade_kd.config.tables import DistillConfig
from cascade_kd.config.words import choose, listing
from cascade_kd.data.definition import DatasetDefinition
from cascade_kd.distill.settings import HiddenDistillConfig
from cascade_kd.errors import Problem

ROW_METRICS = ("auc", "gauc", "logloss", "ece")
LIST_METRICS = ("recall", "ndcg")  # each at a k


def check_distill(
    pairs: Mapping[int, DistillConfig],
    drafts: Sequence[StageDraft],
    teachers: Sequence[StageDraft],
    init_from: str | None,
    place: Place,
) -> Iterator[Problem]:
    """Who may teach whom; ``pairs`` by their number in the file."""
    stages = {draft.name: draft for draft in drafts if draft.keys.name}
    everyone = stages | {draft.name: draft for draft in teachers if draft.keys.name}
    taught: dict[str, list[str]] = {}  # teacher -> students, offline pairs only
    seen: set[str] = set()
    for number, pair in pairs.items():
        at = ("distill", number)
        if pair.teacher not in everyone:
            hint = choose(pair.teacher, everyone)
            yield place((*at, "teacher"), f"no stage or teacher is named '{pair.teacher}'{hint}")
        if pair.student not in stages:
            yield place((*at, "student"), f"no stage is named '{pair.student}'{choose(pair.student, stages)}")
        if pair.teacher == pair.student:
            yield place((*at, "student"), f"'{pair.student}' cannot teach itself; teacher and student must differ")
            continue
        yield from _check_signals(pair, everyone, at, place)
        if pair.name in seen:
            message = f"'{pair.teacher}' teaches '{pair.student}' by '{pair.method}' twice; give each pair one entry"
            yield place((*at, "method"), f"{message} a mode")
        seen.add(pair.name)
        if pair.mode == "joint":
            if init_from is not None:
                message = "a joint pair is trained from scratch and cannot continue the run that init_from names"
                yield place((*at, "mode"), f'{message}; want mode = "offline", or leave init_from out')
            yield from _check_joint(pair, everyone, pairs, at, place)
            continue
        way_back = _way(taught, pair.student, pair.teacher)
        if way_back:
            ring = " -> ".join([pair.teacher, *way_back])
            yield place(
                (*at, "student"),
                f"the offline pairs form a ring: {ring}; a teacher must be complete before its student. Take one pair "
                'out and let it teach in another round, or train the pair together with mode = "joint"',
            )
        else:
            taught.setdefault(pair.teacher, []).append(pair.student)
    yield from _check_rest(pairs, drafts)


def _check_joint(
    pair: DistillConfig,
    everyone: Mapping[str, StageDraft],
    pairs: Mapping[int, DistillConfig],
    at: tuple[str, int],
    place: Place,
) -> Iterator[Problem]:
    """A joint teacher is one trained model on the rows of its students, which agree on them."""
    teacher, student = everyone.get(pair.teacher), everyone.get(pair.student)
    if teacher is None or student is None:
        return
    keys = teacher.keys
    if stands_in(keys) or (isinstance(keys, TeacherEntry) and keys.copies > 1):
        yield place((*at, "mode"), f"'{pair.teacher}' is no single model, which a joint step trains; want 'offline'")
    for draft in (teacher, student):
        train = draft.keys.train
        if train is not None and train.loss != "bce":
            message = f"a joint step trains row by row, and the [train] loss of '{draft.name}' is '{train.loss}'"
            yield place((*at, "mode"), f"{message}; want 'bce'")
    rival = next(p.teacher for p in pairs.values() if p.mode == "joint" and p.student == pair.student)
    if rival != pair.teacher:
        message = f"'{pair.student}' is trained together with '{rival}' already; a student has one joint teacher"
        yield place((*at, "teacher"), f'{message}. Let this one teach with mode = "offline"')
    first = next(p for p in pairs.values() if p.mode == "joint" and p.teacher == pair.teacher)
    other = everyone.get(first.student)
    if other is not None and other is not student and other.keys.train is not None and student.keys.train is not None:
        for key in ("label", "samples", "batch_size", "epochs"):
            ours, theirs = getattr(student.keys.train, key), getattr(other.keys.train, key)
            if ours != theirs:
                message = f"'{pair.student}' and '{first.student}' learn from '{pair.teacher}' in one step, on the same"
                yield place((*at, "student"), f"{message} rows; their [train] {key} must be equal")


def check_transfer(
    head: ExperimentFile,
    pairs: Mapping[int, DistillConfig],
    teachers: Sequence[StageDraft],
    definition: DatasetDefinition | None,
    place: Place,
) -> Iterator[Problem]:
    """Somebody labels the rows, and they fit into memory."""
    if head.transfer is None:
        return
    labelling = [pair for pair in pairs.values() if pair.is_cached]
    if not labelling:
        message = 'nobody labels these rows: they need a [[distill]] with method = "logit" and mode = "offline"'
        yield place(("transfer",), f"{message}; add one, or leave [transfer] out")
    columns = {d.name for d in teachers if isinstance(d.keys, TeacherEntry) and d.keys.column is not None}
    for pair in labelling:
        if pair.teacher in columns:
            message = f"'{pair.teacher}' is a column of scores and has none of rows that were not logged"
            yield place(("transfer",), f"{message}; leave [transfer] out, or teach with a model")
    if definition is not None and definition.storage.layout == "stream":
        message = f"data set '{definition.name}' is larger than memory, and a transfer set is kept in memory"
        yield place(("transfer",), f'{message}; want [storage] layout = "memory", or leave [transfer] out')


def check_expected(head: ExperimentFile, drafts: Sequence[StageDraft], place: Place) -> Iterator[Problem]:
    """Bands name stages (or the cascade) and metrics that the run will report."""
    stages = {draft.name: draft for draft in drafts if draft.keys.name}
    for name, bands in head.expected.items():
        if name == "cascade":
            keep = drafts[-1].keys.keep if drafts else None
            plain: tuple[str, ...] = ("found",)
        elif name in stages:
            keep = stages[name].keys.keep
            plain = ROW_METRICS
        else:
            options = [*stages, "cascade"]
            hint = choose(name, options)
            yield place(("expected", name), f"no stage is named '{name}'{hint}")
            continue
        cuts = sorted({*head.evaluate.k, *([keep] if keep else [])})
        for metric in bands:
            why = _unknown_metric(metric, plain, cuts)
            if why:
                yield place(("expected", name, metric), why)


def _unknown_metric(metric: str, plain: Sequence[str], cuts: Sequence[int]) -> str:
    """Why this metric will not be reported, or nothing."""
    if metric in plain:
        return ""
    base, at, k = metric.partition("@")
    if at and base in LIST_METRICS:
        if not re.fullmatch("[1-9][0-9]*", k):
            return f"want {base}@K with a whole number K >= 1"
        if int(k) in cuts:
            return ""
        return f"nothing is counted at {k}; add it to [evaluate] k, or choose one of {', '.join(map(str, cuts))}"
    options = [*plain, *(f"{name}@{k}" for name in LIST_METRICS for k in cuts)]
    return f"no metric '{metric}'{choose(metric, options)}"


def _check_signals(
    pair: DistillConfig, stages: Mapping[str, StageDraft], at: tuple[str, int], place: Place
) -> Iterator[Problem]:
    """The teacher gives what the method needs, and the student's loss has room for it."""
    teacher, student = stages.get(pair.teacher), stages.get(pair.student)
    gives = _signals(teacher)
    lacks = [signal for signal in pair.needs if gives is not None and signal not in gives]
    if teacher is not None and gives is not None and lacks:
        message = f"method '{pair.method}' needs the signal '{lacks[0]}' of its teacher; '{pair.teacher}'"
        of_type = f" of type '{teacher.keys.type}'" if teacher.kind is not None else ""
        yield place((*at, "teacher"), f"{message}{of_type} gives {listing(gives)}")
    if student is None:
        return
    train = student.keys.train
    if train is not None and train.loss not in pair.student_losses:
        message = f"method '{pair.method}' teaches a stage whose [train] loss is {listing(pair.student_losses)}"
        yield place((*at, "student"), f"{message}; '{pair.student}' has '{train.loss}'")
    if train is not None and isinstance(pair, HiddenDistillConfig) and (pair.hint_epochs or 0) >= train.epochs:
        message = (
            f"phase \"hint\" takes {pair.hint_epochs} of the {train.epochs} epochs of '{pair.student}', and no label"
        )
        yield place((*at, "phases"), f"{message} would be learnt; want a smaller hint_epochs, or more [train] epochs")
    if train is not None and pair.is_cached and any(source.source == "hard" for source in train.samples):
        message = (
            f"stage '{pair.student}' draws 'hard' negatives anew every step, so its teacher's scores of them cannot"
        )
        remedy = "leave the source out of its [train] samples; 'uniform', 'popularity' and 'upstream' are drawn once"
        yield place((*at, "student"), f"{message} be kept, as method '{pair.method}' needs; {remedy}")
    if student.kind is not None and not student.kind.is_model:
        message = f"stage '{pair.student}' of type '{student.keys.type}' is not trained by the library"
        yield place((*at, "student"), f"{message} and cannot learn")


def _signals(teacher: StageDraft | None) -> tuple[str, ...] | None:
    """What a teacher can teach with; None where that cannot be told."""
    if teacher is None:
        return None
    keys = teacher.keys
    if isinstance(keys, TeacherEntry) and keys.scores == "rank":
        return ("ranking",)
    if stands_in(keys) or (isinstance(keys, TeacherEntry) and keys.copies > 1):
        return ("logits", "ranking")
    return teacher.kind.signals if teacher.kind is not None else None


def _check_rest(pairs: Mapping[int, DistillConfig], drafts: Sequence[StageDraft]) -> Iterator[Problem]:
    """``label_weight = "rest"`` leaves a weight that is not negative."""
    for draft in drafts:
        weights = [max(p.weight, p.end_weight or 0.0) for p in pairs.values() if p.student == draft.name]
        if draft.keys.label_weight == "rest" and sum(weights) > 1 + 1e-9:
            message = f"\"rest\" is 1 minus the weights of the distillers of '{draft.name}', which sum to"
            yield draft.problem(("label_weight",), f"{message} {sum(weights):g}; they must not exceed 1")


def _way(graph: Mapping[str, Sequence[str]], start: str, goal: str) -> list[str]:
    """A path from start to goal along the edges, both included; empty if there is none."""
    paths = [[start]]
    seen = {start}
    while paths:
        path = paths.pop(0)
        if path[-1] == goal:
            return path
        fresh = [node for node in graph.get(path[-1], ()) if node not in seen]
        seen.update(fresh)
        paths += [[*path, node] for node in fresh]
    return []

"""What must hold for distillers on lists: there is something to order, and the teacher can order it.

Each check is a generator of problems over drafts, in which keys that are wrong by themselves are None; so all that is
wrong is said at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from cascade_kd.config.files import TeacherEntry
from cascade_kd.config.lines import KeyPath
from cascade_kd.config.stage import StageDraft
from cascade_kd.config.tables import DistillConfig
from cascade_kd.config.words import listing
from cascade_kd.data.definition import DatasetDefinition
from cascade_kd.distill.order_settings import TopKConfig
from cascade_kd.distill.pair import ListsConfig
from cascade_kd.errors import Problem

Place = Callable[[KeyPath, str], Problem]  # a key of the experiment and what is wrong with it
LIST_KEYS = ("lists", "depth", "lists_per_step", "approximate")
LISTWISE = ("kl", "prob-mse", "clid")  # losses of method "logit" that have a form over lists


def check_lists(
    pairs: Mapping[int, DistillConfig],
    drafts: Sequence[StageDraft],
    teachers: Sequence[StageDraft],
    definition: DatasetDefinition | None,
    place: Place,
) -> Iterator[Problem]:
    """The tables of methods on lists; ``pairs`` by their number in the file."""
    names = [draft.name for draft in drafts]
    columns = {d.name for d in teachers if isinstance(d.keys, TeacherEntry) and d.keys.column is not None}
    for number, pair in pairs.items():
        if not isinstance(pair, ListsConfig):
            continue
        at: KeyPath = ("distill", number)
        if pair.method == "logit" and pair.lists is not None and pair.loss not in LISTWISE:
            message = f'loss = "{pair.loss}" works row by row and takes no lists; leave them out'
            yield place((*at, "lists"), f"{message}, or choose one of {listing(LISTWISE)}")
            continue
        if not pair.on_lists:
            for key in LIST_KEYS:
                if getattr(pair, key) == type(pair).model_fields[key].default:
                    continue
                message = f'loss = "{getattr(pair, "loss", "")}" without `lists` works row by row and has no'
                yield place((*at, key), f"{message} {key}; leave it out, or add lists")
            continue
        if pair.mode == "joint":
            message = "lists are ordered by a teacher that is complete"
            yield place((*at, "mode"), f'{message}; want mode = "offline"')
        if getattr(pair, "head", "served") != "served":
            yield place((*at, "head"), "lists teach the served head; leave head and layer out")
        if definition is None or pair.student not in names:
            continue
        student = drafts[names.index(pair.student)]
        alone = student is drafts[0] or student.keys.level == "recall"
        kind = pair.kind(has_requests=definition.roles.request is not None, alone=alone)
        yield from check_kind(pair.student, kind, student is drafts[0], definition, (*at, "lists"), place)
        if pair.approximate and kind != "catalogue":
            message = f"only a catalogue is ordered approximately, and these lists are of '{kind}'"
            yield place((*at, "approximate"), f'{message}; leave the key out, or want lists = "catalogue"')
        if pair.teacher in columns and kind != "requests":
            message = f"'{pair.teacher}' is a column of scores of logged events and orders nothing else"
            yield place((*at, "lists"), f'{message}; want lists = "requests"')
        if kind == "log" and ("logits" in pair.needs or (isinstance(pair, TopKConfig) and pair.reads_scores)):
            message = "the log holds an order and no scores, which this method reads"
            yield place((*at, "lists"), f'{message}; want lists = "requests", or a method on the order alone')


def check_kind(
    student: str, kind: str, first: bool, definition: DatasetDefinition, at: KeyPath, place: Place
) -> Iterator[Problem]:
    """The data set and the cascade have what the lists before ``student`` are made of; ``first`` it is the first."""
    if kind in ("requests", "log") and definition.roles.request is None:
        message = f"data set '{definition.name}' has no requests to take lists from"
        yield place(at, f'{message}; name their column as [roles] request, or want "upstream" or "catalogue"')
    elif kind == "log" and definition.roles.position is None:
        message = f"data set '{definition.name}' does not say where an item was shown"
        yield place(at, f'{message}; name the column as [roles] position, or want "requests"')
    if kind == "upstream" and first:
        message = f"no stage stands before '{student}' that could hand lists on"
        yield place(at, f'{message}; want lists = "catalogue"')
    if definition.storage.layout == "stream":
        message = f"data set '{definition.name}' is larger than memory, and lists are made of a log in memory"
        yield place(at, f'{message}; want [storage] layout = "memory", or a method that works row by row')

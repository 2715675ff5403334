"""What must hold between the keys of a stage, the stages of a cascade and the data set.

Each check is a generator of problems over drafts, in which keys that are wrong by themselves are None; so all that is
wrong is said at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cascade_kd.config.files import TeacherEntry
from cascade_kd.config.lines import KeyPath
from cascade_kd.config.stage import StageDraft
from cascade_kd.config.tables import SIDES
from cascade_kd.config.words import choose, listing
from cascade_kd.data.definition import DatasetDefinition
from cascade_kd.errors import Problem
from cascade_kd.models.settings import HistoryConfig
from cascade_kd.train.settings import BY_VECTORS, DRAW, ON_POSITIVES, TrainConfig, other_monitor
from cascade_kd.types import ITEM_ID, LEVELS, USER_ID, Level, Side


def check_stages(drafts: Sequence[StageDraft], definition: DatasetDefinition | None) -> Iterator[Problem]:
    """Names, levels, budgets, types, features and training of all stages; ``definition`` None skips the data set."""
    before: list[StageDraft] = []
    for draft in drafts:
        names = {other.name.lower(): other for other in before}
        if draft.keys.name and draft.name.lower() in names:
            clash = names[draft.name.lower()].name
            alike = "" if clash == draft.name else f" (in upper and lower case: '{clash}')"
            yield draft.problem(("name",), f"two stages are named '{draft.name}'{alike}; names must differ")
        yield from _check_order(draft, before)
        yield from _check_type(draft)
        yield from check_training(draft, definition)
        if definition is not None:
            yield from check_features(draft, definition)
        before.append(draft)


def _check_order(draft: StageDraft, before: Sequence[StageDraft]) -> Iterator[Problem]:
    """Levels do not go backwards, only the first stage retrieves, budgets do not grow."""
    level, keep = draft.keys.level, draft.keys.keep
    if level and not before and level != "recall":
        message = "the first stage draws on the whole catalogue and must be of level 'recall'"
        yield draft.problem(("level",), f"{message}, got '{level}'")
    if draft.keys.upstream_weight and not before:
        yield draft.problem(("upstream_weight",), "the first stage receives no scores to add; leave it out")
    if level == "recall" and before:
        message = "only the first stage is of level 'recall'; this one scores what stage"
        yield draft.problem(("level",), f"{message} '{before[-1].name}' hands on; want 'prerank' or 'rank'")
    elif level and before:
        latest = max(before, key=lambda other: _depth(other.keys.level))
        if _depth(latest.keys.level) > _depth(level):
            message = f"level '{level}' comes after '{latest.keys.level}' of stage '{latest.name}'"
            yield draft.problem(("level",), f"{message}; levels must not go backwards")
    budgets = [other for other in before if other.keys.keep is not None]
    if keep is not None and budgets and keep > (budgets[-1].keys.keep or 0):
        message = f"keeps {keep}, more than the {budgets[-1].keys.keep} that stage '{budgets[-1].name}' hands on"
        yield draft.problem(("keep",), f"{message}; budgets must not grow along the cascade")


def _depth(level: Level | None) -> int:
    return LEVELS.index(level) if level else -1


def _is_first(draft: StageDraft) -> bool:
    """Whether nothing is handed on to it; a teacher is given what the last stage receives."""
    return draft.place == 0 and not isinstance(draft.keys, TeacherEntry)


def _check_type(draft: StageDraft) -> Iterator[Problem]:
    """The type serves the level, and an index stands where something retrieves."""
    keys, kind = draft.keys, draft.kind
    if keys.level and kind is not None:
        if keys.level not in kind.levels:
            message = f"type '{keys.type}' does not serve level '{keys.level}'; it serves {listing(kind.levels)}"
            yield draft.problem(("type",), message)
        elif keys.level == "recall" and kind.is_model and not kind.is_tower:
            message = f"a model of level 'recall' needs user_vectors and item_vectors, which '{keys.type}' lacks"
            yield draft.problem(("type",), f"{message}; choose 'two-tower'")
    if keys.index is not None and keys.level not in (None, "recall"):
        message = f"only a stage of level 'recall' has an index, this one is of level '{keys.level}'; leave it out"
        yield draft.problem(("index",), message)


def check_training(draft: StageDraft, definition: DatasetDefinition | None) -> Iterator[Problem]:
    """Label, loss, samples and monitor fit the data set, the type and the place in the cascade."""
    train, kind = draft.keys.train, draft.kind
    if train is None:
        return
    if definition is not None and train.label not in definition.labels:
        hint = choose(train.label, definition.labels)
        yield draft.problem(("train", "label"), f"data set '{definition.name}' has no label '{train.label}'{hint}")
    yield from _check_samples(draft, train)
    yield from _check_shards(draft, train)
    if kind is not None and not kind.is_model:
        message = f"type '{draft.keys.type}' is no torch module, so the library does not train it; leave [train] out"
        yield draft.problem(("train",), message)
        return
    if definition is not None:
        yield from _check_one_class(draft, train, definition)
    yield from _check_auxiliary(draft, train, definition)
    if train.sequences:
        yield from _check_sequences(draft, train, definition)
    tower = kind is None or kind.is_tower
    if train.loss in BY_VECTORS and not tower:
        message = f"loss '{train.loss}' needs user and item vectors, which type '{draft.keys.type}' lacks"
        yield draft.problem(("train", "loss"), f"{message}; want 'bce' or 'bpr'")
    if train.loss != "bce" and train.monitor == "logloss":
        message = f"loss '{train.loss}' gives no probabilities, so logloss is no monitor; want 'auc' or 'recall@K'"
        yield draft.problem(("train", "monitor"), message)
    if train.monitor.startswith("recall@") and _is_first(draft) and not tower and train.loss not in BY_VECTORS:
        message = "a first stage takes recall@K over the whole catalogue by user and item vectors"
        yield draft.problem(
            ("train", "monitor"), f"{message}, which type '{draft.keys.type}' lacks; want 'auc' or 'logloss'"
        )


def _check_auxiliary(draft: StageDraft, train: TrainConfig, definition: DatasetDefinition | None) -> Iterator[Problem]:
    """Auxiliary labels of a model are labels of the set, and other ones than the stage's own."""
    for label in getattr(draft.model, "auxiliary", {}):
        at: KeyPath = ("model", "auxiliary", label)
        if definition is not None and label not in definition.labels:
            hint = choose(label, definition.labels)
            yield draft.problem(at, f"data set '{definition.name}' has no label '{label}'{hint}")
        elif label == train.label:
            message = f"'{label}' is the stage's own label, which [train] names; leave it out, or name another"
            yield draft.problem(at, message)
        if train.loss != "bce":
            yield draft.problem(at, f"auxiliary labels are learnt row by row, and loss is '{train.loss}'; want 'bce'")


def _check_sequences(draft: StageDraft, train: TrainConfig, definition: DatasetDefinition | None) -> Iterator[Problem]:
    """Training along histories: positives, a model that reads a history in one pass, and one history to read."""
    keys, kind = draft.keys, draft.kind
    at: KeyPath = ("train", "sequences")
    if train.loss == "bce":
        message = "sequences trains on the events whose label is true, and loss is 'bce'"
        yield draft.problem(at, f"{message}; want {listing(ON_POSITIVES)}, or leave sequences out")
    for number, source in enumerate(train.samples):
        if source.source == "hard":
            message = "'hard' negatives are chosen by a pass over the history of every event, which sequences saves"
            yield draft.problem(("train", "samples", number, "from"), f"{message}; want 'uniform' or 'popularity'")
    if kind is not None and not kind.has_sequences:
        message = f"sequences needs a model that reads a history in one pass, which type '{keys.type}' does not"
        yield draft.problem(at, f"{message}; want type 'two-tower', or leave sequences out")
        return
    history = getattr(draft.model, "history", None)
    if isinstance(history, HistoryConfig) and not history.causal:
        message = f"kind '{history.kind}' does not encode all beginnings of a history in one pass, as sequences needs"
        yield draft.problem(("model", "history", "kind"), f"{message}; want 'last' or 'transformer'")
    if definition is None:
        return
    if definition.storage.layout == "stream":
        message = f"data set '{definition.name}' of layout 'stream' is read event by event"
        yield draft.problem(at, f"{message}; leave sequences out")
    histories = [f.name for f in definition.feature if f.kind == "history"]
    seen = [
        f.name
        for f in definition.feature
        if f.kind == "history"
        and (keys.features == "all" or f.name in keys.features)
        and (keys.level is None or _depth(f.available) <= _depth(keys.level))
    ]
    if len(seen) != 1:
        message = f"sequences trains along the one history of a stage's features, and they hold {listing(seen)}"
        there = f"list one of {', '.join(histories)}" if histories else "the data set has none"
        yield draft.problem(("features",), f"{message}; {there}, or leave sequences out")


def _check_shards(draft: StageDraft, train: TrainConfig) -> Iterator[Problem]:
    """Tables that are shared out are updated row by row, and looked up by all ranks alike."""
    if train.shard_rows is None:
        return
    at = ("train", "shard_rows")
    if train.embedding_optimizer == "same":
        message = "tables are shared out where single rows are updated, and embedding_optimizer is 'same'"
        yield draft.problem(at, f"{message}; want 'sparse-adam', 'sparse-adagrad' or 'rowwise-adagrad'")
    if any(source.source == "hard" for source in train.samples):
        message = "every rank looks as many 'hard' negatives up as it has positives, and tables that are shared out"
        yield draft.problem(at, f"{message} are looked up by all ranks alike; leave one of the two out")


def _check_samples(draft: StageDraft, train: TrainConfig) -> Iterator[Problem]:
    """Every source of rows fits the loss and the place in the cascade."""
    on_rows = train.loss == "bce"
    pairs = train.loss == "bpr" and draft.kind is not None and not draft.kind.is_tower
    by_rows = f"loss '{train.loss}' of a model without vectors" if pairs else f"loss '{train.loss}'"
    for number, source in enumerate(train.samples):
        at: KeyPath = ("train", "samples", number)
        if source.source == "upstream" and _is_first(draft):
            want = "'impressions' or 'uniform'" if on_rows else "'in-batch' or 'uniform'"
            message = f"the first stage has no stage before it to take samples from; want {want}"
            yield draft.problem((*at, "from"), message)
        elif source.source == "impressions" and not on_rows:
            message = f"loss '{train.loss}' trains on the events whose label is true and takes no 'impressions' samples"
            yield draft.problem((*at, "from"), f"{message}; want 'in-batch', 'uniform' or another source of negatives")
        elif source.source == "in-batch" and (on_rows or pairs):
            message = f"{by_rows} scores row by row and takes no 'in-batch' negatives"
            yield draft.problem((*at, "from"), f"{message}; want 'uniform', or loss = \"sampled-softmax\"")
        if source.per_batch and (on_rows or pairs):
            message = f"{by_rows} scores row by row, so its draws are a positive event's own"
            yield draft.problem((*at, "per_batch"), f"{message}; want per_positive")
        if not on_rows and source.weight != 1:
            message = f"the negatives of loss '{train.loss}' have no weight, got {source.weight:g}"
            yield draft.problem((*at, "weight"), f"{message}; leave it out, and draw more or fewer")


def _check_one_class(draft: StageDraft, train: TrainConfig, definition: DatasetDefinition) -> Iterator[Problem]:
    """A label that is always true, as in a set of implicit feedback, leaves something to tell apart."""
    if definition.labels.get(train.label, "").strip().lower() != "true":
        return
    label = f"label '{train.label}' of data set '{definition.name}' is true for every event"
    if train.lacks_negatives:
        yield draft.problem(("train", "samples"), f"{label}, so there is no negative row to learn from; {DRAW}")
    if train.monitor == "auc":
        recall = draft.kind is None or draft.kind.is_tower or not _is_first(draft)
        yield draft.problem(("train", "monitor"), f"{label}, so auc is not defined; {other_monitor(recall=recall)}")


def check_features(draft: StageDraft, definition: DatasetDefinition) -> Iterator[Problem]:
    """Listed features exist, are online at the level and of a side that the type sees; no tower is left empty."""
    level, listed = draft.keys.level, draft.keys.features
    sides = draft.kind.sides if draft.kind is not None else SIDES
    known: dict[str, tuple[Level, Side]] = {USER_ID: ("recall", "user"), ITEM_ID: ("recall", "item")}
    known |= {feature.name: (feature.available, feature.side) for feature in definition.feature}
    names = list(known) if listed == "all" else list(listed)
    seen: dict[str, Side] = {}
    for number, name in enumerate(names):
        at: KeyPath = ("features",) if listed == "all" else ("features", number)
        if name not in known:
            hint = choose(name, known)
            yield draft.problem(at, f"data set '{definition.name}' has no feature '{name}'{hint}")
            continue
        available, side = known[name]
        if level and _depth(available) > _depth(level):
            if listed != "all":
                message = f"feature '{name}' is available at '{available}', later than this stage's level '{level}'"
                yield draft.problem(at, f"{message}; it is privileged: only a teacher may see it")
            continue
        if level:
            seen[name] = side
        if side not in sides and listed != "all":
            message = f"feature '{name}' is of side '{side}', and type '{draft.keys.type}' sees {listing(sides)} only"
            yield draft.problem(at, f"{message}; leave it out, or choose another type")
    if level and draft.kind is not None and draft.kind.is_tower:
        for tower, fitting in (("user", ("user", "context")), ("item", ("item",))):
            if not any(side in fitting for side in seen.values()):
                message = f"the {tower} tower has nothing to see: list a feature of side '{tower}'"
                yield draft.problem(("features",), f"{message}, such as '{tower}_id'")

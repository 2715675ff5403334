"""What must hold for the ``[codistill]`` table of an experiment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from cascade_kd.config.files import ExperimentFile
from cascade_kd.config.list_checks import Place
from cascade_kd.config.stage import StageDraft
from cascade_kd.config.tables import DistillConfig
from cascade_kd.config.words import choose
from cascade_kd.data.definition import DatasetDefinition
from cascade_kd.distill.objectives import AnyObjective
from cascade_kd.errors import Problem


def check_codistill(
    head: ExperimentFile,
    pairs: Mapping[int, DistillConfig],
    objectives: Mapping[int, AnyObjective],
    drafts: Sequence[StageDraft],
    definition: DatasetDefinition | None,
    place: Place,
) -> Iterator[Problem]:
    """The stage is a trained model of probabilities, whom nobody else teaches, and its rows can be shared out."""
    config = head.codistill
    if config is None:
        return
    stages = {draft.name: draft for draft in drafts if draft.keys.name}
    at = ("codistill", "stage")
    if config.stage not in stages:
        yield place(at, f"no stage is named '{config.stage}'{choose(config.stage, stages)}")
        return
    draft = stages[config.stage]
    train = draft.keys.train
    if draft.kind is not None and not draft.kind.is_model:
        message = f"stage '{config.stage}' of type '{draft.keys.type}' is not trained by the library"
        yield place(at, f"{message} and cannot learn; name a stage that is a model")
    if train is not None and train.loss != "bce":
        message = f"peers agree on probabilities, and the [train] loss of '{config.stage}' is '{train.loss}'"
        yield place(at, f"{message}; want 'bce'")
    if train is not None and train.shard_rows is not None:
        message = f"peers hold each other's whole tables, and [train] shard_rows of '{config.stage}' shares them out"
        yield place(at, f"{message}; leave it out")
    taught = any(pair.student == config.stage for pair in pairs.values())
    if taught or any(config.stage in objective.stages for objective in objectives.values()):
        what = "is the student of a [[distill]] table" if taught else "is trained with others by an [[objective]]"
        message = f"'{config.stage}' {what}, too; a codistilled stage learns from its"
        yield place(at, f"{message} peers alone. Leave one of the two out")
    if draft.keys.label_weight == "learned":
        yield draft.problem(
            ("label_weight",), '"learned" weights are of [[distill]] tables; give peers a [codistill] weight'
        )
    if draft.keys.label_weight == "rest" and config.weight > 1:
        message = f"label_weight = \"rest\" of '{config.stage}' is 1 minus this weight; want at most 1"
        yield place(("codistill", "weight"), f"{message}, got {config.weight:g}")
    if head.init_from is not None:
        message = "peers start from initialisations of their own and cannot continue the run that init_from names"
        yield place(at, f"{message}; leave init_from out")
    if config.data == "disjoint" and definition is not None and definition.storage.layout == "stream":
        message = f"data set '{definition.name}' is larger than memory, and its rows are read in one order"
        yield place(("codistill", "data"), f'{message}; want data = "same", or [storage] layout = "memory"')

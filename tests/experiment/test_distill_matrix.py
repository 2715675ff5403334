"""What every distillation method guarantees, on whole trainings of the tiny world.

A new method joins by one line: of ``LISTS`` where it learns on lists, else of ``OFFLINE``, all of which can be joint.
Round 0 is trained once and copied; a case trains its student alone, for six steps.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from cascade_kd.distill.pair import joint_name
from cascade_kd.experiment import joint as joint_training
from cascade_kd.experiment import training
from cascade_kd.interrupt import Interrupted
from cascade_kd.train import load_checkpoint, samples

Tiny = Callable[..., Path]
Weights = Mapping[str, torch.Tensor]
Train = Callable[..., Any]

STEPS = 6  # of the student: two epochs
FEW = ["stage.prerank.train.batch_size=1600", "stage.rank.train.batch_size=1600", "stage.recall.train.epochs=1"]

HIDDEN = 'method = "hidden"\nlayers = [["mlp.0", "user.mlp.0"]]\n'
LOGIT = 'method = "logit"\n'
OFFLINE = {
    "kl": LOGIT + 'loss = "kl"\ntemperature = 2.0',
    "bce": LOGIT + 'loss = "bce"',
    "mse": LOGIT + 'loss = "mse"',
    "mimic": LOGIT + 'loss = "mimic"',
    "prob-mse": LOGIT + 'loss = "prob-mse"',
    "auxiliary": LOGIT + 'head = "auxiliary"\nlayer = "item.mlp.0"',
    "hint": HIDDEN,
    "linear": 'method = "hidden"\nlayers = [["embedding", "user.mlp.0"]]\nprojector = "linear"',
    "mlp": 'method = "hidden"\nlayers = [["interaction", "item.vector"]]\nprojector = "mlp"',
    "experts": HIDDEN + 'projector = "experts"\nexperts = 3',
    "attention": HIDDEN + 'loss = "attention"',
    "relation": 'method = "relation"\nlayers = [["embedding", "user.vector"]]',
    "phases": HIDDEN + 'projector = "linear"\nphases = ["hint", "full"]',
}
JOINT = {name: f'{keys}\nmode = "joint"' for name, keys in OFFLINE.items()}
SHARED = 'share = ["embedding"]\nexcept = ["embedding.user_id"]'
LISTS = {
    "clid": LOGIT + 'loss = "clid"',
    "kl over lists": LOGIT + 'lists = "upstream"\ntemperature = 2.0',
    "pointwise": 'method = "topk-pointwise"\nk = 4\nlists = "catalogue"',
    "pairwise": 'method = "topk-pairwise"\nk = 4\nlists = "upstream"\nnegatives = 3\npairs = 9',
    "listmle": 'method = "topk-listwise"\nk = 2',
    "rankdistil": 'method = "topk-listwise"\nk = 3\nlists = "upstream"\nloss = "rankdistil"',
    "rd": 'method = "rd"\nk = 4\nhybrid_from = 1\nlists = "upstream"',
    "cd": 'method = "cd"\nsampled = 3\nlists = "upstream"\nguide = "student"',
    "rrd": 'method = "rrd"\nk = 4\nlists = "upstream"',
    "dcd": 'method = "dcd"\nk = 4\nlists = "upstream"',
    "unkd": 'method = "unkd"\npairs = 4\nlists = "catalogue"',
}
ALL = OFFLINE | LISTS | {f"{name} joint": keys for name, keys in JOINT.items()}

TEACHERS = {
    "a teacher that is not served": '[[teacher]]\nname = "big"\nuse = "rank/dcnv2"\nlevel = "never"\n'
    "model = { embedding_size = 4, hidden = [8], cross_layers = 1 }\n"
    'train = { label = "click", batch_size = 1600, epochs = 1 }\n',
    "members": '[[teacher]]\nname = "big"\nmembers = ["rank", "recall"]\n',
}
TEACHERS["copies"] = TEACHERS["a teacher that is not served"] + "copies = 2\n"


def different(a: Weights, b: Weights) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def table(keys: str, weight: float = 0.5, teacher: str = "rank", student: str = "prerank", more: str = "") -> str:
    return f'\n[[distill]]\nteacher = "{teacher}"\nstudent = "{student}"\nweight = {weight}\n{keys}\n{more}\n'


@pytest.fixture
def train(tiny: Tiny, trainings: Callable[..., Train]) -> Train:
    return trainings(lambda distill: tiny(distill=distill), *FEW, unproven=(training, joint_training))


method = pytest.mark.parametrize("keys", list(ALL.values()), ids=list(ALL))


def files_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@method
def test_weight_0_is_the_undistilled_run_and_another_repeats_itself(train: Train, keys: str) -> None:
    assert train(table(keys, 0.0)).same
    taught, again = train(table(keys)), train(table(keys))
    assert different(taught.weights(0), taught.weights(1))
    for file in ("best", "last"):  # the last: adapters, joint teacher and optimisers, too
        assert not different(taught.weights(1, file=file), again.weights(1, file=file))
    # Serving purity: what is served holds the undistilled model's tensors and nothing beside them.
    assert taught.weights(1).keys() == taught.weights(0).keys()
    stage = taught.rounds[-1]["prerank"].stage
    held: Weights = stage.model.state_dict()  # type: ignore[attr-defined]
    assert not different(held, taught.weights(1))
    # The teacher of round 0 is as it was.
    before = files_of(again.out / "checkpoints" / "0" / "0" / "rank")
    assert before == files_of(taught.out / "checkpoints" / "0" / "0" / "rank")
    model = taught.rounds[0]["rank"].stage.model  # type: ignore[attr-defined]
    assert not different(model.state_dict(), taught.weights(0, stage="rank"))
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    "keys", [*(keys for keys in OFFLINE.values() if "phases" not in keys), JOINT["kl"], *LISTS.values()]
)
def test_a_warm_up_is_the_undistilled_run(train: Train, keys: str) -> None:
    assert train(table(keys, more=f"warmup_steps = {STEPS}")).same


@pytest.mark.parametrize("keys", [OFFLINE["kl"], OFFLINE["linear"], JOINT["kl"]])
def test_the_step_after_the_warm_up_is_the_first_that_differs(train: Train, keys: str) -> None:
    late = train(table(keys, more=f"warmup_steps = {STEPS - 1}"))  # the last of six steps
    taught = {name: weight for name, weight in late.weights(1, file="last").items() if not name.startswith("beside.")}
    assert different(late.weights(0, file="last"), taught)


def test_weight_0_with_shared_modules_is_training_on_two_labels_whatever_the_method(train: Train) -> None:
    two_labels = train(table(JOINT["mse"], 0.0, more=SHARED))
    assert not two_labels.same  # the teacher's label reaches the shared rows
    for keys in JOINT.values():
        assert not different(two_labels.weights(1), train(table(keys, 0.0, more=SHARED)).weights(1)), keys
    taught = train(table(JOINT["linear"], more=SHARED))
    assert different(two_labels.weights(1), taught.weights(1))
    assert taught.weights(1).keys() == taught.weights(0).keys()


@pytest.mark.parametrize(
    ("distill", "step"),
    [
        (table(OFFLINE["experts"]), 4),
        (table(OFFLINE["phases"]) + table(OFFLINE["auxiliary"]), 1),
        (table(JOINT["linear"], more=SHARED), 4),
        (table(JOINT["kl"]) + table(OFFLINE["kl"]) + table(LISTS["rrd"]), 1),  # rocket + KD + lists
    ],
    ids=["adapter", "phases and a head", "joint and shared", "joint, offline and lists"],
)
def test_a_resume_ends_in_the_weights_of_the_whole_run(
    train: Train, monkeypatch: pytest.MonkeyPatch, distill: str, step: int
) -> None:
    whole = train(distill, "stage.prerank.label_weight=learned")
    drawn = samples.Sampler.batch

    def interrupting(self: samples.Sampler, at: int) -> samples.Batch:
        if at == step:
            os.kill(os.getpid(), signal.SIGINT)
        return drawn(self, at)

    with monkeypatch.context() as patch:
        patch.setattr(samples.Sampler, "batch", interrupting)
        with pytest.raises(Interrupted, match=f"stage 'prerank' at step {step + 1}"):
            train(distill, "stage.prerank.label_weight=learned")
    resumed = train(distill, "stage.prerank.label_weight=learned", fresh=False)
    for file in ("best", "last"):
        assert not different(whole.weights(1, file=file), resumed.weights(1, file=file))
    for name in resumed.rounds[-1].keys() - {"recall"}:
        ours, theirs = (of.rounds[-1][name].stage.model.state_dict() for of in (whole, resumed))  # type: ignore[attr-defined]
        assert not different(ours, theirs)


def test_a_student_of_another_order_is_not_taken_from_the_store(train: Train) -> None:
    """The weight of the score received changes no teacher's training, but what it puts first."""
    keys = table(LISTS["pointwise"], student="recall")
    first = train(keys, "stage.rank.upstream_weight=0.0")
    taught, ranker = first.weights(1, stage="recall"), first.weights(0, stage="rank")
    shutil.rmtree(first.out)
    other = train(keys, "stage.rank.upstream_weight=50.0", fresh=False)
    assert not different(ranker, other.weights(0, stage="rank"))
    assert different(taught, other.weights(1, stage="recall"))


def test_a_joint_training_is_taken_from_the_store_whole(train: Train) -> None:
    distill = table(JOINT["linear"], more=SHARED)
    first = train(distill)
    shutil.rmtree(first.out)
    again = train(distill, fresh=False)
    name = joint_name("rank")
    for stage in ("prerank", name):
        ours, theirs = (of.rounds[-1][stage].stage.model.state_dict() for of in (first, again))  # type: ignore[attr-defined]
        assert not different(ours, theirs)
    # The joint teacher is another than that of round 0, and the best of its own training.
    model = again.rounds[-1][name].stage.model.state_dict()  # type: ignore[attr-defined]
    assert different(model, again.weights(0, stage="rank"))


def test_a_joint_teacher_that_goes_on_alone_leaves_its_student_behind(train: Train) -> None:
    together = train(table(JOINT["linear"], more=SHARED))
    on = train(table(JOINT["linear"], more=SHARED + "\nteacher_epochs = 1"))
    assert not different(together.weights(1), on.weights(1))
    name = joint_name("rank")
    models = [of.rounds[-1][name].stage.model.state_dict() for of in (together, on)]  # type: ignore[attr-defined]
    assert different(*models)
    assert load_checkpoint(on.out / "checkpoints" / "0" / "1" / name / "last.safetensors").meta["state"]["step"] == 3
    shutil.rmtree(on.out)
    again = train(table(JOINT["linear"], more=SHARED + "\nteacher_epochs = 1"), fresh=False)  # from the store
    assert not different(models[1], again.rounds[-1][name].stage.model.state_dict())  # type: ignore[attr-defined]


@pytest.mark.parametrize("keys", list(TEACHERS.values()), ids=list(TEACHERS))
def test_a_teacher_beside_the_cascade_changes_its_student_alone(train: Train, keys: str) -> None:
    distill = keys + table(OFFLINE["mse"], teacher="big")
    taught = train(distill)
    assert different(taught.weights(0), taught.weights(1))
    assert set(taught.rounds[0]) == set(taught.rounds[1]) == {"recall", "prerank", "rank", "big"}
    assert train(keys + table(OFFLINE["mse"], 0.0, teacher="big")).same
    again = train(distill)
    assert not different(taught.weights(1), again.weights(1))


def test_one_teacher_trains_two_students_in_one_run(train: Train) -> None:
    tables = table(JOINT["kl"], more=SHARED) + table(JOINT["kl"], student="recall", more=SHARED)
    equal = ["stage.recall.train.loss=bce", "stage.recall.model.embedding_size=4", "stage.recall.train.epochs=2"]
    equal += ["stage.recall.train.batch_size=1600", "stage.recall.train.samples=[{from='impressions'}]"]
    equal += ["stage.prerank.train.samples=[{from='impressions'}]"]
    taught = train(tables, *equal)
    recall, prerank = (taught.rounds[-1][name].stage.model for name in ("recall", "prerank"))  # type: ignore[attr-defined]
    for name in ("recall", "prerank"):
        model = taught.rounds[-1][name].stage.model  # type: ignore[attr-defined]
        assert model.state_dict().keys() == taught.weights(0, stage=name).keys()
    assert not {id(p) for p in recall.parameters()} & {id(p) for p in prerank.parameters()}  # each stands alone
    again = train(tables, *equal)
    for name in ("recall", "prerank", joint_name("rank")):
        ours, theirs = (of.rounds[-1][name].stage.model.state_dict() for of in (taught, again))  # type: ignore[attr-defined]
        assert not different(ours, theirs)

"""Where the gradient of every distillation term goes, and where it must not: one step of autograd on small nets.

A new method joins by one line of ``METHODS``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cascade_kd.config.tables import DISTILLERS, DistillConfig
from cascade_kd.data import Dataset
from cascade_kd.experiment.joint import share_all
from cascade_kd.experiment.lessons import hint_epochs, live_layers, make_lessons, with_lessons
from cascade_kd.experiment.nets import Net
from cascade_kd.losses import bce
from cascade_kd.models.dcnv2 import DCNv2, DCNv2Config
from cascade_kd.models.fields import FieldEmbedding
from cascade_kd.models.multi_task import MultiTask, MultiTaskConfig
from cascade_kd.models.sharing import settle
from cascade_kd.models.two_tower import TwoTower, TwoTowerConfig
from cascade_kd.streams import scoped_seed
from cascade_kd.train import LiveTeacher, SampleSource, Student, Task, TrainConfig, make_sampler
from cascade_kd.train.loop import _optimizers, sum_of, trained_beside
from cascade_kd.train.objective import row_inputs, weighted_mean
from cascade_kd.train.samples import Batch
from cascade_kd.train.task import LossParts, make_loss
from cascade_kd.train.terms import Moment, Term, cached_logit_term, hidden_term, live_logit_term
from cascade_kd.types import Inputs, Level, Output

SAMPLES = (SampleSource(source="impressions"), SampleSource(source="uniform", per_positive=3))

# As in a [[distill]] table. The two-tower student's "user.mlp.0" has a row a request, "item.mlp.0" a row a candidate.
METHODS: dict[str, dict[str, Any]] = {
    "kl": {"method": "logit", "loss": "kl", "temperature": 2.0},
    "bce": {"method": "logit", "loss": "bce"},
    "mse": {"method": "logit", "loss": "mse"},
    "mimic": {"method": "logit", "loss": "mimic"},
    "prob-mse": {"method": "logit", "loss": "prob-mse"},
    "auxiliary head": {"method": "logit", "head": "auxiliary", "layer": "user.mlp.0"},
    "direct matching": {"method": "hidden", "layers": [["mlp.0", "item.mlp.0"]]},
    "linear": {"method": "hidden", "layers": [["mlp.1", "user.mlp.0"]], "projector": "linear"},
    "mlp": {"method": "hidden", "layers": [["fields", "item.mlp.0"]], "projector": "mlp"},
    "experts": {"method": "hidden", "layers": [["mlp.1", "item.vector"]], "projector": "experts", "experts": 3},
    "two layers": {"method": "hidden", "layers": [["mlp.0", "item.mlp.0"], ["mlp.0", "user.mlp.0"]]},
    "attention": {"method": "hidden", "loss": "attention", "layers": [["mlp.0", "item.mlp.0"]]},
    "relation": {"method": "relation", "layers": [["mlp.1", "user.vector"]]},
    "phases": {"method": "hidden", "layers": [["mlp.0", "user.mlp.0"]], "phases": ["hint", "full"]},
}
method = pytest.mark.parametrize("keys", list(METHODS.values()), ids=list(METHODS))


def two_tower(dataset: Dataset) -> TwoTower:
    with scoped_seed(1):
        config = TwoTowerConfig(embedding_size=4, embedding_std=1.0, hidden=(8,), output_size=4, temperature=0.5)
        return TwoTower(config, dataset.online("recall"))


def ranker(dataset: Dataset, level: Level = "never", *, batch_norm: bool = False, dropout: float = 0.0) -> DCNv2:
    with scoped_seed(2):
        config = DCNv2Config(
            embedding_size=4,
            embedding_std=1.0,
            hidden=(8, 6),
            cross_layers=1,
            batch_norm=batch_norm,
            dropout=dropout,
        )
        return DCNv2(config, dataset.online(level))


@dataclass
class Group:
    """A student and its teacher, as a joint step trains them, or the teacher frozen."""

    pair: DistillConfig
    student: nn.Module
    teacher: nn.Module
    task: Task
    batch: Batch

    def parts(self, step: int = 0) -> LossParts:
        return make_loss(self.task, make_sampler(self.task))(self.batch, step, 100)

    @property
    def term(self) -> Tensor:
        return self.parts()[self.pair.name]


def make_pair(keys: dict[str, Any], **more: Any) -> DistillConfig:
    written = {"teacher": "rank", "student": "stage", "mode": "joint", "weight": 0.7} | keys | more
    return DISTILLERS[keys["method"]].model_validate(written)


def group(
    dataset: Dataset,
    keys: dict[str, Any],
    *,
    student: nn.Module | None = None,
    teacher: nn.Module | None = None,
    label_weight: object = 1.0,
    trained: bool = True,
    **more: Any,
) -> Group:
    """``trained`` false: the same terms of the same live teacher, but frozen."""
    pair = make_pair(keys, **more)
    student, teacher = student or two_tower(dataset), teacher or ranker(dataset)
    nets = {name: Net(net, features_of(dataset, net)) for name, net in (("stage", student), ("rank", teacher))}  # type: ignore[arg-type]
    if trained:
        share_all({"stage": nets["stage"]}, nets["rank"], [pair])
    train = TrainConfig(label="click", batch_size=60, samples=SAMPLES)
    rows_M = dataset.rows("train")[:240]
    task = Task("stage", student, nets["stage"].features, dataset, train, rows_M, seed=7, label_weight=label_weight)  # type: ignore[arg-type]
    stage: Any = SimpleNamespace(label_weight=label_weight)
    lessons = make_lessons(
        stage, nets["stage"], [pair], {pair.source: nets["rank"]}, {}, dataset, task.seed, munged={}, on_lists={}
    )
    live = LiveTeacher(
        pair.source, teacher, nets["rank"].features, live_layers([pair], pair.source), train if trained else None
    )  # type: ignore[arg-type]
    beside = nn.ModuleDict({"teacher": teacher, "adapters": lessons.adapters})
    task = replace(with_lessons(task, lessons, [live]), beside=beside, hint_epochs=hint_epochs([pair]))
    return Group(pair, student, teacher, task, make_sampler(task).batch(0))


def features_of(dataset: Dataset, net: nn.Module) -> tuple[Any, ...]:
    fields: Any = net.fields
    names = {*fields.user.names, *fields.item.names}
    return tuple(feature for feature in dataset.features if feature.name in names)


def gradient(loss: Tensor, net: nn.Module) -> dict[str, Tensor | None]:
    """By name; None where nothing arrives."""
    named = dict(net.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
    return dict(zip(named, found, strict=True))


def nothing(gradients: dict[str, Tensor | None]) -> bool:
    """None or exactly 0 everywhere."""
    return all(g is None or not bool(g.any()) for g in gradients.values())


def something(gradients: dict[str, Tensor | None]) -> bool:
    return any(g is not None and bool(g.any()) for g in gradients.values())


# -- the block


@method
@pytest.mark.parametrize("share", [[], ["embedding"]], ids=["apart", "shared"])
def test_the_terms_gradient_reaches_no_parameter_of_the_teachers_own(
    dataset: Dataset, keys: dict[str, Any], share: list[str]
) -> None:
    # A teacher that borrows holds the borrowed embedding as no parameter of its own.
    made = group(dataset, keys, share=share)
    term = made.term
    assert nothing(gradient(term, made.teacher))
    assert something(gradient(term, made.student))


@method
def test_without_the_block_it_reaches_the_teacher(dataset: Dataset, keys: dict[str, Any]) -> None:
    made = group(dataset, keys, block=False)
    assert something(gradient(made.term, made.teacher))
    # and it changes nothing of the value, nor of the student's gradient
    blocked = group(dataset, keys)
    torch.testing.assert_close(made.term, blocked.term, rtol=0, atol=0)
    for a, b in zip(
        gradient(made.term, made.student).values(), gradient(blocked.term, blocked.student).values(), strict=True
    ):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("keys", [METHODS["mse"], METHODS["direct matching"]], ids=["mse", "hint"])
def test_without_the_block_both_sides_of_a_hint_get_opposite_gradients(keys: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(1)
    num = 6
    z_R, l_R = (torch.randn(num, generator=generator).requires_grad_() for _ in range(2))
    h_t, h_s = (torch.randn(num, 8, generator=generator).requires_grad_() for _ in range(2))
    batch: Any = SimpleNamespace(weight_R=torch.rand(num, generator=generator), row_R=torch.arange(num))
    moment = Moment(batch, Output(l_R, {"item.mlp.0": h_s}), {"rank.joint": Output(z_R, {"mlp.0": h_t})}, 0, 1)
    pair: Any = make_pair(keys, block=False)
    term = live_logit_term(pair, None) if keys["method"] == "logit" else hidden_term(pair, [None], 0)
    of_teacher, of_student = (z_R, l_R) if keys["method"] == "logit" else (h_t, h_s)
    there, here = torch.autograd.grad(term.loss(moment), (of_teacher, of_student))
    assert bool(here.all())
    assert torch.equal(there, -here)
    blocked: Any = make_pair(keys)
    term = live_logit_term(blocked, None) if keys["method"] == "logit" else hidden_term(blocked, [None], 0)
    assert torch.autograd.grad(term.loss(moment), of_teacher, allow_unused=True) == (None,)


# -- shared parameters


def rows_of(fields: FieldEmbedding, table_VD: Tensor | None) -> dict[str, Tensor]:
    assert table_VD is not None
    return {name: table_VD[rows.first : rows.end] for name, rows in fields.rows.items()}


@method
def test_shared_rows_get_the_students_gradient_and_that_of_the_teachers_label(
    dataset: Dataset, keys: dict[str, Any]
) -> None:
    # Two passes of nets that share nothing, with the same weights: the student under a frozen teacher, and the teacher.
    joint = group(dataset, keys, share=["embedding"])
    student, teacher = deepcopy((joint.student, joint.teacher))
    settle(teacher)
    alone = group(dataset, keys, student=student, teacher=teacher, trained=False)
    parts, apart = joint.parts(), alone.parts()
    label = parts["rank.joint label"]
    assert parts.keys() == apart.keys() | {"rank.joint label"}
    for name, part in apart.items():
        assert torch.equal(parts[name], part), name

    together = gradient(sum_of(list(parts.values())), joint.student)
    through_student = gradient(sum_of(list(apart.values())), student)
    through_teacher = gradient(bce_of(alone, teacher), teacher)
    fields: Any = student.fields
    theirs: Any = teacher.fields
    both = rows_of(fields, together["fields.table.weight"])
    own = rows_of(fields, through_student["fields.table.weight"])
    lent = rows_of(theirs, through_teacher["fields.table.weight"])
    for name in both:
        torch.testing.assert_close(both[name], own[name] + lent[name])
    for name, got in together.items():
        if not name.startswith("fields."):  # what is the student's alone
            expected = through_student[name]
            assert (got is None) == (expected is None), name
            assert got is None or expected is None or torch.equal(got, expected), name

    # The booster learns as if it were trained on its label alone, bit for bit.
    of_teacher = gradient(label, joint.teacher)
    of_total = gradient(sum_of(list(parts.values())), joint.teacher)
    for name, got in of_total.items():
        assert got is not None or name == "fields.own.table.weight", name
        expected = of_teacher[name]
        assert got is None or (expected is not None and torch.equal(got, expected)), name
        if got is not None and not name.startswith("fields."):
            assert torch.equal(got, through_teacher[name]), name  # type: ignore[arg-type]


def bce_of(made: Group, net: nn.Module) -> Tensor:
    """The label loss of any net on the rows of the batch."""
    names = [feature.name for feature in made.task.dataset.features]
    logits_R = net(row_inputs(made.task.dataset, names, made.batch)).logits_R
    return weighted_mean(bce(logits_R, made.batch.label_R), made.batch.weight_R)


@method
@pytest.mark.parametrize("embedding_optimizer", ["same", "sparse-adam", "rowwise-adagrad"])
def test_every_parameter_is_in_one_group_of_one_optimiser(
    dataset: Dataset, keys: dict[str, Any], embedding_optimizer: str
) -> None:
    made = group(dataset, keys, share=["embedding"])
    train = made.task.train.model_copy(update={"embedding_optimizer": embedding_optimizer})
    theirs = train.model_copy(update={"learning_rate": 0.5})
    live = replace(made.task.teachers[0], train=theirs)
    task = replace(made.task, train=train, teachers=(live,))
    with trained_beside(made.student, task.beside):
        optimizers = _optimizers(task, made.student)
        expected = {id(p) for p in made.student.parameters()}
    held = [id(p) for optimizer in optimizers for g in optimizer.param_groups for p in g["params"]]
    assert len(held) == len(set(held))
    assert set(held) == expected
    of_teacher = {id(p) for p in made.teacher.parameters()}
    for optimizer in optimizers:
        for g in optimizer.param_groups:
            if g["lr"] == 0.5:  # the teacher's own dense part, and nothing else
                assert {id(p) for p in g["params"]} <= of_teacher
    assert {id(p) for p in made.student.parameters()} & of_teacher == set()


def test_a_shared_layer_is_one_object_in_one_group(dataset: Dataset) -> None:
    features = dataset.online("rank")
    with scoped_seed(3):
        nets = [DCNv2(DCNv2Config(embedding_size=4, hidden=(8, 6), cross_layers=n), features) for n in (1, 2)]
    made = group(dataset, METHODS["mse"], student=nets[0], teacher=nets[1], share=["embedding", "mlp.0"])
    weight: Any = nets[0].mlp.linear[0].weight
    assert nets[1].mlp.linear[0].weight is weight
    with trained_beside(made.student, made.task.beside):
        optimizers = _optimizers(made.task, made.student)
    places = [
        n for n, optimizer in enumerate(optimizers) for g in optimizer.param_groups for p in g["params"] if p is weight
    ]
    assert places == [0]  # the student's


# -- what the student is, and what is never trained


@method
def test_the_student_does_not_depend_on_what_only_the_teacher_sees(dataset: Dataset, keys: dict[str, Any]) -> None:
    made = group(dataset, keys, share=["embedding"])
    student: Any = made.student
    inputs = row_inputs(dataset, [f.name for f in dataset.features], made.batch)
    own = {f.name for f in made.task.features}
    privileged = {name for name in (*inputs.user, *inputs.item) if name not in own}
    assert "dwell" in privileged

    def shifted(columns: Any) -> dict[str, Tensor]:
        return {n: (c + 1 if n in privileged and c.is_floating_point() else c) for n, c in columns.items()}

    other = Inputs(shifted(inputs.user), shifted(inputs.item), inputs.row_R)
    assert torch.equal(student(other).logits_R, student(inputs).logits_R)
    assert not torch.equal(made.teacher(other).logits_R, made.teacher(inputs).logits_R)


@method
def test_a_frozen_teacher_evaluates_and_keeps_its_statistics(dataset: Dataset, keys: dict[str, Any]) -> None:
    teacher = ranker(dataset, batch_norm=True, dropout=0.5)
    made = group(dataset, keys, teacher=teacher, trained=False)
    teacher.train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    first, again = made.parts(), made.parts()
    assert torch.equal(first[made.pair.name], again[made.pair.name])  # no dropout
    assert teacher.training
    sum_of(list(first.values())).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    # A joint one trains: its statistics move and it drops units.
    joint = group(dataset, keys, teacher=ranker(dataset, batch_norm=True, dropout=0.5))
    torch.manual_seed(0)
    first, again = joint.parts(), joint.parts()
    assert not torch.equal(first["rank.joint label"], again["rank.joint label"])
    moved: Any = joint.teacher.state_dict()
    assert bool(moved["mlp.norm.0.running_mean"].any())


@pytest.mark.parametrize(
    "keys",
    [METHODS[name] for name in ("kl", "bce", "mse", "prob-mse")]
    + [
        {"method": "hidden", "layers": [["mlp.0", "mlp.0"], ["fields", "fields"]]},
        {"method": "hidden", "loss": "attention", "layers": [["mlp.0", "mlp.0"], ["fields", "fields"]]},
        {"method": "relation", "layers": [["mlp.0", "mlp.0"]]},
    ],
)
def test_a_perfect_copy_has_nothing_to_learn(dataset: Dataset, keys: dict[str, Any]) -> None:
    made = group(dataset, keys, student=ranker(dataset, "rank"), teacher=ranker(dataset, "rank"))
    term = made.term
    assert nothing(gradient(term, made.student))
    if keys.get("loss") != "bce":  # which leaves the teacher's entropy
        assert term.item() == 0


def test_an_auxiliary_head_leaves_the_served_one_alone(dataset: Dataset) -> None:
    made = group(dataset, {"method": "logit", "head": "auxiliary", "layer": "mlp.0"}, student=ranker(dataset, "rank"))
    found = gradient(made.term, made.student)
    above = [name for name in found if name.startswith(("head.", "cross.", "mlp.linear.1"))]
    assert len(above) == 6  # two of a weight and a bias, and the cross layer's
    for name, got in found.items():
        if name in above:
            assert got is None, name
        else:
            assert something({name: got}), name
    adapters: Any = made.task.beside
    assert something(gradient(made.term, adapters["adapters"]))


# -- mixing with the label


@pytest.mark.parametrize("weight", [0.25, 0.5, 1.0])
def test_cross_entropy_with_the_rest_on_the_label_is_bce_against_the_mixed_label(
    dataset: Dataset, weight: float
) -> None:
    made = group(dataset, METHODS["bce"], label_weight="rest", weight=weight)
    parts = made.parts()
    inputs = row_inputs(dataset, [f.name for f in dataset.features], made.batch)
    student_R = made.student(inputs).logits_R
    mixed_R = (1 - weight) * made.batch.label_R + weight * made.teacher(inputs).logits_R.detach().sigmoid()
    expected = F.binary_cross_entropy_with_logits(student_R, mixed_R)
    loss = parts["label"] + parts[made.pair.name]
    torch.testing.assert_close(loss, expected)
    for a, b in zip(gradient(loss, made.student).values(), gradient(expected, made.student).values(), strict=True):
        torch.testing.assert_close(a, b)


@method
def test_a_weight_of_0_and_a_warm_up_leave_the_label_alone(dataset: Dataset, keys: dict[str, Any]) -> None:
    for more in ({"weight": 0.0}, {"warmup_steps": 1000}):
        if "phases" in keys and "warmup_steps" in more:
            continue  # refused: the hint phase is a start of its own
        made = group(dataset, keys, label_weight="rest", **more)
        parts = made.parts()
        assert parts.keys() == {"label", "rank.joint label"}
        assert torch.equal(parts["label"], bce_of(made, made.student))


def test_learnt_weights_get_the_gradient_of_their_formula(dataset: Dataset) -> None:
    # d/du of exp(-2u) L / 2 + u is 1 - L at u = 0.
    made = group(dataset, METHODS["kl"], label_weight="learned")
    plain = group(dataset, METHODS["kl"]).parts()
    balance = made.task.balance
    assert balance is not None
    assert balance.names == ("label", made.pair.name)
    parts = made.parts()
    for name in balance.names:
        torch.testing.assert_close(parts[name], plain[name] / 2)
    (sum_of(list(parts.values()))).backward()
    expected = torch.stack([1 - plain[name].detach() for name in balance.names])
    torch.testing.assert_close(balance.log_sd_M.grad, expected)
    assert torch.equal(parts["rank.joint label"], plain["rank.joint label"])  # the teacher's own loss is not weighed
    # A term that takes no part in a step leaves its weight alone.
    waiting = group(dataset, METHODS["kl"], label_weight="learned", warmup_steps=10)
    sum_of(list(waiting.parts().values())).backward()
    assert waiting.task.balance is not None
    grad = waiting.task.balance.log_sd_M.grad
    assert grad is not None
    assert grad[0] != 0
    assert grad[1] == 0


# -- scores that are missing


@pytest.mark.parametrize("keys", [METHODS[name] for name in ("kl", "bce", "mse", "mimic", "prob-mse")])
@pytest.mark.parametrize("known", [0.0, 0.4, 1.0])
def test_rows_without_a_teachers_score_take_no_part(dataset: Dataset, keys: dict[str, Any], known: float) -> None:
    made = group(dataset, keys)
    pair: Any = make_pair(keys, mode="offline")
    generator = torch.Generator().manual_seed(1)
    batch = made.batch
    teacher_MS = torch.randn(240, make_sampler(made.task).num_slots, generator=generator)
    hidden_MS = torch.rand(teacher_MS.shape, generator=generator) >= known
    hidden_MS[-1] = False  # of a row of another batch
    hidden_MS[batch.sample_R[0]] = known == 0
    teacher_MS[hidden_MS] = torch.nan
    batch = replace(batch, weight_R=torch.rand(len(batch.row_R), generator=generator) + 0.1)
    logits_R = torch.randn(len(batch.row_R), generator=generator).requires_grad_()
    term = cached_logit_term(pair, teacher_MS, None)
    loss = term.loss(Moment(batch, Output(logits_R, {}), {}, 0, 1))
    (grad_R,) = torch.autograd.grad(loss, logits_R)
    seen_R = ~teacher_MS[batch.sample_R, batch.slot_R].isnan()
    assert bool((grad_R[~seen_R] == 0).all())
    assert bool(grad_R.isfinite().all())
    if not bool(seen_R.any()):
        assert loss.item() == 0
        return
    assert bool((grad_R[seen_R] != 0).all())
    # The same batch without those rows.
    fewer = replace(
        batch,
        sample_R=batch.sample_R[seen_R],
        slot_R=batch.slot_R[seen_R],
        row_R=batch.row_R[seen_R],
        weight_R=batch.weight_R[seen_R],
    )
    expected = term.loss(Moment(fewer, Output(logits_R[seen_R], {}), {}, 0, 1))
    torch.testing.assert_close(loss, expected)


def test_states_of_requests_and_of_rows_are_compared_on_the_rows(dataset: Dataset) -> None:
    # The user tower has a state a request; against a teacher's of every row it stands for all its rows.
    keys = {"method": "hidden", "layers": [["mlp.0", "user.mlp.0"]]}
    made = group(dataset, keys, weight=1.0)
    inputs = row_inputs(dataset, [f.name for f in dataset.features], made.batch)
    of_student = made.student(inputs, ["user.mlp.0"]).hidden["user.mlp.0"]
    of_teacher = made.teacher(inputs, ["mlp.0"]).hidden["mlp.0"]
    assert len(of_student) < len(of_teacher)
    gaps = [of_student[int(row)] - of_teacher[r] for r, row in enumerate(made.batch.row_R)]
    expected = sum(gap.square().sum().item() / 2 for gap in gaps) / len(gaps)
    assert made.term.item() == pytest.approx(expected, rel=1e-5)


def test_a_teacher_may_read_less_than_the_student_that_lends_to_it(dataset: Dataset) -> None:
    # It is asked for the widths of its layers before any batch, on what it reads itself.
    features = [feature for feature in dataset.online("rank") if feature.name in ("user_id", "item_id", "dwell")]
    with scoped_seed(2):
        teacher = DCNv2(DCNv2Config(embedding_size=4, hidden=(8, 6), cross_layers=1), features)
    made = group(dataset, METHODS["linear"], teacher=teacher, share=["embedding"])
    assert something(gradient(made.term, made.student))


# -- the hint phase


@pytest.mark.parametrize("mode", ["joint", "frozen"])
def test_a_hint_phase_trains_up_to_the_guided_layer_alone(dataset: Dataset, mode: str) -> None:
    keys = {"method": "hidden", "layers": [["mlp.0", "mlp.0"]], "phases": ["hint", "full"], "projector": "linear"}
    made = group(dataset, keys, student=ranker(dataset, "rank"), trained=mode == "joint")
    steps = make_sampler(made.task).steps_per_epoch
    for step in (0, steps - 1):
        parts = made.parts(step)
        assert parts.keys() == {made.pair.name} | ({"rank.joint label"} if mode == "joint" else set())
        found = gradient(sum_of(list(parts.values())), made.student)
        for name, got in found.items():
            if name.startswith(("head.", "cross.", "mlp.linear.1")):
                assert got is None, name  # so that no optimiser moves it, weight decay included
            else:
                assert something({name: got}), name
    after = made.parts(steps)
    assert "label" in after
    assert made.pair.name not in after


# -- several students of one teacher


def two_students(dataset: Dataset, first: dict[str, Any], second: dict[str, Any]) -> tuple[Group, nn.Module]:
    made = group(dataset, first)
    other = two_tower(dataset)
    pair = make_pair(second, student="other")
    net = Net(other, made.task.features)
    stage: Any = SimpleNamespace(label_weight=1.0)
    teacher = Net(made.teacher, made.task.teachers[0].features)  # type: ignore[arg-type]
    lessons = make_lessons(stage, net, [pair], {pair.source: teacher}, {}, dataset, 9, munged={}, on_lists={})
    live = replace(made.task.teachers[0], layers=live_layers([made.pair, pair], pair.source))
    others = (Student("other", other, net.features, 1.0, lessons.terms),)
    return replace(made, task=replace(made.task, others=others, teachers=(live,))), other


def test_the_gradient_of_one_student_reaches_no_other(dataset: Dataset) -> None:
    made, other = two_students(dataset, METHODS["mse"], METHODS["direct matching"])
    parts = made.parts()
    name = "rank->other:hidden joint"
    assert parts.keys() == {"label", made.pair.name, "other label", name, "rank.joint label"}
    for part in ("label", made.pair.name):
        assert nothing(gradient(parts[part], other)), part
        assert something(gradient(parts[part], made.student)), part
    for part in ("other label", name):
        assert nothing(gradient(parts[part], made.student)), part
        assert something(gradient(parts[part], other)), part
    assert nothing(gradient(parts["rank.joint label"], other))


def test_a_hint_phase_is_of_the_student_that_has_one(dataset: Dataset) -> None:
    made, _ = two_students(dataset, METHODS["phases"], METHODS["mse"])
    assert made.parts(0).keys() == {made.pair.name, "other label", "rank->other:logit joint", "rank.joint label"}


Loss = Callable[[Moment], Tensor]


@pytest.mark.parametrize("weights", [(0.5, 0.2), (0.0, 0.3)])
def test_terms_of_several_teachers_add_up(dataset: Dataset, weights: Sequence[float]) -> None:
    made = group(dataset, METHODS["mse"], trained=False)
    live = [made.task.teachers[0], replace(made.task.teachers[0], name="second.joint", model=ranker(dataset, "rank"))]
    terms = []
    for teacher, weight in zip(live, weights, strict=True):
        pair: Any = make_pair(METHODS["mse"], teacher=teacher.name.removesuffix(".joint"))
        terms.append(replace(live_logit_term(pair, None), weight=lambda step, total, w=weight: w))
    asked: list[str] = []

    class Asking(nn.Module):
        def __init__(self, name: str, inner: nn.Module) -> None:
            super().__init__()
            self.name, self.inner = name, inner

        def forward(self, inputs: Inputs, hidden: Sequence[str] = ()) -> Output:
            asked.append(self.name)
            return self.inner(inputs, hidden)  # type: ignore[no-any-return]

    teachers = tuple(replace(t, model=Asking(t.name, t.model)) for t in live)  # type: ignore[arg-type]
    task = replace(made.task, terms=tuple(terms), teachers=teachers)
    parts = make_loss(task, make_sampler(task))(made.batch, 0, 100)
    assert asked == [t.name for t, weight in zip(live, weights, strict=True) if weight]  # once each, unweighted not
    inputs = row_inputs(dataset, [f.name for f in dataset.features], made.batch)
    student_R = made.student(inputs).logits_R
    expected = bce_of(made, made.student)
    for teacher, weight in zip(live, weights, strict=True):
        expected = expected + weight * (student_R - teacher.model(inputs).logits_R.detach()).square().mean()
    torch.testing.assert_close(sum_of(list(parts.values())), expected)


def test_terms_are_distinct_by_name(dataset: Dataset) -> None:
    names = [make_pair(keys).name for keys in METHODS.values()]
    assert all(name.startswith("rank->stage:") and name.endswith(" joint") for name in names)
    assert isinstance(group(dataset, METHODS["kl"]).task.terms[0], Term)


def test_a_joint_multi_task_teacher_learns_its_other_labels(dataset: Dataset) -> None:
    config = MultiTaskConfig(
        embedding_size=4, hidden=(8,), head_hidden=(4,), kind="shared-bottom", auxiliary={"conversion": 0.5}
    )
    with scoped_seed(3):
        teacher = MultiTask(config, dataset.online("rank"))
    made = group(dataset, {"method": "logit", "loss": "mse"}, teacher=teacher)
    parts = made.parts()
    assert list(parts) == ["label", made.pair.name, "rank.joint label", "rank.joint head.conversion"]
    parts["rank.joint head.conversion"].backward()
    top = teacher.tops[1].state_dict(keep_vars=True)
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in top.values())

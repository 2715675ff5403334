"""The loss of a batch against loops and scikit-learn, and where its gradient must not go."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sklearn.metrics import log_loss
from torch import Tensor, nn

from cascade_kd.data import Dataset
from cascade_kd.losses import kl_binary, mse_logits
from cascade_kd.models.dcnv2 import DCNv2, DCNv2Config
from cascade_kd.models.two_tower import TwoTower, TwoTowerConfig
from cascade_kd.stages import ScoringStage
from cascade_kd.streams import scoped_seed
from cascade_kd.train import SampleSource, Task, Term, TrainConfig, make_sampler, objective, teacher_logits
from cascade_kd.train.contrast import batch_columns, contrast_loss, log_popularity
from cascade_kd.train.loop import sum_of
from cascade_kd.train.samples import Batch
from cascade_kd.train.task import make_loss
from cascade_kd.train.terms import on_cached
from cascade_kd.types import Level

UNIFORM = SampleSource(source="uniform", per_positive=3)
IMPRESSIONS = SampleSource(source="impressions")


def two_tower(dataset: Dataset, seed: int = 1) -> TwoTower:
    with scoped_seed(seed):
        config = TwoTowerConfig(embedding_size=4, hidden=(8,), output_size=4, temperature=0.5)
        model = TwoTower(config, dataset.online("recall"))
        nn.init.normal_(model.fields.table.weight)
    return model


def ranker(dataset: Dataset, level: Level = "rank") -> DCNv2:
    with scoped_seed(2):
        model = DCNv2(DCNv2Config(embedding_size=4, hidden=(8,), cross_layers=1), dataset.online(level))
        nn.init.normal_(model.fields.table.weight)
    return model


def privileged(dataset: Dataset) -> DCNv2:
    """A teacher that sees dwell, which a sampled row has not."""
    return ranker(dataset, "never")


def make_task(
    dataset: Dataset,
    model: nn.Module,
    *,
    loss: str = "bce",
    batch_size: int = 200,
    samples: Sequence[SampleSource] = (IMPRESSIONS, UNIFORM),
) -> Task:
    train = TrainConfig(
        label="click",
        loss=loss,  # type: ignore[arg-type]
        batch_size=batch_size,
        samples=tuple(samples) if loss == "bce" else (SampleSource(source="in-batch"),),
    )
    seen = {*model.fields.user.names, *model.fields.item.names}  # type: ignore[union-attr]
    features = tuple(feature for feature in dataset.features if feature.name in seen)
    return Task("stage", model, features, dataset, train, dataset.rows("train"), seed=7)  # type: ignore[arg-type]


def pointwise_loss(model: nn.Module, dataset: Dataset, names: Sequence[str], batch: Batch) -> tuple[Tensor, Tensor]:
    """The loss of a batch and the logits [R] of its rows."""
    logits_R = model(objective.row_inputs(dataset, names, batch)).logits_R  # type: ignore[arg-type]
    return objective.pointwise_loss(logits_R, batch.label_R, batch.weight_R), logits_R


def names(task: Task) -> list[str]:
    return [feature.name for feature in task.features]


# -- in-batch softmax


def hand_softmax(model: TwoTower, task: Task, batch: Batch) -> float:
    """Yi et al., eq. 5, row by row in float64: vectors one at a time, logQ from counts, accidental hits left out."""
    dataset = task.dataset
    events = dataset.events
    positives = [row for row in dataset.rows("train").tolist() if float(events.labels["click"][row]) > 0]
    count = Counter(events.item_N[positives].tolist())
    exact = model.double()
    users, items = [], []
    with torch.no_grad():
        for b in range(len(batch.item_R)):
            request, row = batch.requests[b : b + 1], slice(b, b + 1)
            inputs = dataset.inputs(
                names(task), request, batch.item_R[row], torch.zeros(1, dtype=torch.int64), part="train"
            )
            double = {name: x.double() if x.is_floating_point() else x for name, x in inputs.user.items()}
            users.append(exact.user_vectors(double)[0].tolist())
            double = {name: x.double() if x.is_floating_point() else x for name, x in inputs.item.items()}
            items.append(exact.item_vectors(double)[0].tolist())
    code = batch.item_R.tolist()
    losses = []
    for b, user in enumerate(users):
        corrected = []
        for c, item in enumerate(items):
            if c != b and code[c] == code[b]:
                continue  # an accidental hit
            score = sum(x * y for x, y in zip(user, item, strict=True))
            corrected.append(score - math.log(count[code[c]] / len(positives)))
            if c == b:
                target = corrected[-1]
        top = max(corrected)
        losses.append(top + math.log(sum(math.exp(x - top) for x in corrected)) - target)
    model.float()
    return sum(losses) / len(losses)


def test_in_batch_softmax_equals_a_loop_over_pairs(dataset: Dataset) -> None:
    model = two_tower(dataset)
    task = make_task(dataset, model, loss="sampled-softmax", batch_size=60)
    sampler = make_sampler(task)
    assert bool((sampler.label_N[sampler.rows_M] > 0).all())  # positives only
    for step in (0, sampler.steps_per_epoch - 1):  # the last batch is short
        batch = sampler.batch(step)
        assert len(batch.item_R) == len(batch.requests)
        assert len(set(batch.item_R.tolist())) < len(batch.item_R)  # accidental hits are among the cases
        log_q_I1 = log_popularity(sampler.item_counts())
        columns = batch_columns(model, dataset, names(task), batch, log_q_I1=log_q_I1, num_drawn=0)
        got = contrast_loss(columns, task.train)
        assert got.item() == pytest.approx(hand_softmax(model, task, batch), rel=1e-5)
        parts = make_loss(task, sampler)(batch, step, 100)
        assert parts.keys() == {"label"}
        assert parts["label"].item() == got.item()


def test_a_batch_of_one_item_has_nothing_to_tell_apart(dataset: Dataset) -> None:
    model = two_tower(dataset)
    task = make_task(dataset, model, loss="sampled-softmax")
    batch = make_sampler(task).batch(0)
    batch = replace(batch, item_R=torch.full_like(batch.item_R, 3))
    log_q_I1 = torch.zeros(dataset.num_items + 1)
    columns = batch_columns(model, dataset, names(task), batch, log_q_I1=log_q_I1, num_drawn=0)
    loss = contrast_loss(columns, task.train)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not bool(p.grad.any()) for p in model.parameters())


def test_log_popularity_is_the_share_of_the_rows_and_one_row_where_there_is_none() -> None:
    got = log_popularity(torch.tensor([0, 3, 0, 7]))
    assert got.tolist() == pytest.approx([math.log(share) for share in (0.1, 0.3, 0.1, 0.7)])
    assert bool(log_popularity(torch.zeros(4, dtype=torch.int64)).isfinite().all())


# -- pointwise


@pytest.mark.parametrize("make", [two_tower, ranker, privileged])
def test_pointwise_loss_equals_scikit_learn_with_negatives_as_zeros(
    dataset: Dataset, make: Callable[[Dataset], nn.Module]
) -> None:
    model = make(dataset)
    task = make_task(dataset, model)
    sampler = make_sampler(task)
    batch = sampler.batch(3)
    loss, logits_R = pointwise_loss(model, dataset, names(task), batch)  # type: ignore[arg-type]

    clicks = dataset.events.labels["click"]
    label = [int(clicks[event]) if event >= 0 else 0 for event in batch.event_R.tolist()]
    assert label.count(0) > 200 - sum(label)  # there are sampled rows beside the impressions
    stage = ScoringStage("stage", "never", 1, task.features, model, dataset)  # type: ignore[arg-type]
    one_by_one = [
        float(stage.logits(batch.requests[r : r + 1], item, torch.tensor([0]), event))
        for r, item, event in zip(batch.row_R.tolist(), batch.item_R.split(1), batch.event_R.split(1), strict=True)
    ]
    assert logits_R.tolist() == pytest.approx(one_by_one, rel=1e-4, abs=1e-5)
    assert loss.item() == pytest.approx(log_loss(label, torch.tensor(one_by_one).sigmoid().double().numpy()), rel=1e-5)
    assert batch.label_R.tolist() == label


def test_the_mean_weighs_rows_by_their_source(dataset: Dataset) -> None:
    shown, drawn = (source.model_copy(update={"weight": w}) for source, w in ((IMPRESSIONS, 0.5), (UNIFORM, 3.0)))
    model = ranker(dataset)
    task = make_task(dataset, model, samples=[shown, drawn])
    batch = make_sampler(task).batch(3)
    loss, logits_R = pointwise_loss(model, dataset, names(task), batch)
    weight = [3.0 if event < 0 else 0.5 for event in batch.event_R.tolist()]
    assert len(set(weight)) == 2
    probability = logits_R.detach().double().sigmoid().numpy()
    assert loss.item() == pytest.approx(log_loss(batch.label_R.tolist(), probability, sample_weight=weight), rel=1e-5)
    # The terms of distillers weigh them the same way.
    teacher_MS = torch.zeros(len(task.rows_M), 4)
    task = replace(task, terms=(Term("mse", on_cached(mse_logits, teacher_MS), lambda step, total: 0.5),))
    part = make_loss(task, make_sampler(task))(batch, 3, 100)["mse"]
    squares = [w * x**2 for w, x in zip(weight, logits_R.tolist(), strict=True)]
    assert part.item() == pytest.approx(0.5 * sum(squares) / sum(weight), rel=1e-5)


def test_rows_without_negatives_are_the_impressions(dataset: Dataset) -> None:
    model = ranker(dataset)
    task = make_task(dataset, model, samples=[IMPRESSIONS])
    batch = make_sampler(task).batch(0)
    loss, logits_R = pointwise_loss(model, dataset, names(task), batch)
    assert len(logits_R) == 200
    label = dataset.events.labels["click"][batch.event_R].tolist()
    assert loss.item() == pytest.approx(log_loss(label, logits_R.double().sigmoid().detach().numpy()), rel=1e-5)


# -- with distillation


def scores(dataset: Dataset, task: Task, folder: Path) -> Tensor:
    """The logits of an untrained ranker of the task's rows, [M, S]."""
    teacher = ScoringStage("rank", "rank", 1, dataset.online("rank"), ranker(dataset), dataset)
    return teacher_logits(teacher, make_sampler(task), folder / "teacher.npy")


def distilled(dataset: Dataset, folder: Path, *terms: tuple[str, float], label_weight: object = 1.0) -> Task:
    """A student with a term a (name, weight), all of the one teacher."""
    task = make_task(dataset, two_tower(dataset))
    teacher_MS = scores(dataset, task, folder)
    made = tuple(
        Term(name, on_cached(kl_binary if name == "kl" else mse_logits, teacher_MS), lambda step, total, w=weight: w)
        for name, weight in terms
    )
    return replace(task, terms=made, label_weight=label_weight)  # type: ignore[arg-type]


@pytest.mark.parametrize(("label_weight", "factor"), [(1.0, 1.0), (0.25, 0.25), ("rest", 0.3), (0.0, 0.0)])
def test_parts_are_weighted_means_over_the_rows(
    dataset: Dataset, tmp_path: Path, label_weight: object, factor: float
) -> None:
    task = distilled(dataset, tmp_path, ("kl", 0.5), ("mse", 0.2), label_weight=label_weight)
    sampler = make_sampler(task)
    batch = sampler.batch(2)
    parts = make_loss(task, sampler)(batch, 2, 100)
    label_loss, logits_R = pointwise_loss(task.model, dataset, names(task), batch)
    student = logits_R.tolist()
    teacher = [
        float(scores(dataset, task, tmp_path)[sample, slot])
        for sample, slot in zip(batch.sample_R.tolist(), batch.slot_R.tolist(), strict=True)
    ]
    assert all(math.isfinite(z) for z in teacher)
    q = [1 / (1 + math.exp(-z)) for z in teacher]
    p = [1 / (1 + math.exp(-x)) for x in student]
    kl = [a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b)) for a, b in zip(q, p, strict=True)]
    mse = [(x - z) ** 2 for x, z in zip(student, teacher, strict=True)]
    assert list(parts) == ["label", "kl", "mse"]
    assert parts["label"].item() == pytest.approx(factor * label_loss.item())
    assert parts["kl"].item() == pytest.approx(0.5 * sum(kl) / len(kl), rel=1e-4)
    assert parts["mse"].item() == pytest.approx(0.2 * sum(mse) / len(mse), rel=1e-4)
    assert sum_of(list(parts.values())).item() == pytest.approx(sum(part.item() for part in parts.values()))


def test_a_term_of_weight_0_is_not_computed_and_the_rest_returns_to_the_label(dataset: Dataset, tmp_path: Path) -> None:
    def never(student_R: Tensor, teacher_R: Tensor) -> Tensor:
        raise AssertionError("computed")

    task = distilled(dataset, tmp_path, ("kl", 0.5), label_weight="rest")
    term = on_cached(never, scores(dataset, task, tmp_path))
    warm_up = Term("kl", term, lambda step, total: 0.5 if step >= 10 else 0.0)
    task = replace(task, terms=(warm_up,))
    sampler = make_sampler(task)
    loss = make_loss(task, sampler)
    batch = sampler.batch(0)
    parts = loss(batch, 9, 100)
    assert parts.keys() == {"label"}
    assert parts["label"].item() == pointwise_loss(task.model, dataset, names(task), batch)[0].item()
    assert sum_of(list(parts.values())) is parts["label"]
    with pytest.raises(AssertionError, match="computed"):
        loss(batch, 10, 100)


def test_no_gradient_reaches_labels_teacher_scores_or_the_teacher(dataset: Dataset, tmp_path: Path) -> None:
    model = ranker(dataset)
    teacher = ScoringStage("rank", "rank", 1, dataset.online("rank"), model, dataset)
    task = make_task(dataset, two_tower(dataset))
    sampler = make_sampler(task)
    teacher_MS = teacher_logits(teacher, sampler, tmp_path / "teacher.npy")
    task = replace(task, terms=(Term("kl", on_cached(kl_binary, teacher_MS), lambda step, total: 0.5),))
    batch = sampler.batch(0)
    parts = make_loss(task, sampler)(batch, 0, 100)
    sum_of(list(parts.values())).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in task.model.parameters())
    assert all(p.grad is None for p in model.parameters())
    for tensor in (batch.label_R, teacher_MS, dataset.events.labels["click"]):
        assert not tensor.requires_grad
        assert tensor.grad is None


def test_a_teacher_that_carries_a_gradient_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    task = distilled(dataset, tmp_path, ("kl", 0.5))
    term = on_cached(kl_binary, scores(dataset, task, tmp_path).clone().requires_grad_(True))
    leaky = replace(task.terms[0], loss=term)
    sampler = make_sampler(task)
    with pytest.raises(ValueError, match="the teacher's logits carry a gradient"):
        make_loss(replace(task, terms=(leaky,)), sampler)(sampler.batch(0), 0, 100)

"""The validation figure is the evaluation's own metric, taken on the validation part."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score
from torch import nn

from cascade_kd.cascade import Cascade
from cascade_kd.config import load_dataset_definition
from cascade_kd.data import Dataset, evaluation_requests, load, prepare
from cascade_kd.evaluate import EvaluateConfig, Evaluation, evaluate
from cascade_kd.evaluate.evaluation import Labelled
from cascade_kd.models import Model
from cascade_kd.models.dcnv2 import DCNv2, DCNv2Config
from cascade_kd.models.two_tower import TwoTower, TwoTowerConfig
from cascade_kd.retrieval import IndexConfig
from cascade_kd.stages import RetrievalStage, ScoringStage, event_logits
from cascade_kd.streams import scoped_seed
from cascade_kd.train.monitor import Received, make_monitor

CLICK = Labelled("click", True)


def two_tower(dataset: Dataset, seed: int = 1) -> TwoTower:
    with scoped_seed(seed):
        config = TwoTowerConfig(embedding_size=4, hidden=(8,), output_size=4, dropout=0.5)
        model = TwoTower(config, dataset.online("recall"))
        nn.init.normal_(model.fields.table.weight)
    return model


def ranker(dataset: Dataset) -> DCNv2:
    with scoped_seed(2):
        config = DCNv2Config(embedding_size=4, hidden=(8,), cross_layers=1, dropout=0.5)
        model = DCNv2(config, dataset.online("rank"))
        nn.init.normal_(model.fields.table.weight)
    return model


def validation_as_test(dataset: Dataset) -> Dataset:
    """The set as it stood before the test part: validation events take its place, test events belong to no part.

    With a global time split look-ups read all earlier events whatever their part, so no feature changes.
    """
    assert dataset.split == "time"
    part_N = dataset.events.part_N.clone()
    part_N[dataset.rows("test")], part_N[dataset.rows("valid")] = 3, 2
    return replace(dataset, events=replace(dataset.events, part_N=part_N))


def evaluated(dataset: Dataset, model: TwoTower, *, keep: int, ranker: Model | None = None) -> Evaluation:
    moved = validation_as_test(dataset)
    cascade = Cascade((RetrievalStage("recall", "recall", keep, moved.online("recall"), model, moved),))
    if ranker is not None:
        cascade = cascade >> ScoringStage("rank", "rank", 5, moved.online("rank"), ranker, moved)
    labelled = {stage.name: CLICK for stage in cascade.stages}
    return evaluate(cascade, moved, labelled, EvaluateConfig(k=(5, 20), mask_seen=True))


@pytest.mark.parametrize(
    "index", [IndexConfig(kind="flat"), IndexConfig(kind="torch"), IndexConfig(kind="ivf", nlist=2, nprobe=1)]
)
@pytest.mark.parametrize("k", [3, 5, 20, 60])
def test_recall_is_that_of_the_evaluation_by_exact_search(dataset: Dataset, k: int, index: IndexConfig) -> None:
    model = two_tower(dataset)
    measure, more_is_better = make_monitor(
        f"recall@{k}", model, dataset, dataset.online("recall"), "click", index=index
    )
    assert more_is_better
    want = evaluated(dataset, model, keep=k).stages["recall"][f"recall@{k}"]["mean"]
    assert measure() == pytest.approx(want, abs=1e-12)
    assert want > 0


@pytest.mark.parametrize("name", ["auc", "logloss"])
@pytest.mark.parametrize("level", ["recall", "rank"])
def test_row_figures_are_those_of_the_evaluation(dataset: Dataset, name: str, level: str) -> None:
    tower, deep = two_tower(dataset), ranker(dataset)
    model: Model = tower if level == "recall" else deep
    features = dataset.online(level)  # type: ignore[arg-type]
    measure, more_is_better = make_monitor(name, model, dataset, features, "click", index=IndexConfig())
    assert more_is_better is (name == "auc")
    want = evaluated(dataset, tower, keep=20, ranker=deep).stages[level][name]["mean"]
    assert measure() == pytest.approx(want, abs=1e-12)
    # and scikit-learn's
    rows = dataset.rows("valid")
    stage = ScoringStage("stage", level, 1, features, model, dataset)  # type: ignore[arg-type]
    probability = event_logits(stage, dataset, "valid", rows).double().sigmoid().numpy()
    label = dataset.events.labels["click"][rows].numpy()
    theirs = roc_auc_score(label, probability) if name == "auc" else log_loss(label, probability)
    assert measure() == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("name", ["auc", "logloss"])
def test_statistics_of_validation_rows_are_of_training_events(tiny_dataset: Path, name: str) -> None:
    """With a split by user validation events of one lie before those of another, and are not looked at."""
    text = tiny_dataset.read_text("utf-8")
    tiny_dataset.write_text(text.replace('[split]\nkind = "time"', '[split]\nkind = "per-user-time"'), "utf-8")
    definition, file = load_dataset_definition(tiny_dataset)
    dataset = load(prepare(definition, base=file.parent))
    assert dataset.split == "per-user-time"
    model, rows = ranker(dataset), dataset.rows("valid")
    features = dataset.online("rank")
    inputs = dataset.inputs(
        [feature.name for feature in features],
        dataset.requests_of(rows, part="valid"),
        dataset.events.item_N[rows],
        torch.arange(len(rows)),
        part="valid",
        event_R=rows,
    )
    with torch.no_grad():
        probability = model.eval()(inputs).logits_R.double().sigmoid().numpy()
    label = dataset.events.labels["click"][rows].numpy()
    want = roc_auc_score(label, probability) if name == "auc" else log_loss(label, probability)
    measure, _ = make_monitor(name, model, dataset, features, "click", index=IndexConfig())
    assert measure() == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("name", ["recall@20", "auc", "logloss"])
def test_it_measures_the_model_as_it_is_now_and_leaves_it_training(dataset: Dataset, name: str) -> None:
    model = two_tower(dataset)
    measure, _ = make_monitor(name, model, dataset, dataset.online("recall"), "click", index=IndexConfig())
    before = measure()
    assert measure() == before
    model.train()
    assert measure() == before  # without dropout
    assert all(module.training for module in model.modules())
    model.load_state_dict(two_tower(dataset, seed=9).state_dict())
    after = measure()
    assert after != before
    other, _ = make_monitor(
        name, two_tower(dataset, 9), dataset, dataset.online("recall"), "click", index=IndexConfig()
    )
    assert after == other()


def test_test_events_do_not_move_it(dataset: Dataset) -> None:
    """Labels and items of the test part may be anything."""
    events = dataset.events
    rows = dataset.rows("test")
    item_N = events.item_N.clone()
    item_N[rows] = item_N[rows].flip(0)
    labels = {name: torch.where(events.part_N == 2, 1 - y_N, y_N) for name, y_N in events.labels.items()}
    changed = replace(dataset, events=replace(events, item_N=item_N, labels=labels))
    for name in ("recall@20", "auc", "logloss"):
        figures = [
            make_monitor(name, two_tower(dataset), d, d.online("recall"), "click", index=IndexConfig())[0]()
            for d in (dataset, changed)
        ]
        assert figures[0] == figures[1]


def test_a_figure_that_is_not_defined_is_nan(dataset: Dataset) -> None:
    labels = {"click": dataset.events.labels["click"] * (dataset.events.part_N != 1)}
    nothing = replace(dataset, events=replace(dataset.events, labels=labels))
    for name in ("auc", "recall@20"):
        measure, _ = make_monitor(
            name, two_tower(dataset), nothing, dataset.online("recall"), "click", index=IndexConfig()
        )
        assert math.isnan(measure())


@pytest.mark.parametrize("upstream_weight", [0.0, 0.7])
@pytest.mark.parametrize("k", [3, 5])
def test_recall_of_a_later_stage_is_of_what_it_received_as_it_serves_it(
    dataset: Dataset, k: int, upstream_weight: float
) -> None:
    tower, deep = two_tower(dataset), ranker(dataset)
    first = RetrievalStage("recall", "recall", 12, dataset.online("recall"), tower, dataset, IndexConfig())
    asked = evaluation_requests(dataset, "valid", "click")
    received = first(asked.requests, None)
    measure, more_is_better = make_monitor(
        f"recall@{k}",
        deep,
        dataset,
        dataset.online("rank"),
        "click",
        index=IndexConfig(),
        received=Received(received, upstream_weight),
    )
    assert more_is_better
    stage = ScoringStage("rank", "rank", k, dataset.online("rank"), deep, dataset, upstream_weight)
    found = stage(asked.requests, received).item_BK
    shares = []
    for number, (start, end) in enumerate(pairwise(asked.offsets_B1.tolist())):
        positives = set(asked.positive_P[start:end].tolist())
        if positives:
            shares.append(len(positives & set(found[number].tolist())) / len(positives))
    assert measure() == pytest.approx(statistics.fmean(shares), abs=1e-12)
    assert 0 < measure() < 1

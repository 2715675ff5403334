"""Every figure of an evaluation against double loops in plain Python over the tiny world."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from cascade_kd.cascade import Cascade
from cascade_kd.config import load_dataset_definition
from cascade_kd.data import Dataset, load, prepare
from cascade_kd.evaluate import EvaluateConfig, evaluate
from cascade_kd.evaluate.evaluation import Labelled
from cascade_kd.models.dcnv2 import DCNv2, DCNv2Config
from cascade_kd.models.two_tower import TwoTower, TwoTowerConfig
from cascade_kd.retrieval import IndexConfig
from cascade_kd.stages import LogitStage, RetrievalStage, ScoringStage
from cascade_kd.streams import scoped_seed
from cascade_kd.types import ITEM_ID, USER_ID, Candidates, Inputs, Output, Requests

Tree = dict[str, Any]
Order = Callable[["Asked", list[int]], list[int]]  # of a request and what is to be ordered, best first
CLICK = Labelled("click", True)
ROW_METRICS = {"auc", "gauc", "logloss", "ece"}
K = (1, 5, 10, 40)


class Row(NamedTuple):
    """One logged event."""

    number: int
    user: int
    item: int
    time: int
    request: int
    label: int


@dataclass
class Asked:
    """One request, as a loop over the log sees it."""

    first: int  # the number of its first event
    user: int
    time: int
    positives: set[int]


@dataclass(frozen=True)
class Recipe:
    """A stage in plain Python: how it orders and how much it keeps."""

    name: str
    keep: int
    order: Order


# -- the world in plain Python


def log(dataset: Dataset, part: int, label: str = "click") -> list[Row]:
    events = dataset.events
    assert events.request_N is not None
    columns = [events.user_N, events.item_N, events.time_N, events.request_N, events.labels[label].long()]
    rows = zip(*(column.tolist() for column in columns), strict=True)
    parts = events.part_N.tolist()
    return [Row(number, *row) for number, row in enumerate(rows) if parts[number] == part]


def questions(dataset: Dataset, label: str = "click") -> list[Asked]:
    """The test requests with a positive."""
    requests: dict[int, Asked] = {}
    for row in log(dataset, 2, label):
        asked = requests.setdefault(row.request, Asked(row.number, row.user, row.time, set()))
        if row.label:
            asked.positives.add(row.item)
    return [asked for _, asked in sorted(requests.items()) if asked.positives]


def seen(dataset: Dataset) -> dict[int, set[int]]:
    """What every user has before the test part."""
    items: dict[int, set[int]] = {user: set() for user in range(dataset.num_users + 1)}
    for row in [*log(dataset, 0), *log(dataset, 1)]:
        items[row.user].add(row.item)
    return items


def run_in_python(
    dataset: Dataset, recipes: Sequence[Recipe], asked: Sequence[Asked], mask_seen: bool
) -> list[list[list[int]]]:
    """The order [stage][request] of what each stage receives; the first stage's is cut at its ``keep``."""
    own = seen(dataset)
    catalogue = range(1, dataset.num_items + 1)
    received = [[i for i in catalogue if not (mask_seen and i in own[request.user])] for request in asked]
    orders = []
    for number, recipe in enumerate(recipes):
        ordered = [recipe.order(request, items) for request, items in zip(asked, received, strict=True)]
        received = [items[: recipe.keep] for items in ordered]
        orders.append(received if number == 0 else ordered)
    return orders


# -- figures in plain Python


def assert_is_mean(got: Tree, values: Sequence[float], **extra: float) -> None:
    want = {"mean": statistics.fmean(values), "stderr": statistics.stdev(values) / math.sqrt(len(values))}
    assert got == {**{key: pytest.approx(x, abs=1e-9) for key, x in want.items()}, "n": len(values), **extra}


def recalls(lists: Sequence[Sequence[int]], asked: Sequence[Asked], k: int) -> list[float]:
    shares = []
    for items, request in zip(lists, asked, strict=True):
        hits = sum(1 for item in items[:k] if item in request.positives)
        shares.append(hits / len(request.positives))
    return shares


def ndcgs(lists: Sequence[Sequence[int]], asked: Sequence[Asked], k: int) -> list[float]:
    values = []
    for items, request in zip(lists, asked, strict=True):
        gain = sum(1 / math.log2(rank + 1) for rank, i in enumerate(items[:k], start=1) if i in request.positives)
        ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(request.positives)) + 1))
        values.append(gain / ideal)
    return values


def pair_score(a: float, b: float) -> float:
    return 1.0 if a > b else 0.5 if a == b else 0.0


def auc_in_python(score: Sequence[float], label: Sequence[int]) -> tuple[float, float]:
    """The share of pairs in order, and DeLong's standard error."""
    positives = [s for s, y in zip(score, label, strict=True) if y]
    negatives = [s for s, y in zip(score, label, strict=True) if not y]
    above = [statistics.fmean(pair_score(p, q) for q in negatives) for p in positives]
    below = [statistics.fmean(pair_score(p, q) for p in positives) for q in negatives]
    spread = statistics.variance(above) / len(above) + statistics.variance(below) / len(below)
    return statistics.fmean(above), math.sqrt(spread)


def assert_row_metrics(tree: Tree, bins: Sequence[Tree], logit: Sequence[float], rows: Sequence[Row]) -> None:
    """auc and gauc of the logits; logloss, ece and the calibration bins of ``logit`` as log-odds."""
    label = [row.label for row in rows]
    mean, stderr = auc_in_python(logit, label)
    assert tree["auc"] == {"mean": pytest.approx(mean), "stderr": pytest.approx(stderr), "n": len(rows)}

    by_user: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        by_user.setdefault(row.user, []).append(place)
    both = {u: own for u, own in by_user.items() if 0 < sum(label[place] for place in own) < len(own)}
    within = {
        u: statistics.fmean(pair_score(logit[p], logit[q]) for p in own if label[p] for q in own if not label[q])
        for u, own in both.items()
    }
    weight = sum(len(own) for own in both.values())
    gauc = sum(len(own) * within[u] for u, own in both.items()) / weight
    spread = sum((len(own) * (within[u] - gauc)) ** 2 for u, own in both.items())
    assert tree["gauc"]["mean"] == pytest.approx(gauc)
    assert tree["gauc"]["stderr"] == pytest.approx(math.sqrt(len(both) / (len(both) - 1) * spread) / weight)
    assert tree["gauc"]["n"] == len(both)
    assert tree["gauc"]["left_out_share"] == pytest.approx(1 - len(both) / len(by_user))
    assert tree["gauc"]["left_out_rows_share"] == pytest.approx(1 - weight / len(rows))

    losses = [math.log1p(math.exp(-x if y else x)) for x, y in zip(logit, label, strict=True)]
    assert tree["logloss"]["mean"] == pytest.approx(statistics.fmean(losses))
    assert tree["logloss"]["stderr"] == pytest.approx(statistics.stdev(losses) / math.sqrt(len(rows)))
    assert tree["logloss"]["n"] == len(rows)

    cells: dict[int, list[int]] = {}
    for place, x in enumerate(logit):
        smaller = sum(1 for other in logit if other < x)
        ties = sum(1 for other in logit if other == x)
        cells.setdefault(20 * (2 * smaller + ties) // (2 * len(rows)), []).append(place)
    want, gap = [], 0.0
    for _, places in sorted(cells.items()):
        predicted = statistics.fmean(1 / (1 + math.exp(-logit[place])) for place in places)
        observed = statistics.fmean(label[place] for place in places)
        want.append({"predicted": pytest.approx(predicted), "observed": pytest.approx(observed), "n": len(places)})
        gap += len(places) / len(rows) * abs(predicted - observed)
    assert list(bins) == want
    assert tree["ece"]["mean"] == pytest.approx(gap)
    assert (tree["ece"]["stderr"], tree["ece"]["n"]) == (None, len(rows))


def platt_in_python(logit: Sequence[float], label: Sequence[int]) -> tuple[float, float]:
    """Newton's method on the log loss against Platt's targets."""
    positives, negatives = sum(label), len(label) - sum(label)
    target = [(positives + 1) / (positives + 2) if y else 1 / (negatives + 2) for y in label]
    a = b = 0.0
    for _ in range(50):
        p = [1 / (1 + math.exp(-a * x - b)) for x in logit]
        residual = [q - t for q, t in zip(p, target, strict=True)]
        weight = [q * (1 - q) for q in p]
        ga = sum(r * x for r, x in zip(residual, logit, strict=True))
        gb = sum(residual)
        haa = sum(w * x * x for w, x in zip(weight, logit, strict=True))
        hab = sum(w * x for w, x in zip(weight, logit, strict=True))
        hbb = sum(weight)
        determinant = haa * hbb - hab * hab
        a -= (hbb * ga - hab * gb) / determinant
        b -= (haa * gb - hab * ga) / determinant
    return a, b


def assert_list_metrics(tree: Tree, lists: Sequence[Sequence[int]], asked: Sequence[Asked], ks: set[int]) -> None:
    names = {f"{name}@{k}" for name in ("recall", "ndcg") for k in ks}
    assert {name for name in tree if "@" in name} == names
    for k in ks:
        assert_is_mean(tree[f"recall@{k}"], recalls(lists, asked, k), without_positives=0)
        assert_is_mean(tree[f"ndcg@{k}"], ndcgs(lists, asked, k), without_positives=0)


def assert_funnel(
    tree: Tree, recipes: Sequence[Recipe], orders: Sequence[Sequence[list[int]]], asked: Sequence[Asked]
) -> None:
    before = [1.0] * len(asked)
    for recipe, lists in zip(recipes, orders, strict=True):
        after = recalls(lists, asked, recipe.keep)
        assert_is_mean(tree["survival"][recipe.name], after, without_positives=0)
        lost = [x - y for x, y in zip(before, after, strict=True)]
        assert_is_mean(tree["lost"][recipe.name], lost, without_positives=0)
        before = after
    assert tree["found"] == tree["survival"][recipes[-1].name]
    assert sum(metric["mean"] for metric in tree["lost"].values()) + tree["found"]["mean"] == 1


# -- stages whose order is known by construction


class KnownTower(nn.Module):
    """Vectors with <u, i> = (u % 7)(i % 11) + (u % 5)(i % 3) + i / 128: no two items of a user score the same."""

    def user_vectors(self, columns: dict[str, Tensor]) -> Tensor:
        user = columns[USER_ID]
        return torch.stack([user % 7, user % 5, torch.ones_like(user)], dim=1).float()

    def item_vectors(self, columns: dict[str, Tensor]) -> Tensor:
        item = columns[ITEM_ID]
        return torch.stack([item % 11, item % 3, item / 128], dim=1).float()

    def forward(self, inputs: Inputs) -> Output:
        user_RD = self.user_vectors(inputs.user)[inputs.row_R]  # type: ignore[arg-type]
        return Output((user_RD * self.item_vectors(inputs.item)).sum(1) / 16 - 2)  # type: ignore[arg-type]


def tower_score(user: int, item: int) -> float:
    return (user % 7) * (item % 11) + (user % 5) * (item % 3) + item / 128


def formula(item: Any, user: Any, time: Any) -> Any:
    """Of ints or of tensors; one of 13 values, so that there are ties."""
    return (item * 17 + user * 5 + time // 7) % 13


@dataclass(frozen=True)
class ByFormula:
    """A later stage in the fewest lines the protocol allows: it only orders."""

    name: str
    keep: int
    level: str = "prerank"
    signals: frozenset[str] = frozenset({"ranking"})

    def order(self, requests: Requests, candidates: Candidates | None) -> Candidates:
        assert candidates is not None
        score_BK = formula(candidates.item_BK, requests.user_B.unsqueeze(1), requests.time_B.unsqueeze(1))
        return candidates.with_scores(score_BK.float())

    def __call__(self, requests: Requests, candidates: Candidates | None) -> Candidates:
        return self.order(requests, candidates).top(self.keep)


@dataclass(frozen=True)
class ByFormulaWithLogits:
    """The same formula upside down, as log-odds."""

    name: str
    keep: int
    level: str = "rank"
    signals: frozenset[str] = frozenset({"ranking", "logits"})

    def logits(self, requests: Requests, item_R: Tensor, row_R: Tensor, event_R: Tensor | None = None) -> Tensor:
        return 2.0 - formula(item_R, requests.user_B[row_R], requests.time_B[row_R]) / 3

    def order(self, requests: Requests, candidates: Candidates | None) -> Candidates:
        assert candidates is not None
        row_BK = torch.arange(len(requests)).unsqueeze(1).expand_as(candidates.item_BK)
        logits_R = self.logits(requests, candidates.item_BK.flatten(), row_BK.flatten())
        return candidates.with_scores(logits_R.view_as(candidates.score_BK))

    def __call__(self, requests: Requests, candidates: Candidates | None) -> Candidates:
        return self.order(requests, candidates).top(self.keep)


RECIPES = (
    Recipe("recall", 30, lambda asked, items: sorted(items, key=lambda i: -tower_score(asked.user, i))),
    Recipe("prerank", 12, lambda asked, items: sorted(items, key=lambda i: (-formula(i, asked.user, asked.time), i))),
    Recipe("rank", 5, lambda asked, items: sorted(items, key=lambda i: (formula(i, asked.user, asked.time), i))),
)


def known_cascade(dataset: Dataset, index: str) -> Cascade:
    features = (dataset.feature(USER_ID), dataset.feature(ITEM_ID))
    recall = RetrievalStage("recall", "recall", 30, features, KnownTower(), dataset, IndexConfig(kind=index))
    return Cascade((recall, ByFormula("prerank", 12), ByFormulaWithLogits("rank", 5)))


@pytest.mark.parametrize(("index", "mask_seen"), [("flat", True), ("torch", False), ("torch", True)])
def test_every_figure_of_stages_with_a_known_order(dataset: Dataset, index: str, mask_seen: bool) -> None:
    labelled = {"recall": CLICK, "prerank": CLICK, "rank": CLICK}
    found = evaluate(known_cascade(dataset, index), dataset, labelled, EvaluateConfig(k=K, mask_seen=mask_seen))
    asked = questions(dataset)
    orders = run_in_python(dataset, RECIPES, asked, mask_seen)
    assert any(len(items) < 30 for items in orders[0]) is mask_seen  # padded lists are among the cases

    for number, (recipe, ks) in enumerate(zip(RECIPES, ({1, 5, 10, 30}, {1, 5, 10, 12}, {1, 5, 10}), strict=True)):
        tree = found.stages[recipe.name]
        assert_list_metrics(tree, orders[number], asked, ks)
        assert tree["seconds_per_1000_requests"] > 0
        rest = {name for name in tree if "@" not in name and "seconds" not in name}
        later = {"popularity", "previous"}
        wanted = {"recall": ROW_METRICS | {"index", "popularity"}, "prerank": later, "rank": ROW_METRICS | later}
        assert rest == wanted[recipe.name]
    assert found.cascade.keys() == {"recall@1", "recall@5", "ndcg@1", "ndcg@5", "survival", "lost", "found"}
    assert_list_metrics(found.cascade, [items[:5] for items in orders[2]], asked, {1, 5})
    assert_funnel(found.cascade, RECIPES, orders, asked)

    rows = log(dataset, 2)
    want = {
        "recall": [tower_score(row.user, row.item) / 16 - 2 for row in rows],
        "rank": [2 - formula(row.item, row.user, row.time) / 3 for row in rows],
    }
    assert found.logits.keys() == found.calibration.keys() == want.keys()
    for name, logit in want.items():
        assert found.logits[name].tolist() == pytest.approx(logit, rel=1e-6)
        exact = found.logits[name].tolist()  # float32, so that ties are the same
        assert_row_metrics(found.stages[name], found.calibration[name], exact, rows)


@pytest.mark.parametrize("mask_seen", [True, False])
def test_every_figure_of_models(dataset: Dataset, mask_seen: bool) -> None:
    """Two-tower, two-tower, DCN-v2 with drawn weights: every pair is scored by itself and sorted in Python."""
    online = dataset.online("recall")
    with scoped_seed(1):
        towers = [TwoTower(TwoTowerConfig(embedding_size=4, hidden=(8,), output_size=4), online) for _ in range(2)]
        ranker = DCNv2(DCNv2Config(embedding_size=4, hidden=(8,), cross_layers=1), dataset.online("rank"))
        for model in (*towers, ranker):
            nn.init.normal_(model.fields.table.weight)  # far from ties
    cascade = Cascade(
        (
            RetrievalStage("recall", "recall", 25, online, towers[0], dataset),
            ScoringStage("prerank", "prerank", 10, online, towers[1], dataset),
            ScoringStage("rank", "rank", 4, dataset.online("rank"), ranker, dataset),
        )
    )

    def by_logits(stage: LogitStage) -> Order:
        def order(asked: Asked, items: list[int]) -> list[int]:
            request = dataset.requests_of(torch.tensor([asked.first]), part="test")
            logit = stage.logits(request, torch.tensor(items), torch.zeros(len(items), dtype=torch.int64)).tolist()
            score = dict(zip(items, logit, strict=True))
            return sorted(items, key=lambda i: (-score[i], i))

        return order

    recipes = [Recipe(stage.name, stage.keep, by_logits(stage)) for stage in cascade.stages]  # type: ignore[arg-type]
    labelled = {"recall": CLICK, "prerank": CLICK, "rank": CLICK}
    found = evaluate(cascade, dataset, labelled, EvaluateConfig(k=K, mask_seen=mask_seen))
    asked = questions(dataset)
    orders = run_in_python(dataset, recipes, asked, mask_seen)
    for number, ks in enumerate(({1, 5, 10, 25}, {1, 5, 10}, {1, 4, 5, 10})):
        assert_list_metrics(found.stages[recipes[number].name], orders[number], asked, ks)
    assert_list_metrics(found.cascade, [items[:4] for items in orders[2]], asked, {1, 4})
    assert_funnel(found.cascade, recipes, orders, asked)

    rows = log(dataset, 2)
    for stage in cascade.stages:
        assert isinstance(stage, LogitStage)
        logit = []
        for row in rows[::10]:
            number = torch.tensor([row.number])
            request = dataset.requests_of(number, part="test")
            logit.append(float(stage.logits(request, torch.tensor([row.item]), torch.tensor([0]), number)))
        exact = found.logits[stage.name].tolist()
        assert exact[::10] == pytest.approx(logit, rel=1e-4, abs=1e-5)
        assert_row_metrics(found.stages[stage.name], found.calibration[stage.name], exact, rows)


def test_a_stage_that_is_no_probability_model_is_calibrated_on_the_validation_part(dataset: Dataset) -> None:
    stage = ByFormulaWithLogits("rank", 5)
    cascade = known_cascade(dataset, "torch")[:1] >> stage
    plain = evaluate(cascade, dataset, {"recall": CLICK, "rank": CLICK}, EvaluateConfig())
    found = evaluate(cascade, dataset, {"recall": CLICK, "rank": Labelled("click", False)}, EvaluateConfig())
    valid, test = log(dataset, 1), log(dataset, 2)
    a, b = platt_in_python(
        [2 - formula(row.item, row.user, row.time) / 3 for row in valid], [row.label for row in valid]
    )
    tree = found.stages["rank"]
    for name in ("logloss", "ece"):
        assert tree[name].pop("calibrated") == "platt"
        assert "calibrated" not in plain.stages["rank"][name]
        assert tree[name]["mean"] < plain.stages["rank"][name]["mean"]
    scaled = [a * x + b for x in found.logits["rank"].double().tolist()]
    assert_row_metrics(tree, found.calibration["rank"], scaled, test)
    for name in ("auc", "gauc", "recall@1"):
        assert tree[name] == plain.stages["rank"][name]
    assert torch.equal(found.logits["rank"], plain.logits["rank"])
    assert found.stages["recall"]["logloss"] == plain.stages["recall"]["logloss"]


def test_calibration_reads_what_the_validation_part_may_read(tiny_dataset: Path) -> None:
    """With a split by user a validation row's statistics are of training events alone."""
    text = tiny_dataset.read_text("utf-8")
    tiny_dataset.write_text(text.replace('[split]\nkind = "time"', '[split]\nkind = "per-user-time"'), "utf-8")
    definition, file = load_dataset_definition(tiny_dataset)
    dataset = load(prepare(definition, base=file.parent))
    assert dataset.split == "per-user-time"
    with scoped_seed(1):
        model = DCNv2(DCNv2Config(embedding_size=4, hidden=(8,), cross_layers=1), dataset.online("rank"))
        nn.init.normal_(model.fields.table.weight)
    rank = ScoringStage("rank", "rank", 5, dataset.online("rank"), model, dataset)
    cascade = known_cascade(dataset, "torch")[:1] >> rank
    found = evaluate(cascade, dataset, {"recall": CLICK, "rank": Labelled("click", False)}, EvaluateConfig())
    valid = log(dataset, 1)
    number = torch.tensor([row.number for row in valid])
    item, place = torch.tensor([row.item for row in valid]), torch.arange(len(valid))
    logit = rank.logits(dataset.requests_of(number, part="valid"), item, place, number)
    a, b = platt_in_python(logit.tolist(), [row.label for row in valid])
    scaled = [a * x + b for x in found.logits["rank"].tolist()]
    losses = [math.log1p(math.exp(-x if row.label else x)) for x, row in zip(scaled, log(dataset, 2), strict=True)]
    assert found.stages["rank"]["logloss"]["mean"] == pytest.approx(statistics.fmean(losses), rel=1e-7)


def test_rows_are_of_the_stages_own_label_and_lists_of_the_last_ones(dataset: Dataset) -> None:
    labelled = {"recall": Labelled("conversion", True), "prerank": CLICK, "rank": CLICK}
    found = evaluate(known_cascade(dataset, "torch"), dataset, labelled, EvaluateConfig(k=K))
    clicks = evaluate(
        known_cascade(dataset, "torch"), dataset, labelled | {"recall": CLICK}, EvaluateConfig(k=K)
    ).stages["recall"]
    tree = found.stages["recall"]
    assert_row_metrics(
        tree, found.calibration["recall"], found.logits["recall"].tolist(), log(dataset, 2, "conversion")
    )
    assert tree["auc"] != clicks["auc"]
    assert tree["recall@30"] == clicks["recall@30"]

    labelled["rank"] = Labelled("conversion", True)
    found = evaluate(known_cascade(dataset, "torch"), dataset, labelled, EvaluateConfig(k=K))
    asked = questions(dataset, "conversion")
    orders = run_in_python(dataset, RECIPES, asked, True)
    assert_list_metrics(found.stages["recall"], orders[0], asked, {1, 5, 10, 30})
    assert_funnel(found.cascade, RECIPES, orders, asked)


def test_the_trace_is_of_the_requests_that_were_counted(dataset: Dataset) -> None:
    labelled = {"recall": CLICK, "prerank": CLICK, "rank": CLICK}
    found = evaluate(known_cascade(dataset, "torch"), dataset, labelled, EvaluateConfig(mask_seen=True))
    asked = questions(dataset)
    assert found.asked.requests.user_B.tolist() == [request.user for request in asked]
    assert found.asked.requests.time_B.tolist() == [request.time for request in asked]
    assert found.trace.requests is found.asked.requests
    orders = run_in_python(dataset, RECIPES, asked, True)
    for step, lists in zip(found.trace.steps, orders, strict=True):
        rows = zip(step.ordered.item_BK, step.ordered.valid_BK, strict=True)
        assert [item_K[valid_K].tolist() for item_K, valid_K in rows] == lists
    own = seen(dataset)
    recalled = found.trace.step("recall").kept
    for request, item_K in zip(asked, recalled.item_BK.tolist(), strict=True):
        assert not own[request.user] & set(item_K)


def test_a_test_part_without_a_positive_has_null_figures_with_the_reason(dataset: Dataset) -> None:
    keep_N = (dataset.events.part_N != 2).float()
    labels = dataset.events.labels | {"click": dataset.events.labels["click"] * keep_N}  # type: ignore[operator]
    nothing = replace(dataset, events=replace(dataset.events, labels=labels))
    cascade = known_cascade(nothing, "torch")
    found = evaluate(cascade, nothing, {stage.name: CLICK for stage in cascade.stages}, EvaluateConfig(k=(1,)))
    assert found.cascade["found"]["mean"] is None
    assert found.cascade["found"]["why"] == "no user has a positive"
    assert found.stages["rank"]["auc"]["why"] == "all 600 rows have label 0"

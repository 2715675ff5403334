"""Whether a teacher's order is worth following is measured on the student's own output, and said where it is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cascade_kd.cascade import Cascade
from cascade_kd.config import load_experiment
from cascade_kd.data import Dataset, evaluation_requests
from cascade_kd.evaluate import EvaluateConfig, Evaluation, evaluate
from cascade_kd.evaluate.evaluation import Labelled
from cascade_kd.experiment import run
from cascade_kd.experiment.rounds import train_rounds
from cascade_kd.experiment.store import Store
from cascade_kd.experiment.workshop import Round, Workshop
from cascade_kd.experiment.worth import notes_on_teachers, order_of_kept
from cascade_kd.metrics import hits, recall_at
from cascade_kd.train import ProgressLog
from cascade_kd.types import Candidates, Requests

RRD = '[[distill]]\nteacher = "{}"\nstudent = "{}"\nmethod = "rrd"\nlists = "catalogue"\n'
CLICK = Labelled("click", True)


@pytest.fixture
def trained(tiny: Callable[..., Path], dataset: Dataset, tmp_path: Path, round_0: Path) -> Round:
    with ProgressLog(quiet=True) as progress:
        config = load_experiment(tiny(epochs=1, distill=""))
        shop = Workshop(config, dataset, tmp_path / "run", Store(round_0), progress)
        return train_rounds(shop, 0)[0]


def evaluated(dataset: Dataset, *stages: Any) -> Evaluation:
    return evaluate(Cascade(stages), dataset, {stage.name: CLICK for stage in stages}, EvaluateConfig(k=(3, 5)))


@pytest.mark.parametrize("upstream_weight", [0.0, 0.8])
def test_figures_are_those_of_a_cascade_in_which_the_teacher_comes_next(
    trained: Round, dataset: Dataset, tiny: Callable[..., Path], upstream_weight: float
) -> None:
    recall, prerank, rank = (trained[name] for name in ("recall", "prerank", "rank"))
    heavy: Any = replace(rank.stage, upstream_weight=upstream_weight)  # type: ignore[type-var]
    trained = trained | {"rank": replace(rank, stage=heavy)}
    config = load_experiment(tiny(distill=RRD.format("rank", "prerank") + RRD.format("rank", "recall")))
    base = evaluated(dataset, recall.stage, prerank.stage, heavy)
    by_prerank, by_recall = (order_of_kept(config, trained, pair, base) for pair in config.distill)
    keep = config.stages[-1].keep
    names = {f"recall@{keep}", f"ndcg@{keep}"}
    for found, student in ((by_prerank, "prerank"), (by_recall, "recall")):
        assert found["teacher"].keys() == found["student"].keys() == names
        for name in names:
            assert found["student"][name] == base.stages[student][name]
        assert found["teacher"] != found["student"]
    assert by_prerank["teacher"] == {name: base.stages["rank"][name] for name in names}
    # From recall's output a teacher that counts scores in is reached through the pre-ranker, which keeps everything.
    between = [] if not upstream_weight else [replace(prerank.stage, keep=recall.stage.keep)]  # type: ignore[type-var]
    direct = evaluated(dataset, recall.stage, *between, heavy)
    assert by_recall["teacher"] == {name: direct.stages["rank"][name] for name in names}


class Backwards:
    """Orders what it is given by falling scores, the best last."""

    name, signals = "rank", frozenset({"ranking"})

    def order(self, requests: Requests, candidates: Candidates) -> Candidates:
        return candidates.with_scores(-candidates.score_BK)


def test_a_teacher_that_orders_worse_is_noted(trained: Round, dataset: Dataset, tiny: Callable[..., Path]) -> None:
    config = load_experiment(tiny(distill=RRD.format("rank", "recall")))
    base = evaluated(dataset, *(trained[name].stage for name in ("recall", "prerank", "rank")))
    pair = config.distill[0]
    backwards: Any = Backwards()
    found = order_of_kept(config, trained | {"rank": replace(trained["rank"], stage=backwards)}, pair, base)
    name = f"ndcg@{config.stages[-1].keep}"
    assert found["teacher"][name]["mean"] < found["student"][name]["mean"]
    (note,) = notes_on_teachers(config, "7", {"distill": {pair.name: {"order_of_kept": found}}})
    assert note.startswith("Seed 7: 'rank' orders what 'recall' hands on no better than 'recall' does (ndcg@")
    assert f"{found['teacher'][name]['mean']:.4f}, against {found['student'][name]['mean']:.4f}" in note
    other = {"teacher": found["student"], "student": found["teacher"]}
    assert not list(notes_on_teachers(config, "7", {"distill": {pair.name: {"order_of_kept": other}}}))


@pytest.mark.slow
def test_a_report_has_it_where_lists_teach_alone(tiny: Callable[..., Path], tmp_path: Path) -> None:
    rows = '[[distill]]\nteacher = "rank"\nstudent = "prerank"\nmethod = "logit"\n'
    overrides = ["stage.recall.train.max_steps=2", "stage.prerank.train.max_steps=2"]
    config = load_experiment(tiny(epochs=1, distill=RRD.format("rank", "recall") + rows), overrides=overrides)
    trees = run(config, tmp_path / "run", progress=ProgressLog(quiet=True)).report.seeds["0"]["distill"]
    assert "order_of_kept" in trees["rank->recall:rrd"]
    assert "order_of_kept" not in trees["rank->prerank:logit"]


def test_a_later_stage_can_stop_by_its_order_of_what_it_receives(
    tiny: Callable[..., Path], dataset: Dataset, tmp_path: Path
) -> None:
    """The figure is the cascade's own on the validation part, so that another weight of the scores makes another."""
    store = Store(tmp_path / "store")
    curves = []
    for number, weight in enumerate((0.0, 3.0)):
        overrides = ["stage.rank.train.monitor=recall@5", f"stage.rank.upstream_weight={weight}"]
        config = load_experiment(tiny(distill=""), overrides=overrides)
        with ProgressLog(quiet=True) as progress:
            rounds = train_rounds(Workshop(config, dataset, tmp_path / f"run-{number}", store, progress), 0)
        curves.append(rounds[0]["rank"].curve)
    plain, weighted = curves
    assert {point["metric"] for point in plain} == {"recall@5"}
    assert [point["loss"] for point in plain] == [point["loss"] for point in weighted]
    assert [point["value"] for point in plain] != [point["value"] for point in weighted]
    asked = evaluation_requests(dataset, "valid", "click")
    served = Cascade(tuple(rounds[0][name].stage for name in ("recall", "prerank", "rank")))(asked.requests)
    hit_BK = hits(served.item_BK, served.valid_BK, asked.offsets_B1, asked.positive_P)
    best = max(point["value"] for point in weighted)
    assert recall_at(hit_BK, asked.offsets_B1.diff(), 5).mean == pytest.approx(best, abs=1e-12)

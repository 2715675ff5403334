"""The experiments of benchmarks/distill: every method is a good experiment, and what its table says of figures."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from cascade_kd.cascade import Cascade
from cascade_kd.config import load_experiment
from cascade_kd.data import evaluation_requests
from cascade_kd.experiment.rounds import train_rounds
from cascade_kd.experiment.store import Store
from cascade_kd.experiment.workshop import Workshop
from cascade_kd.metrics import hits, recall_at
from cascade_kd.train import ProgressLog

FOLDER = Path(__file__).parents[2] / "benchmarks" / "distill"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``module("table")``: a script of the folder, imported as it is run."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = ("methods", "list_methods", "reweigh", "running", "table", "lists", "sweep", "codistill", "sampled")

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in names:
        sys.modules.pop(name, None)


def test_every_method_is_a_good_experiment(module: Any, tmp_path: Path) -> None:
    seen = set()
    lists = module("list_methods")
    for world in (*module("methods").WORLDS, *lists.LIST_WORLDS, lists.SWEEP, *module("codistill").WORLDS):
        for method in world.methods:
            assert (world.name, method.name) not in seen
            seen.add((world.name, method.name))
            file = world.write(tmp_path, method.toml(method.chosen))
            assert "WEIGHT" not in file.read_text("utf-8")
            config = load_experiment(file, overrides=method.settings)
            taught = {pair.student for pair in config.distill}
            assert (taught or {config.codistill and config.codistill.stage}) == {world.student}


def row(seeds: dict[str, tuple[float, float, float]]) -> dict[str, Any]:
    """A row of results of (student, distilled, teacher) AUC by seed."""

    def values(auc: float) -> dict[str, float]:
        return {"auc": auc, "gauc": auc, "logloss": 1 - auc, "ece": 0.0, "recall@10": auc / 10}

    of_seeds = {
        seed: {"student": values(a), "distilled": values(b), "teachers": {"rank": values(c)}, "taught": "rank"}
        for seed, (a, b, c) in seeds.items()
    }
    return {"world": "movielens-1m", "method": "kl", "weight": 0.5, "seeds": of_seeds}


def test_recovery_is_of_means_and_errors_are_of_paired_differences(module: Any) -> None:
    table = module("table")
    world = next(w for w in module("methods").WORLDS if w.name == "movielens-1m")
    found = row({"0": (0.80, 0.81, 0.82), "1": (0.70, 0.73, 0.76)})
    assert table.recovery(found, table.goals(world, [found])) == pytest.approx((0.77 - 0.75) / (0.79 - 0.75))
    # Differences .01 and .03: mean .02, standard deviation .01 sqrt 2, over sqrt 2.
    lines = table.table(world, [found])
    assert "+0.0200 ± 0.0100" in lines[-1]
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize("script", ["table", "lists", "codistill", "sampled"])
def test_the_readme_holds_the_tables_of_the_results(module: Any, script: str) -> None:
    pytest.importorskip("altair", reason="the extra `report` brings altair")
    table = module(script)
    results = module("running").read_results(table.RESULTS)
    text = (FOLDER.parent / "README.md").read_text("utf-8")
    assert results
    assert table.with_tables(text, results) == text
    assert table.with_tables(text, {}) != text


def test_the_table_of_lists_counts_what_the_student_keeps_and_every_stage_loses(module: Any) -> None:
    pytest.importorskip("altair", reason="the extra `report` brings altair")
    lists = module("lists")
    world = module("list_methods").LIST_WORLDS[0]
    assert world.student == "prerank"

    def cascade(found: float) -> dict[str, float]:
        wide = {"recall@10": {"mean": found}, "ndcg@10": {"mean": found / 2}}
        lost = {"recall": {"mean": 0.4}, "prerank": {"mean": 0.3}, "rank": {"mean": 0.3 - found}}
        whole = wide | {"lost": lost, "survival": {"prerank": {"mean": 0.1 + 2 * found}}}
        tight = {"recall@10": {"mean": 3 * found}, "ndcg@10": {"mean": found}}
        stages = {"prerank": {"ndcg@10": {"mean": 4 * found}}}
        return lists._figures(world, [SimpleNamespace(cascade=whole, stages=stages), SimpleNamespace(cascade=tight)])

    order = {"teacher": 0.09, "student": 0.08}
    seeds = {
        seed: {"before": cascade(0.1), "after": cascade(after), "order of kept": order}
        for seed, after in (("0", 0.11), ("1", 0.13))
    }
    name = world.methods[0].name
    row = {"world": world.name, "method": name, "weight": 0.5, "seeds": seeds}
    found = lists.table(world, [row])
    assert len({line.count("|") for line in found}) == 1
    # Differences .01 and .03: mean .02, standard deviation .01 sqrt 2, over sqrt 2; of what is kept twice that.
    assert found[-1] == (
        f"| {name}, 0.5 | 0.1200 | 0.0600 | 0.4000 | 0.3000 | 0.1800 "
        "| +0.0200 ± 0.0100 | +0.0100 ± 0.0050 "
        "| +0.0600 ± 0.0300 | +0.0200 ± 0.0100 | +0.0800 ± 0.0400 | +0.0400 ± 0.0200 | 2 |"
    )
    text = lists.with_tables("<!-- distill/lists.py -->\nold\n<!-- end -->", {(world.name, name): row})
    assert "old" not in text
    assert "orders with NDCG@10 0.0900, where `prerank` itself has 0.0800" in text


def test_the_picture_has_a_point_for_every_alpha_and_k(module: Any) -> None:
    pytest.importorskip("altair", reason="the extra `report` brings altair")
    lists, methods = module("lists"), module("list_methods")
    results = {}
    for number, method in enumerate(methods.SWEEP.methods):
        before = dict.fromkeys(lists.CHANGES, 0.1)
        seed = {"before": before, "after": {name: 0.1 + number / 100 for name in before}}
        results[methods.SWEEP.name, method.name] = {"method": method.name, "seeds": {"0": seed}}
    spec = lists.picture(results).to_dict()
    points = spec["data"]["values"] if "data" in spec else spec["hconcat"][0]["data"]["values"]
    assert len(points) == len(lists.CHANGES) * (len(methods.ALPHAS) + len(methods.KS))
    assert {(point["what"], point["value"]) for point in points} == {
        *(("alpha", f"{alpha:g}") for alpha in methods.ALPHAS),
        *(("K", f"{k:g}") for k in methods.KS),
    }
    assert max(point["change"] for point in points) == pytest.approx(0.07)


@pytest.mark.slow
def test_weights_are_those_of_the_best_validation_recall(module: Any, tiny: Any, dataset: Any, tmp_path: Path) -> None:
    reweigh = module("reweigh")
    with ProgressLog(quiet=True) as progress:
        shop = Workshop(load_experiment(tiny(epochs=1, distill="")), dataset, tmp_path / "run", Store(), progress)
        (stages,) = train_rounds(shop, 0)
    recall, prerank, rank = (stages[name].stage for name in ("recall", "prerank", "rank"))
    asked = evaluation_requests(dataset, "valid", "click")
    received = recall(asked.requests, None)
    for weight, ordered in reweigh.orders(prerank, asked.requests, received).items():
        served = replace(prerank, upstream_weight=weight).order(asked.requests, received)
        assert torch.equal(ordered.item_BK, served.item_BK)
        assert torch.equal(ordered.valid_BK, served.valid_BK)

    def found(*chain: Any) -> float:
        kept = Cascade(chain)(asked.requests)
        hit_BK = hits(kept.item_BK, kept.valid_BK, asked.offsets_B1, asked.positive_P)
        return recall_at(hit_BK, asked.offsets_B1.diff(), chain[-1].keep).mean or 0.0

    chain = [recall]
    later = reweigh.reweighed(Cascade((recall, prerank, rank)), dataset, "click").stages[1:]
    for stage, chosen in zip((prerank, rank), later, strict=True):
        of_weights = {w: found(*chain, replace(stage, upstream_weight=w)) for w in reweigh.WEIGHTS}
        assert of_weights[chosen.upstream_weight] == max(of_weights.values())
        assert len(set(of_weights.values())) > 1
        chain.append(chosen)


def test_codistillation_counts_steps_to_the_single_models_best(module: Any) -> None:
    codistill = module("codistill")
    world = codistill.WORLDS[0]

    def model(logloss: float, churn: float, curve: list[tuple[int, float]]) -> dict[str, Any]:
        return {"logloss": logloss, "auc": 1 - logloss, "churn": churn, "curve": curve}

    single = {"0": model(0.4, 0.02, [(10, 0.5), (20, 0.4), (30, 0.45)]), "1": model(0.5, 0.02, [(10, 0.4), (20, 0.5)])}
    served = {"0": model(0.39, 0.01, [(10, 0.4), (20, 0.3)]), "1": model(0.47, 0.01, [(10, 0.41)])}
    assert codistill.reached({"1": served["1"]}, single) == "never"
    assert codistill.reached({"0": served["0"]}, single) == "10"
    seeds = {seed: {"single": single[seed], "served": served[seed], "average": single[seed]} for seed in single}
    results = {(world.name, codistill.PHASES): {"seeds": seeds}}
    found = codistill.table(world, results)
    assert len({line.count("|") for line in found}) == 1
    # Differences -.01 and -.03; the single model's own best after 20 and 10 steps.
    assert found[2] == "| single | 0.45000 | 0.55000 | 0.02000 |  |  |  | 15 | 2 |"
    assert found[-1] == (
        f"| {codistill.PHASES} | 0.43000 | 0.57000 | 0.01000 "
        "| -0.02000 ± 0.01000 | +0.02000 ± 0.01000 | -50% | 10 (1 of 2 seeds) | 2 |"
    )


def test_the_curves_of_codistillation_are_of_the_served_peer(module: Any) -> None:
    rank = {"logloss": {"mean": 0.4}, "auc": {"mean": 0.6}, "churn": {"mean": 0.01}}
    metrics = {"baseline": {"stages": {"rank": rank}}, "stages": {"rank": rank}, "teachers": {}}
    event = {"seed": 3, "stage": "rank", "step": 10, "value": 0.5}
    events = [event | {"round": 0}, event | {"round": 1, "value": 0.4}, event | {"round": 1, "stage": "rank.peer1"}]
    events += [event | {"round": 1, "seed": 4}, {"seed": 3, "round": 1, "stage": "rank", "step": 5, "peers": {"1": 5}}]
    found = module("codistill").figures(metrics, "3", events)
    assert found["single"]["curve"] == [(10, 0.5)]
    assert found["served"]["curve"] == [(10, 0.4)]
    assert found["served"]["logloss"] == 0.4
    assert found["average"] == {}


def test_an_empty_block_of_the_readme_is_filled_and_nothing_behind_it_lost(module: Any) -> None:
    text = "<!-- a.py -->\n<!-- end -->\nbetween\n<!-- b.py -->\nold\n<!-- end -->\n"
    filled = module("running").in_readme(text, "a.py", ["new", ""])
    assert filled == "<!-- a.py -->\nnew\n<!-- end -->\nbetween\n<!-- b.py -->\nold\n<!-- end -->\n"

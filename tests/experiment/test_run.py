"""A whole run: what it writes, what it refuses, what it says."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from cascade_kd.config import load_experiment
from cascade_kd.errors import RunError, UserError
from cascade_kd.experiment import RunResult, run
from cascade_kd.experiment.run import choose_device, outside_bands
from cascade_kd.experiment.rundir import first_difference
from cascade_kd.serve import recommend
from cascade_kd.train import ProgressLog, load_checkpoint

Tiny = Callable[..., Path]


def go(file: Path, out: Path, *overrides: str, resume: bool = False, **keys: Any) -> RunResult:
    config = load_experiment(file, overrides=overrides, **keys)
    return run(config, out, device="cpu", resume=resume, progress=ProgressLog(quiet=True))


def leaves(tree: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for key, node in tree.items():
        if isinstance(node, dict) and "mean" in node:
            yield f"{path}/{key}", node
        elif isinstance(node, dict):
            yield from leaves(node, f"{path}/{key}")


def test_the_run_directory_is_as_promised(tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "run"
    go(tiny(seeds=[0, 3]), out)
    names = {path.name for path in out.iterdir()}
    assert names == {"config.toml", "metrics.json", "report.html", "events.ndjson", "checkpoints", "origin"}
    for seed in (0, 3):
        for number, stage in ((0, "recall"), (0, "prerank"), (0, "rank"), (1, "prerank")):
            files = {path.name for path in (out / "checkpoints" / str(seed) / str(number) / stage).iterdir()}
            assert files == {"best.json", "best.safetensors", "last.json", "last.safetensors"}
    document = json.loads((out / "metrics.json").read_text())
    assert list(document) == ["schema", "run", "seeds", "summary"]
    assert document["schema"] == 1
    about = {
        "name",
        "config_sha256",
        "data_sha256",
        "commit",
        "versions",
        "device",
        "threads",
        "ranks",
        "wall_s",
        "peak_rss_bytes",
    }
    assert set(document["run"]) == about
    assert set(document["seeds"]) == {"0", "3"}
    for tree in document["seeds"].values():
        assert set(tree) == {"stages", "cascade", "teachers", "baseline", "distill"}
        assert set(tree["baseline"]) == {"stages", "cascade", "reference"}
        assert {"popularity", "random", "oracle"} == set(tree["baseline"]["reference"])
        for stage, own in (("recall", 20), ("prerank", 10), ("rank", 5)):
            assert {"auc", "gauc", "logloss", "ece", "recall@1", f"recall@{own}"} <= set(tree["stages"][stage])
        pair = tree["distill"]["rank->prerank:logit"]
        assert {"tau", "overlap@1", "overlap@10", "recovery"} == set(pair)
        assert set(pair["recovery"]) == {"auc", "gauc"}
        assert tree["stages"]["recall"]["logloss"]["calibrated"] == "platt"
        assert "calibrated" not in tree["stages"]["rank"]["logloss"]
        assert tree["stages"]["prerank"] != tree["baseline"]["stages"]["prerank"]
        for path, leaf in leaves(tree):
            assert {"mean", "stderr", "n"} <= set(leaf), path
            assert leaf["mean"] is not None or leaf["why"], path
        lost = [leaf["mean"] for leaf in tree["cascade"]["lost"].values()]
        assert (
            math.fsum([*lost, tree["cascade"]["found"]["mean"]]) == sum(lost) + tree["cascade"]["found"]["mean"] == 1.0
        )
        assert tree["cascade"]["found"]["mean"] == pytest.approx(tree["cascade"]["recall@5"]["mean"], abs=1e-11)
    summary = document["summary"]["stages"]["rank"]["auc"]
    values = [document["seeds"][seed]["stages"]["rank"]["auc"]["mean"] for seed in ("0", "3")]
    assert summary["mean"] == pytest.approx(sum(values) / 2)
    assert summary["sd"] == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2))
    assert summary["seeds"] == 2
    assert (out / "report.html").read_text().startswith("<!DOCTYPE html>")
    points = [json.loads(line) for line in (out / "events.ndjson").read_text().splitlines()]
    assert {(p["seed"], p["round"], p["stage"]) for p in points} >= {(0, 0, "recall"), (3, 1, "prerank")}
    assert tomllib.loads((out / "config.toml").read_text())["name"] == "tiny"


def test_the_resolved_config_runs_to_the_same_figures(tiny: Tiny, tmp_path: Path) -> None:
    first = go(tiny(), tmp_path / "a", "stage.rank.train.learning_rate=5e-3")
    second = go(tmp_path / "a" / "config.toml", tmp_path / "b")
    assert first.report.seeds["0"]["cascade"] == second.report.seeds["0"]["cascade"]


def test_models_beat_chance_and_stay_below_the_truth(tiny: Tiny, tmp_path: Path) -> None:
    tree = go(tiny(epochs=6), tmp_path / "run").report.seeds["0"]
    best = tree["baseline"]["reference"]["oracle"]["auc"]["mean"]
    for stage in ("prerank", "rank"):
        assert 0.5 < tree["stages"][stage]["auc"]["mean"] < best < 1
    assert tree["stages"]["recall"]["recall@20"]["mean"] > 20 / 80


def test_without_distill_is_round_0(tiny: Tiny, tmp_path: Path) -> None:
    distilled = go(tiny(), tmp_path / "with")
    plain = go(tiny(), tmp_path / "without", without_distill=True)
    tree = plain.report.seeds["0"]
    assert tree["distill"] == {}
    assert not (tmp_path / "without" / "checkpoints" / "0" / "1").exists()

    def untimed(metrics: dict[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in metrics.items() if "seconds" not in name}
        return kept | ({"index": untimed(kept["index"])} if "index" in kept else {})

    for stage, metrics in distilled.report.seeds["0"]["baseline"]["stages"].items():
        assert untimed(metrics) == untimed(tree["stages"][stage])
    assert tree["stages"]["recall"]["index"]["recall@20"]["mean"] == 1


def test_later_rounds_use_the_round_before(tiny: Tiny, tmp_path: Path) -> None:
    go(tiny(extra="rounds = 2"), tmp_path / "run", "stage.rank.refresh=true")
    folder = tmp_path / "run" / "checkpoints" / "0"
    keys = {
        (number, stage): json.loads((folder / str(number) / stage / "best.json").read_text())["key"]
        for number, stage in ((0, "prerank"), (1, "prerank"), (2, "prerank"), (0, "rank"), (1, "rank"), (2, "rank"))
    }
    assert len(set(keys.values())) == 5  # the ranker of round 1 sees what that of round 0 saw: lists of round 0
    assert keys[0, "rank"] == keys[1, "rank"]
    assert not (folder / "1" / "recall").exists()


def test_a_run_is_not_overwritten_and_resume_wants_the_same(tiny: Tiny, tmp_path: Path) -> None:
    file, out = tiny(epochs=1), tmp_path / "run"
    with pytest.raises(RunError, match="holds no run to resume"):
        go(file, out, resume=True)
    go(file, out)
    with pytest.raises(RunError, match="already holds a run; continue it with --resume"):
        go(file, out)
    with pytest.raises(RunError, match=r"another configuration: distill\.0\.weight was 0\.5, now 0\.25"):
        go(file, out, "distill.0.weight=0.25", resume=True)
    text = (tmp_path / "tiny.toml").read_text()
    (tmp_path / "tiny.toml").write_text(text.replace("seed = 0", "seed = 1", 1))
    with pytest.raises(RunError, match=r"on other data|another configuration"):
        go(file, out, resume=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("dear")
    with pytest.raises(RunError, match="not empty and holds no run"):
        go(file, tmp_path / "full")


def test_a_finished_run_resumes_to_the_same_figures(tiny: Tiny, tmp_path: Path) -> None:
    first = go(tiny(epochs=1), tmp_path / "run")
    again = go(tiny(epochs=1), tmp_path / "run", resume=True)
    assert again.report.seeds["0"]["cascade"] == first.report.seeds["0"]["cascade"]
    assert again.report.curves == first.report.curves


def test_expected_bands(tiny: Tiny, tmp_path: Path) -> None:
    more = '\n[expected.rank]\nauc = [0.9, 1.0]\n[expected.cascade]\n"recall@5" = [0.0, 1.0]\n'
    result = go(tiny(epochs=1, more=more), tmp_path / "run")
    assert len(result.outside) == 1
    assert result.outside[0].startswith("expected.rank.auc: want a mean over seeds in [0.9, 1.0], got 0.")
    config = load_experiment(tiny(epochs=1, more=more), overrides=["expected.rank.auc=[0.0,1.0]"])
    assert outside_bands(config, result.report) == []


def test_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    with pytest.raises(UserError, match="--device cuda: this torch sees no CUDA"):
        choose_device("cuda")


def test_recommendations_are_in_the_users_own_ids(tiny: Tiny, tmp_path: Path) -> None:
    result = go(tiny(epochs=1), tmp_path / "run")
    user = result.dataset.vocabularies["user_id"][4]
    top = recommend(result.cascades[0], result.dataset, user, k=3)
    assert top.columns == ["item", "score"]
    assert len(top) == 3
    assert set(top["item"]) <= set(result.dataset.vocabularies["item_id"])
    assert top["score"].is_sorted(descending=True)
    with pytest.raises(UserError, match="user 'nobody' is not in data set"):
        recommend(result.cascades[0], result.dataset, "nobody")


def write_log(path: Path, days: range, users: int, items: int) -> None:
    generator = torch.Generator().manual_seed(days.start)
    n = 40 * len(days)
    pl.DataFrame(
        {
            "who": torch.randint(1, users + 1, (n,), generator=generator).numpy(),
            "what": torch.randint(1, items + 1, (n,), generator=generator).numpy(),
            "when": torch.arange(n).mul(86400 // 40).add(days.start * 86400).numpy(),
            "clicked": torch.randint(0, 2, (n,), generator=generator).numpy(),
        }
    ).write_csv(path)


def test_init_from_continues_on_newer_events_with_a_grown_vocabulary(tiny: Tiny, tmp_path: Path) -> None:
    dataset = tmp_path / "tiny.toml"
    dataset.write_text(
        'name = "grows"\nlicence = "none"\n[tables.events]\nfile = "log.csv"\n'
        '[roles]\nuser = "who"\nitem = "what"\ntime = "when"\n[labels]\nclick = "clicked = 1"\n'
        '[[feature]]\nname = "clicks"\nkind = "history"\nside = "user"\nevents = "click"\n'
        'length = 5\navailable = "recall"\n'
        '[split]\nkind = "time"\n'
    )
    write_log(tmp_path / "log.csv", range(0, 20), users=20, items=30)
    old = go(tiny(epochs=1), tmp_path / "old")
    write_log(tmp_path / "newer.csv", range(20, 40), users=25, items=36)
    grown = pl.concat([pl.read_csv(tmp_path / "log.csv"), pl.read_csv(tmp_path / "newer.csv")])
    grown.write_csv(tmp_path / "log.csv")
    new = go(tiny(epochs=1, extra=f'init_from = "{tmp_path / "old"}"', name="new"), tmp_path / "new", "seeds=[0]")
    before = load_checkpoint(tmp_path / "old" / "checkpoints/0/0/rank/last.safetensors")
    after = load_checkpoint(tmp_path / "new" / "checkpoints/0/0/rank/last.safetensors")
    table = "fields.table.weight"
    assert after.model[table].shape[0] == before.model[table].shape[0] + 5 + 6
    steps = {c.optimizer["head.weight"]["step"].item() - c.meta["state"]["step"] for c in (before, after)}
    assert steps == {0, before.meta["state"]["step"]}  # Adam's own count went on
    # trained on what came after the old run's training part alone
    newest_old = int(old.dataset.events.time_N[old.dataset.rows("train")].max())
    rows = new.dataset.rows("train")
    newer = int((new.dataset.events.time_N[rows] > newest_old).sum())
    assert after.meta["state"]["step"] == -(-newer // 512)
    with pytest.raises(RunError, match=r"init_from: .*missing; name a finished run"):
        go(tiny(epochs=1, extra=f'init_from = "{tmp_path / "nowhere"}"', name="lost"), tmp_path / "lost")


def test_first_difference() -> None:
    assert first_difference({"a": [1, {"b": 2}]}, {"a": [1, {"b": 2}]}) == ""
    assert first_difference({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}) == "a.1.b was 2, now 3"
    assert first_difference({"a": 1, "b": 1}, {"a": 1}) == "b is gone"
    assert first_difference({"a": 1}, {"a": 1, "b": 1}) == "b is new"


def test_a_data_error_leaves_no_run_behind(tiny: Tiny, tmp_path: Path) -> None:
    file = tiny()
    good = file.read_text("utf-8")
    file.write_text(good.replace('dataset = "tiny.toml"', 'dataset = "gone.toml"'), "utf-8")
    text = (tmp_path / "tiny.toml").read_text("utf-8")
    start, end = text.index("[generator]"), text.index("[roles]")
    table = 'path = "nowhere"\n' + "".join(f'[tables.{t}]\nfile = "{t}.csv"\n' for t in ("events", "users", "items"))
    (tmp_path / "gone.toml").write_text(text[:start] + table + text[end:], "utf-8")
    with pytest.raises(UserError, match="is not there: tried"):
        go(file, tmp_path / "run")
    file.write_text(good, "utf-8")
    quick = [f"stage.{name}.train.max_steps=2" for name in ("recall", "prerank", "rank")]
    go(file, tmp_path / "run", *quick)  # the same folder, without --resume
    assert (tmp_path / "run" / "metrics.json").is_file()

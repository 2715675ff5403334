"""A newcomer's path: a tab-separated file of their own, `init`, `run`; one TOML, no code."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cascade_kd.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in this process: (exit code, stdout, stderr)."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["cascade-kd", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        return int(str(stopped.value.code)), out, err

    return run


def write_log(path: Path, rows: int = 4000) -> None:
    """Shoppers with a taste for one of three shelves; column names of nobody's data set."""
    rng = np.random.default_rng(0)
    shopper = rng.integers(1, 101, rows)
    article = rng.integers(1, 61, rows)
    liked = rng.random(rows) < np.where(shopper % 3 == article % 3, 0.8, 0.15)
    seconds = np.sort(rng.integers(1_600_000_000, 1_610_000_000, rows))
    shelf = np.array(["tea", "coffee", "cocoa"])[article % 3]
    lines = ["shopper\tarticle\tseconds\tbought\tshelf\tprice"]
    lines += [
        f"s{u}\ta{i}\t{t}\t{int(y)}\t{c}\t{1 + i / 7:.2f}"
        for u, i, t, y, c in zip(shopper, article, seconds, liked, shelf, strict=True)
    ]
    path.write_text("\n".join(lines) + "\n", "utf-8")


@pytest.mark.slow  # test_own_data goes the same way
def test_from_a_csv_to_a_report(tmp_path: Path, command: Run) -> None:
    write_log(tmp_path / "purchases.tsv")
    code, out, err = command("init", tmp_path / "purchases.tsv", "--out", tmp_path)
    assert code == 0, err
    dataset, experiment = sorted(tmp_path.glob("*.toml"), key=lambda path: "experiment" in path.name)
    written = tomllib.loads(dataset.read_text())
    assert written["tables"]["events"]["separator"] == "\t"
    assert written["roles"] == {"user": "shopper", "item": "article", "time": "seconds"}
    assert {"shelf", "price"} <= {feature["name"] for feature in written["feature"]}
    code, out, err = command("check", experiment)
    assert code == 0, err
    run = tmp_path / "run"
    fast = [x for stage in ("recall", "prerank", "rank") for x in ("--set", f"stage.{stage}.train.epochs=6")]
    fast += ["--set", "stage.prerank.train.batch_size=256", "--set", "stage.rank.train.batch_size=256"]
    code, out, err = command("run", experiment, "--out", run, "--device", "cpu", *fast)
    assert code == 0, err
    assert "Stages" in out
    tree = json.loads((run / "metrics.json").read_text())["seeds"]["0"]
    last = list(tree["stages"])[-1]
    assert tree["stages"][last]["auc"]["mean"] > 0.7  # the taste can be learnt from what `init` found
    assert (run / "report.html").stat().st_size > 10_000


def test_the_same_csv_with_a_toml_by_hand(tmp_path: Path, command: Run) -> None:
    write_log(tmp_path / "purchases.tsv")
    (tmp_path / "shop.toml").write_text(
        """
name = "shop"
licence = "our own"
[tables.events]
file = "purchases.tsv"
separator = "\\t"
[roles]
user = "shopper"
item = "article"
time = "seconds"
[labels]
purchase = "bought = 1"
[[feature]]
name = "shelf"
kind = "categorical"
side = "item"
table = "events"
available = "recall"
[[feature]]
name = "shopper_shelf_rate"
kind = "statistic"
side = "pair"
keys = ["user", "item.shelf"]
value = "purchase"
aggregate = "mean"
available = "rank"
[split]
kind = "time"
"""
    )
    stages = "".join(
        f'[[stage]]\nname = "{name}"\nuse = "{use}"\nkeep = {keep}\ntrain.label = "purchase"\ntrain.epochs = 2\n'
        for name, use, keep in (("recall", "recall/two-tower", 30), ("rank", "rank/dcnv2", 5))
    )
    (tmp_path / "mine.toml").write_text(
        f'name = "mine"\ndataset = "shop.toml"\n{stages}[evaluate]\nmask_seen = false\n'
    )
    code, _, err = command("run", tmp_path / "mine.toml", "--out", tmp_path / "run", "--device", "cpu")
    assert code == 0, err
    tree = json.loads((tmp_path / "run" / "metrics.json").read_text())["seeds"]["0"]
    assert set(tree["stages"]) == {"recall", "rank"}
    assert tree["distill"] == {}


def test_a_privileged_feature_is_refused_with_its_stage(tmp_path: Path, command: Run) -> None:
    write_log(tmp_path / "purchases.tsv")
    assert command("init", tmp_path / "purchases.tsv", "--out", tmp_path)[0] == 0
    experiment = next(path for path in tmp_path.glob("*.toml") if "experiment" in path.name)
    dataset = next(path for path in tmp_path.glob("*.toml") if "experiment" not in path.name)
    dataset.write_text(dataset.read_text().replace('available = "recall"', 'available = "rank"'))
    code, _, err = command("check", experiment, "--set", 'stage.prerank.features=["user_id","item_id","shelf"]')
    assert code == 2
    assert "'shelf' is available at 'rank'" in err
    assert "only a teacher may see it" in err

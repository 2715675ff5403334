"""A set of implicit feedback, where every event is a positive, from a CSV to a report."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cascade_kd.config import load_experiment
from cascade_kd.errors import DataError
from cascade_kd.experiment import run
from cascade_kd.train import ProgressLog

DATASET = """\
name = "baskets"
licence = "none"
[tables.events]
file = "events.csv"
[roles]
user = "user"
item = "item"
time = "time"
[labels]
bought = "{bought}"
[[feature]]
name = "history"
kind = "history"
side = "user"
length = 5
available = "recall"
"""

EXPERIMENT = """\
name = "implicit"
dataset = "baskets.toml"
seeds = [0]

[[stage]]
name = "recall"
use = "recall/two-tower"
keep = 30
model = {{ embedding_size = 8, hidden = [16], output_size = 8 }}
train = {{ label = "bought", batch_size = 128, epochs = 4, learning_rate = 1e-2, samples = [
  {{ from = "in-batch" }}, {{ from = "popularity", per_positive = 4, power = 0.5 }} ] }}

[[stage]]
name = "prerank"
use = "prerank/two-tower"
keep = 10
model = {{ embedding_size = 8, hidden = [16], output_size = 8 }}
[stage.train]
label = "bought"
batch_size = 256
epochs = 3
learning_rate = 1e-2
{train}
"""

GOOD = 'monitor = "recall@50"\nsamples = [{ from = "impressions" }, { from = "uniform", per_positive = 4 }]'


def write(folder: Path, *, train: str = GOOD, bought: str = "TRUE") -> Path:
    """60 users who buy within one of four groups of 20 items, 25 times each."""
    draw = random.Random(0)
    lines = ["user,item,time"]
    for user in range(60):
        own = draw.sample(range(20 * (user % 4), 20 * (user % 4) + 20), 18)
        own += draw.sample(range(80), 7)
        draw.shuffle(own)
        lines += [f"u{user},i{item},{1_600_000_000 + 1000 * step + user}" for step, item in enumerate(own)]
    (folder / "events.csv").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "baskets.toml").write_text(DATASET.format(bought=bought), "utf-8")
    path = folder / "experiment.toml"
    path.write_text(EXPERIMENT.format(train=train), "utf-8")
    return path


def test_recall_and_prerank_learn_from_positives_alone(tmp_path: Path) -> None:
    file = write(tmp_path)
    result = run(load_experiment(file), tmp_path / "run", device="cpu", progress=ProgressLog(quiet=True))
    stages = result.report.seeds["0"]["stages"]
    reference = result.report.seeds["0"]["baseline"]["reference"]
    for name in ("recall", "prerank"):
        assert stages[name]["recall@10"]["mean"] > 1.3 * reference["random"]["recall@10"]["mean"]
        assert stages[name]["auc"]["mean"] is None  # there is one class only
        assert stages[name]["auc"]["why"]
    curves = [point for point in result.report.curves if point["stage"] == "prerank"]
    assert [point["metric"] for point in curves] == ["recall@50"] * 3
    assert all(point["value"] > 0 for point in curves)
    assert curves[-1]["loss"] < curves[0]["loss"]


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ('monitor = "recall@50"\nsamples = [{ from = "impressions" }]', "which is true for all .* training events"),
        (GOOD.replace("recall@50", "auc"), 'so auc is not defined; set monitor = "recall@50"'),
    ],
)
def test_what_the_check_cannot_know_is_refused_before_any_training(tmp_path: Path, train: str, words: str) -> None:
    file = write(tmp_path, train=train, bought="time > 0")  # true for every row, which only the data tells
    with pytest.raises(DataError, match=words):
        run(load_experiment(file), tmp_path / "run", device="cpu", progress=ProgressLog(quiet=True))
    assert not (tmp_path / "run" / "checkpoints").exists()

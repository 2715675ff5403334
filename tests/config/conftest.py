"""A small project in a temporary folder: a data set, three stage files, an experiment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from cascade_kd.config import ExperimentConfig, load_experiment
from cascade_kd.errors import ConfigError, Problem

DATASET = """\
name = "little"
licence = "none"
[tables.events]
file = "events.csv"
[roles]
user = "user"
item = "item"
time = "time"
[labels]
click = "click = 1"
like = "rating >= 4"
[[feature]]
name = "device"
kind = "categorical"
side = "context"
available = "recall"
[[feature]]
name = "price"
kind = "numeric"
side = "item"
table = "events"
available = "prerank"
[[feature]]
name = "item_click_rate"
kind = "statistic"
side = "pair"
keys = ["user", "item"]
value = "click"
aggregate = "mean"
available = "rank"
[[feature]]
name = "dwell"
kind = "numeric"
side = "pair"
available = "never"
"""

RECALL = """\
type = "two-tower"
level = "recall"
[model]
hidden = [16]
[train]
label = "click"
loss = "sampled-softmax"
"""

PRERANK = """\
type = "two-tower"
level = "prerank"
features = ["user_id", "item_id", "price"]
[model]
hidden = [16]
[train]
label = "click"
epochs = 5
samples = [{ from = "impressions" }, { from = "upstream", per_positive = 4 }]
"""

RANK = """\
type = "dcnv2"
level = "rank"
[model]
hidden = [16]
cross_layers = 1
[train]
label = "click"
"""

EXPERIMENT = """\
name = "small"
dataset = "little.toml"
seeds = [0, 1]
#head

[[stage]]
name = "recall"
use = "stages/recall.toml"
keep = 100
#recall

[[stage]]
name = "prerank"
use = "stages/prerank.toml"
keep = 50
#prerank

[[stage]]
name = "rank"
use = "stages/rank.toml"
keep = 10
#rank

[[distill]]
teacher = "rank"
student = "prerank"
method = "logit"
temperature = 2.0
#distill

[expected.rank]
auc = [0.5, 1.0]
"recall@10" = [0.0, 1.0]
#expected
"""


@dataclass(frozen=True)
class Project:
    """Files that a test edits, and what loading them gives. Paths in messages are relative to ``folder``."""

    folder: Path

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace a text that must occur exactly once."""
        path = self.folder / name
        text = path.read_text("utf-8")
        assert text.count(old) == 1, (name, old, text.count(old))
        path.write_text(text.replace(old, new), "utf-8")

    def line(self, name: str, start: str) -> int:
        """The 1-based number of the one line that begins so."""
        lines = (self.folder / name).read_text("utf-8").splitlines()
        found = [number for number, line in enumerate(lines, start=1) if line.startswith(start)]
        assert len(found) == 1, (start, found)
        return found[0]

    def load(self, *overrides: str, without_distill: bool = False) -> ExperimentConfig:
        """The experiment."""
        return load_experiment(self.folder / "exp.toml", overrides=overrides, without_distill=without_distill)

    def problems(self, *overrides: str) -> list[Problem]:
        """What is wrong with it."""
        with pytest.raises(ConfigError) as caught:
            self.load(*overrides)
        return list(caught.value.problems)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stages").mkdir()
    files = {"little.toml": DATASET, "exp.toml": EXPERIMENT}
    files |= {"stages/recall.toml": RECALL, "stages/prerank.toml": PRERANK, "stages/rank.toml": RANK}
    for name, text in files.items():
        (tmp_path / name).write_text(text, "utf-8")
    return Project(tmp_path)


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Write an importable module (of a name no other test uses)."""

    def write(name: str, text: str) -> None:
        folder = tmp_path / "plugins"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(text, "utf-8")
        monkeypatch.syspath_prepend(folder)

    return write

"""A stage trained along histories, from a CSV to a report, on a world whose next item is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cascade_kd.config import load_experiment
from cascade_kd.errors import ConfigError
from cascade_kd.experiment import run
from cascade_kd.train import ProgressLog

ITEMS, USERS = 20, 60

DATASET = """\
name = "walks"
licence = "none"
[tables.events]
file = "events.csv"
[roles]
user = "user"
item = "item"
time = "time"
[labels]
seen = "TRUE"
[[feature]]
name = "walk"
kind = "history"
side = "user"
length = 6
available = "recall"
[[feature]]
name = "late"
kind = "history"
side = "user"
length = 6
available = "rank"
[split]
kind = "leave-last-out"
"""

EXPERIMENT = """\
name = "walks"
dataset = "walks.toml"
seeds = [0]
[evaluate]
k = [1, 5]
[[stage]]
name = "recall"
type = "two-tower"
level = "recall"
keep = 5
[stage.model]
embedding_size = 16
hidden = []
output_size = 16
history = { kind = "transformer", blocks = 1 }
[stage.train]
label = "seen"
loss = "full-softmax"
sequences = true
batch_size = 16
patience = 0
epochs = 20
learning_rate = 2e-2
monitor = "recall@1"
"""


def write(folder: Path, *changes: tuple[str, str]) -> Path:
    """Every user walks round a circle of items, 7 steps at a time, and comes to none twice."""
    lines = ["user,item,time"]
    for user in range(USERS):
        item = user % ITEMS
        for step in range(8 + user % 9):
            lines.append(f"u{user},{item},{1000 + 60 * step}")
            item = (item + 7) % ITEMS
    texts = {"events.csv": "\n".join(lines), "walks.toml": DATASET, "experiment.toml": EXPERIMENT}
    for old, new in changes:
        (name,) = (name for name, text in texts.items() if text.count(old) == 1)
        texts[name] = texts[name].replace(old, new)
    for name, text in texts.items():
        (folder / name).write_text(text, "utf-8")
    return folder / "experiment.toml"


@pytest.mark.parametrize("history", ["transformer", "last"])
def test_it_finds_the_next_item(tmp_path: Path, history: str) -> None:
    toml = write(tmp_path, ('kind = "transformer", blocks = 1', f'kind = "{history}"'))
    out = tmp_path / "out"
    run(load_experiment(toml), out, progress=ProgressLog(quiet=True))
    stage = json.loads((out / "metrics.json").read_text("utf-8"))["seeds"]["0"]["stages"]["recall"]
    assert stage["recall@1"]["n"] == USERS
    assert stage["recall@1"]["mean"] > 0.9  # 1 / 20 by chance, and items seen left out


TRANSFORMER = 'history = { kind = "transformer", blocks = 1 }'
SPLIT = '[split]\nkind = "leave-last-out"\n'
FULL = 'loss = "full-softmax"'
REFUSED = {
    "log loss": (
        [(FULL, 'loss = "bce"'), ('monitor = "recall@1"', "")],
        "train.sequences",
        "sequences trains on the events whose label is true, and loss is 'bce'; want 'sampled-softmax'",
    ),
    "hard negatives": (
        [(FULL, 'loss = "bpr"\nsamples = [{ from = "hard", per_positive = 1 }]')],
        "train.samples.0.from",
        "want 'uniform' or 'popularity'",
    ),
    "attention": (
        [(TRANSFORMER, 'history = { kind = "attention" }')],
        "model.history.kind",
        "kind 'attention' does not encode all beginnings of a history in one pass, as sequences needs; want 'last'",
    ),
    "a model without vectors": (
        [('type = "two-tower"', 'type = "dcnv2"')],
        "train.sequences",
        "sequences needs a model that reads a history in one pass, which type 'dcnv2' does not; want type 'two-tower'",
    ),
    "two histories": (
        [
            (
                'name = "late"\nkind = "history"\nside = "user"\nlength = 6\navailable = "rank"',
                'name = "late"\nkind = "history"\nside = "user"\nlength = 6\navailable = "recall"',
            )
        ],
        "features",
        "one history of a stage's features, and they hold 'walk', 'late'; list one of walk, late",
    ),
    "no history": (
        [("keep = 5", 'keep = 5\nfeatures = ["user_id", "item_id"]')],
        "features",
        "they hold none; list one of walk, late, or leave sequences out",
    ),
    "a stream": (
        [(SPLIT, SPLIT + '[storage]\nlayout = "stream"\n')],
        "train.sequences",
        "data set 'walks' of layout 'stream' is read event by event; leave sequences out",
    ),
}


@pytest.mark.parametrize(("changes", "key", "words"), REFUSED.values(), ids=REFUSED)
def test_what_it_cannot_do_is_refused(tmp_path: Path, changes: list[tuple[str, str]], key: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment(write(tmp_path, *changes))
    found: list[Any] = [problem for problem in caught.value.problems if words in problem.message]
    assert len(found) == 1, "\n".join(map(str, caught.value.problems))
    assert found[0].key == f"stage.recall.{key}"
    assert found[0].line > 0

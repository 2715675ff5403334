"""Feature kinds through a whole cascade: precomputed vectors, buckets, windows and recency."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from cascade_kd.config import load_experiment
from cascade_kd.experiment import run
from cascade_kd.train import ProgressLog, load_checkpoint

FEATURES = """
[[feature]]
name = "picture"
kind = "vector"
side = "item"
file = "pictures.npy"
available = "recall"

[[feature]]
name = "age_bucket"
kind = "numeric"
column = "age"
transform = "quantile"
buckets = 5
side = "user"
available = "recall"

[[feature]]
name = "clicks_of_the_week"
kind = "statistic"
side = "pair"
keys = ["user.age_bucket", "item.category"]
value = "click"
window = "7d"
available = "rank"

[[feature]]
name = "last_seen"
kind = "statistic"
side = "pair"
keys = ["user", "item.tags"]
aggregate = "recency"
available = "rank"
"""


def test_a_cascade_trains_on_every_kind(tiny: Callable[..., Path], tiny_dataset: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    np.save(tiny_dataset.parent / "pictures.npy", generator.normal(size=(80, 6)))
    tiny_dataset.write_text(tiny_dataset.read_text("utf-8") + FEATURES, "utf-8")
    out = tmp_path / "run"
    run(load_experiment(tiny(seeds=[0], epochs=1, distill="")), out, device="cpu", progress=ProgressLog(quiet=True))
    stages = {name: load_checkpoint(out / f"checkpoints/0/0/{name}/best.safetensors") for name in ("recall", "rank")}
    for stage, width in (("recall", 8), ("rank", 4)):
        assert stages[stage].model["fields.item.projections.0.weight"].shape == (width, 6)
    (table,) = stages["rank"].meta["embedding_tables"].values()
    assert {"picture", "age_bucket", "clicks_of_the_week", "last_seen"} <= set(table["fields"])
    (table,) = stages["recall"].meta["embedding_tables"].values()
    assert not {"clicks_of_the_week", "last_seen"} & set(table["fields"]), "too late for recall"
    assert (out / "metrics.json").is_file()

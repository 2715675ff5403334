"""An experiment over the workers of a Ray cluster: python docs/examples/ray_train.py FILE OUT [workers].

Ray starts the workers and connects them; the library uses the process group that it finds. The folder OUT, the data and
the cache must be reachable by all workers under the same path.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer


def work(config: dict[str, Any]) -> None:
    """What every worker does."""
    from cascade_kd.config import load_experiment
    from cascade_kd.experiment.run import run

    run(load_experiment(config["file"], overrides=config["set"]), config["out"], device=config["device"])


def train(file: str, out: Path, *, workers: int = 2, overrides: tuple[str, ...] = (), use_gpu: bool = False) -> None:
    """Run the experiment; the run directory is that of ``cascade-kd run``."""
    config = {"file": str(Path(file).resolve()), "out": str(out.resolve()), "set": list(overrides)}
    config["device"] = "cuda" if use_gpu else "cpu"
    scaling = ScalingConfig(num_workers=workers, use_gpu=use_gpu)
    TorchTrainer(work, train_loop_config=config, scaling_config=scaling).fit()


if __name__ == "__main__":
    train(sys.argv[1], Path(sys.argv[2]), workers=int(sys.argv[3]) if len(sys.argv) > 3 else 2)

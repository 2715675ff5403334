"""cascade_kd: what ``cascade-kd run`` does with an experiment of ``../speed/training``, at the same call."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy.ma  # noqa: F401  # imports that polars and torch make at their first use
import torch._dynamo  # noqa: F401  # torch's optimisers make it at their first step
import train_clock as clock

from cascade_kd.config import load_experiment
from cascade_kd.evaluate import evaluate  # noqa: F401
from cascade_kd.experiment.run import run
from cascade_kd.train import ProgressLog

EXPERIMENTS = Path(__file__).resolve().parent.parent / "speed" / "training"


def main() -> None:
    clock.imported()
    asked = clock.options(__doc__)
    os.environ["CASCADE_KD_CACHE"] = str(asked.work)
    os.environ["CASCADE_KD_DATA"] = str(asked.data.parent)
    shutil.rmtree(asked.work / "stages", ignore_errors=True)  # data may be there already, trained stages not
    changes = {
        "seeds": [asked.seed],
        "stage.rank.model.hidden": clock.HIDDEN[asked.size],
        "stage.rank.train.batch_size": asked.batch_size,
        "stage.rank.train.precision": f'"{asked.precision}"',
    }
    overrides = [f"{key}={value}" for key, value in changes.items()]
    config = load_experiment(EXPERIMENTS / f"{asked.model}.toml", overrides=overrides)
    out = asked.work / "run"
    shutil.rmtree(out, ignore_errors=True)
    auc = None
    with clock.Steps(asked, skip=1) as steps:  # one step of the stage before it
        result = run(config, out, device="cpu", progress=ProgressLog(quiet=True))
        auc = result.report.seeds[str(asked.seed)]["stages"]["rank"]["auc"]["mean"]
    clock.finish(steps, ["cascade_kd", "torch", "polars"], auc)


if __name__ == "__main__":
    main()

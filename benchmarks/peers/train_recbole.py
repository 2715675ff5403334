"""RecBole's own trainer: atomic files to ``create_dataset``, ``data_preparation``, ``Trainer.fit``."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # it loads the Config that it pickled itself

import train_clock as clock

warnings.filterwarnings("ignore")

from recbole.config import Config  # noqa: E402
from recbole.data import create_dataset, data_preparation  # noqa: E402
from recbole.model.layers import MLPLayers  # noqa: E402
from recbole.utils import get_model, get_trainer, init_seed  # noqa: E402

NAME = "table"
PARTS = ("train", "valid", "test")


def convert(data: Path, folder: Path) -> None:
    """The atomic files: a typed header, tabs."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        header, _, rows = (data / f"{part}.csv").read_text("utf-8").partition("\n")
        typed = [f"{name}:{'float' if name == 'click' else 'token'}" for name in header.split(",")]
        (folder / f"{NAME}.{part}.inter").write_text("\t".join(typed) + "\n" + rows.replace(",", "\t"), "utf-8")


def settings(asked: Any, converted: Path) -> dict[str, Any]:
    """One epoch, no dropout, no penalty; all other values are RecBole's own."""
    return {
        "data_path": str(converted),
        "USER_ID_FIELD": "user",
        "ITEM_ID_FIELD": "item",
        "LABEL_FIELD": "click",
        "load_col": {"inter": [*clock.COLUMNS, "click"]},
        "benchmark_filename": list(PARTS),
        "numerical_features": [],
        "normalize_all": False,
        "train_neg_sample_args": None,
        "eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "group_by": "none", "order": "RO", "mode": "labeled"},
        "metrics": ["AUC"],
        "valid_metric": "AUC",
        "metric_decimal_place": 6,
        "train_batch_size": asked.batch_size,
        "eval_batch_size": 1 << 16,
        "embedding_size": clock.DIM,
        "mlp_hidden_size": clock.HIDDEN[asked.size],
        "dropout_prob": 0.0,
        "reg_weight": 0,
        "structure": "parallel",
        "cross_layer_num": clock.CROSS_LAYERS,
        "mixed": False,
        "learning_rate": clock.RATE,
        "epochs": 1,
        "seed": asked.seed,
        "use_gpu": False,
        "gpu_id": "",
        "worker": 0,
        "show_progress": False,
        "reproducibility": False,
        "state": "WARNING",
        "checkpoint_dir": str(asked.work / "saved"),
    }


def main() -> None:
    asked = clock.options(__doc__)
    sys.argv = sys.argv[:1]  # Config reads the command line
    clock.imported()
    converted = asked.work.parent / "recbole-files"
    if asked.convert:
        convert(asked.data, converted / NAME)
        clock.converted()
        return
    logging.disable(logging.WARNING)
    names = {"deepfm": "DeepFM", "dcnv2": "DCNV2"}
    config = Config(model=names[asked.model], dataset=NAME, config_dict=settings(asked, converted))
    init_seed(config["seed"], False)
    train, valid, test = data_preparation(config, create_dataset(config))
    model = get_model(config["model"])(config, train.dataset)
    if asked.model == "dcnv2":  # its DCN-V2 always has batch norm, which the others are not asked for
        width = [model.in_feature_num, *clock.HIDDEN[asked.size]]
        model.mlp_layers = MLPLayers(width, dropout=0.0, bn=False)
    clock.same_start(model)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    found = None
    with clock.Steps(asked) as steps:
        trainer.fit(train, valid if asked.quality else None, saved=asked.quality, verbose=False, show_progress=False)
        found = trainer.evaluate(test, load_best_model=True)["auc"]
    clock.finish(steps, ["recbole", "torch", "pandas", "numpy"], found)


if __name__ == "__main__":
    main()

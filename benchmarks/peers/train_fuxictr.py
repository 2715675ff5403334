"""FuxiCTR's own trainer: csv through ``build_dataset`` to ``RankDataLoader`` and ``fit``; models of its model_zoo."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import train_clock as clock

warnings.filterwarnings("ignore")

import ray  # noqa: E402
from fuxictr.features import FeatureMap  # noqa: E402
from fuxictr.preprocess import FeatureProcessor, build_dataset  # noqa: E402
from fuxictr.pytorch.dataloaders import RankDataLoader  # noqa: E402
from fuxictr.pytorch.torch_utils import seed_everything  # noqa: E402
from fuxictr_frappe import model_class  # noqa: E402

NAME = "table"
MODELS = {  # file of the zoo, class
    "deepfm": ("DeepFM/DeepFM_torch/src/DeepFM.py", "DeepFM"),
    "dcnv2": ("DCNv2/src/DCNv2.py", "DCNv2"),
}


def settings(asked: Any) -> dict[str, Any]:
    """One epoch, no dropout, no penalty, no batch norm."""
    hidden = clock.HIDDEN[asked.size]
    of_model = {
        "deepfm": {"hidden_units": hidden, "hidden_activations": "relu"},
        "dcnv2": {
            "model_structure": "parallel",
            "use_low_rank_mixture": False,
            "parallel_dnn_hidden_units": hidden,
            "dnn_activations": "relu",
            "num_cross_layers": clock.CROSS_LAYERS,
        },
    }
    return {
        "dataset_id": NAME,
        "data_root": str(asked.work),
        "model_root": str(asked.work / "models"),
        "data_format": "csv",
        **{f"{part}_data": str(asked.data / f"{part}.csv") for part in ("train", "valid", "test")},
        "min_categr_count": 1,
        "feature_cols": [{"name": clock.COLUMNS, "active": True, "dtype": "str", "type": "categorical"}],
        "label_col": {"name": "click", "dtype": "float"},
        "loss": "binary_crossentropy",
        "task": "binary_classification",
        "metrics": ["AUC"],
        "monitor": "AUC",
        "monitor_mode": "max",
        "optimizer": "adam",
        "learning_rate": clock.RATE,
        "embedding_dim": clock.DIM,
        "embedding_regularizer": 0,
        "net_regularizer": 0,
        "net_dropout": 0,
        "batch_norm": False,
        "batch_size": asked.batch_size,
        "epochs": 1,
        "shuffle": True,
        "seed": asked.seed,
        "early_stop_patience": 2,
        "save_best_only": True,
        "eval_steps": None,
        "group_id": None,
        "use_features": None,
        "feature_specs": None,
        "num_workers": 1,
        "verbose": 0,
        "gpu": -1,
        **of_model[asked.model],
    }


def main() -> None:
    asked = clock.options(__doc__)
    clock.imported()
    logging.disable(logging.WARNING)
    params = settings(asked)
    seed_everything(asked.seed)
    train, valid, test = build_dataset(FeatureProcessor(**params), **params)
    feature_map = FeatureMap(NAME, str(asked.work / NAME))
    feature_map.load(str(asked.work / NAME / "feature_map.json"), params)
    params |= {"train_data": train, "valid_data": valid, "test_data": test, "data_format": "parquet"}
    train_loader, valid_loader = RankDataLoader(feature_map, stage="train", **params)
    assert asked.zoo is not None, "FuxiCTR's models are in its repository: --zoo FuxiCTR/model_zoo"
    model = model_class(asked.zoo, *MODELS[asked.model])(feature_map, model_id="model", **params)
    clock.same_start(model)
    Path(model.model_dir).mkdir(parents=True, exist_ok=True)
    found = None
    with clock.Steps(asked) as steps:
        model.fit(train_loader, validation_data=valid_loader if asked.quality else None, epochs=1)
        found = float(model.evaluate(RankDataLoader(feature_map, stage="test", **params))["AUC"])
    clock.finish(steps, ["fuxictr", "torch", "polars", "ray"], found)
    if ray.is_initialized():
        ray.shutdown()


if __name__ == "__main__":
    main()

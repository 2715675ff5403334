"""FuxiCTR's own trainer on the three Frappe files, by the recipe of benchmarks/calibration/frappe-*.toml.

    python benchmarks/peers/fuxictr_frappe.py --data $CASCADE_KD_DATA/frappe --zoo FuxiCTR/model_zoo \\
        --models dnn deepfm dcnv2 final-mlp --seeds 0 1 2 3 4 --out benchmarks/results/frappe-fuxictr.jsonl

Its models are in the ``model_zoo`` of its repository, not in its package: clone github.com/reczoo/FuxiCTR. Environment:
requirements-fuxictr.txt. What ``--out`` holds already is not run again. benchmarks/calibration/frappe.py
makes the table.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import shutil
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")

import fuxictr.version  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402
from fuxictr.features import FeatureMap  # noqa: E402
from fuxictr.preprocess import FeatureProcessor, build_dataset  # noqa: E402
from fuxictr.pytorch.dataloaders import RankDataLoader  # noqa: E402
from fuxictr.pytorch.torch_utils import seed_everything  # noqa: E402

FIELDS = ["user", "item", "daytime", "weekday", "isweekend", "homework", "cost", "weather", "country", "city"]
FILES = {"train": "frappe.train.libfm", "valid": "frappe.validation.libfm", "test": "frappe.test.libfm"}
WIDTHS = [400, 400, 400]
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {  # file of the zoo, class, its own settings
    "dnn": ("DNN/DNN_torch/src/DNN.py", "DNN", {"hidden_units": WIDTHS}),
    "deepfm": ("DeepFM/DeepFM_torch/src/DeepFM.py", "DeepFM", {"hidden_units": WIDTHS}),
    "dcnv2": (
        "DCNv2/src/DCNv2.py",
        "DCNv2",
        {
            "model_structure": "parallel",
            "use_low_rank_mixture": False,
            "parallel_dnn_hidden_units": WIDTHS,
            "num_cross_layers": 3,
        },
    ),
    "final-mlp": (
        "FinalMLP/src/FinalMLP.py",
        "FinalMLP",
        {
            "mlp1_hidden_units": WIDTHS,
            "mlp2_hidden_units": WIDTHS,
            "mlp1_dropout": 0.2,
            "mlp2_dropout": 0.2,
            "mlp1_batch_norm": True,
            "mlp2_batch_norm": True,
            "use_fs": False,
            "num_heads": 10,
        },
    ),
}
RECIPE: dict[str, Any] = {
    "loss": "binary_crossentropy",
    "task": "binary_classification",
    "metrics": ["logloss", "AUC"],
    "monitor": "AUC",
    "monitor_mode": "max",
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "batch_size": 4096,
    "epochs": 100,
    "early_stop_patience": 2,
    "embedding_dim": 10,
    "embedding_regularizer": 0.05,
    "net_regularizer": 0,
    "net_dropout": 0.2,
    "batch_norm": True,
    "shuffle": True,
    "save_best_only": True,
    "eval_steps": None,
    "group_id": None,
    "use_features": None,
    "feature_specs": None,
    "num_workers": 1,
    "verbose": 0,
    "gpu": -1,
}


def convert(data: Path, folder: Path) -> None:
    """The libFM files as csv: the index of every field."""
    for name, file in FILES.items():
        table = pd.read_csv(data / file, sep=" ", header=None, names=["label", *FIELDS])
        for field in FIELDS:
            table[field] = table[field].astype(str).str.split(":").str[0].astype(int)
        table["label"] = (table["label"] > 0).astype(int)
        table[[*FIELDS, "label"]].to_csv(folder / f"{name}.csv", index=False)


def model_class(zoo: Path, file: str, name: str) -> type[Any]:
    """A class of the zoo."""
    spec = importlib.util.spec_from_file_location(name, zoo / file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: type[Any] = getattr(module, name)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    done = set()
    if options.out.exists():
        lines = map(json.loads, options.out.read_text("utf-8").splitlines())
        done = {(line["model"], line["seed"]) for line in lines}
    work = Path(tempfile.mkdtemp())
    try:
        convert(options.data, work)
        params = RECIPE | {
            "dataset_id": "frappe",
            "data_root": str(work / "data"),
            "model_root": str(work / "models"),
            "data_format": "csv",
            **{f"{name}_data": str(work / f"{name}.csv") for name in FILES},
            "min_categr_count": 1,
            "feature_cols": [{"name": FIELDS, "active": True, "dtype": "str", "type": "categorical"}],
            "label_col": {"name": "label", "dtype": "float"},
        }
        train, valid, test = build_dataset(FeatureProcessor(**params), **params)
        feature_map = FeatureMap("frappe", str(work / "data" / "frappe"))
        feature_map.load(str(work / "data" / "frappe" / "feature_map.json"), params)
        params |= {"train_data": train, "valid_data": valid, "test_data": test, "data_format": "parquet"}
        for seed in options.seeds:
            for model in options.models:
                if (model, seed) not in done:
                    line = train_one(model, seed, params, feature_map, options.zoo)
                    with options.out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")
                    print(json.dumps(line), flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def train_one(model: str, seed: int, params: dict[str, Any], feature_map: FeatureMap, zoo: Path) -> dict[str, Any]:
    """Test AUC and log loss of the epoch with the best validation AUC."""
    file, name, own = MODELS[model]
    seed_everything(seed)
    built = model_class(zoo, file, name)(feature_map, model_id=f"{model}-{seed}", seed=seed, **params | own)
    Path(built.model_dir).mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    train_loader, valid_loader = RankDataLoader(feature_map, stage="train", **params)
    built.fit(train_loader, validation_data=valid_loader, epochs=params["epochs"])
    seconds = time.perf_counter() - started
    found = built.evaluate(RankDataLoader(feature_map, stage="test", **params))
    return {
        "benchmark": "frappe",
        "library": f"fuxictr {fuxictr.version.__version__}",
        "model": model,
        "seed": seed,
        "auc": float(found["AUC"]),
        "logloss": float(found["logloss"]),
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in built.parameters()),
    }


if __name__ == "__main__":
    main()

"""RecBole's own loader: atomic files to ``create_dataset``, ``data_preparation`` and its training data loader.

Its dataset class for context-aware models (DeepFM), or with ``--history`` the one for sequential models (DIN).
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clock

warnings.filterwarnings("ignore")

import raw  # noqa: E402
from recbole.config import Config  # noqa: E402
from recbole.data import create_dataset, data_preparation  # noqa: E402
from recbole.model.context_aware_recommender import deepfm  # noqa: E402
from recbole.model.sequential_recommender import din  # noqa: E402
from torch import Tensor  # noqa: E402

NAME = "ml-1m"
MODELS = {False: deepfm.DeepFM.__name__, True: din.DIN.__name__}


def convert(data: Path, folder: Path) -> None:
    """The atomic files: typed headers, tabs."""
    folder.mkdir(parents=True, exist_ok=True)
    users, items = raw.read_users(data), raw.read_items(data)
    items = items.assign(genres=items["genres"].str.replace("|", " ", regex=False).where(items["genres"] != "", ""))
    tables = {
        "inter": (raw.read_ratings(data), ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]),
        "user": (users, ["user_id:token", "sex:token", "age:token", "occupation:token"]),
        "item": (items[["item", "year", "genres"]], ["item_id:token", "year:token", "genres:token_seq"]),
    }
    for kind, (table, header) in tables.items():
        table.set_axis(header, axis=1).to_csv(folder / f"{NAME}.{kind}", sep="\t", index=False)


def settings(options: Any) -> dict[str, Any]:
    """Labels rating >= 4, each user's ratings in time order 80/10/10, no sampled negatives."""
    return {
        "data_path": str(options.converted),
        "load_col": {
            "inter": ["user_id", "item_id", "rating", "timestamp"],
            "user": ["user_id", "sex", "age", "occupation"],
            "item": ["item_id", "year", "genres"],
        },
        "threshold": {"rating": 4},
        "normalize_all": False,
        "MAX_ITEM_LIST_LENGTH": clock.HISTORY_LENGTH,
        "train_neg_sample_args": None,
        "eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "group_by": "user", "order": "TO", "mode": "labeled"},
        "metrics": ["AUC"],
        "valid_metric": "AUC",
        "train_batch_size": options.batch_size,
        "use_gpu": False,
        "gpu_id": "",
        "show_progress": False,
        "reproducibility": False,
        "state": "WARNING",
        "save_dataset": options.cached,
        "checkpoint_dir": str(options.work / "saved"),
    }


def main() -> None:
    options = clock.options(__doc__)
    sys.argv = sys.argv[:1]  # Config reads the command line
    clock.imported()
    if options.convert:
        convert(options.data, options.converted / NAME)
        clock.converted()
        return
    logging.disable(logging.WARNING)
    config = Config(model=MODELS[options.history], dataset=NAME, config_dict=settings(options))
    dataset = create_dataset(config)
    clock.mark("dataset")
    train, _, _ = data_preparation(config, dataset)

    def epoch() -> Iterator[dict[str, Tensor]]:
        for batch in train:
            yield batch.interaction

    clock.finish(epoch, ["recbole", "pandas", "numpy", "torch"])


if __name__ == "__main__":
    main()

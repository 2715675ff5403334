"""FuxiCTR's own loader: csv through ``FeatureProcessor`` and ``build_dataset`` to ``RankDataLoader``.

Its csv files hold one part each with every attribute in every row, which the conversion writes.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clock

warnings.filterwarnings("ignore")

import raw  # noqa: E402
import ray  # noqa: E402
from fuxictr.features import FeatureMap  # noqa: E402
from fuxictr.preprocess import FeatureProcessor, build_dataset  # noqa: E402
from fuxictr.preprocess.build_dataset import init_ray  # noqa: E402
from fuxictr.pytorch.dataloaders import RankDataLoader  # noqa: E402
from torch import Tensor  # noqa: E402

NAME = "ml-1m"
CATEGORICAL = ["user", "item", "sex", "age", "occupation", "year"]
FILES = ("train", "valid", "test")


def convert(data: Path, folder: Path) -> None:
    """Split, join and label by hand."""
    folder.mkdir(parents=True, exist_ok=True)
    ratings = raw.in_time_order(raw.read_ratings(data))
    part_N = raw.parts(ratings)
    table = ratings.merge(raw.read_users(data), on="user").merge(raw.read_items(data), on="item", how="left")
    assert (table["user"].to_numpy() == ratings["user"].to_numpy()).all(), "a left join keeps the order"
    table = table.assign(label=(table["rating"] >= 4).astype(int))[[*CATEGORICAL, "genres", "label"]]
    for code, name in enumerate(FILES):
        table[part_N == code].to_csv(folder / f"{name}.csv", index=False)


def settings(converted: Path, work: Path, batch_size: int) -> dict[str, Any]:
    """Six categorical columns, one sequence, one label; all other values are FuxiCTR's own."""
    return {
        "dataset_id": NAME,
        "data_root": str(work),
        "data_format": "csv",
        **{f"{name}_data": str(converted / f"{name}.csv") for name in FILES},
        "min_categr_count": 1,
        "feature_cols": [
            {"name": CATEGORICAL, "active": True, "dtype": "str", "type": "categorical"},
            {"name": "genres", "active": True, "dtype": "str", "type": "sequence", "splitter": "|", "max_len": 6},
        ],
        "label_col": {"name": "label", "dtype": "float"},
        "batch_size": batch_size,
        "shuffle": True,
        "num_workers": 1,
    }


def main() -> None:
    clock.imported()
    options = clock.options(__doc__)
    if options.convert:
        convert(options.data, options.converted)
        clock.converted()
        return
    logging.disable(logging.WARNING)
    init_ray()  # FuxiCTR does the same at its first use: here so that it has a mark of its own
    clock.mark("ray_started")
    params = settings(options.converted, options.work, options.batch_size)
    train, valid, test = build_dataset(FeatureProcessor(**params), **params)
    clock.mark("encoded")
    folder = Path(params["data_root"]) / NAME
    feature_map = FeatureMap(NAME, str(folder))
    feature_map.load(str(folder / "feature_map.json"), params)
    params.update(train_data=train, valid_data=valid, test_data=test)
    loader, _ = RankDataLoader(feature_map, stage="train", **params)

    def epoch() -> Iterator[dict[str, Tensor]]:
        yield from loader

    clock.finish(epoch, ["fuxictr", "ray", "polars", "pandas", "numpy", "torch"])
    ray.shutdown()


if __name__ == "__main__":
    main()

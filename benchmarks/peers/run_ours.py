"""cascade_kd: the catalogue's ``movielens-1m``, prepared (or found in the cache), loaded, sampled as in training.

Of its features those that the peers have too; with ``--all-features`` every one, the point-in-time statistics included.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import clock
import numpy.ma  # noqa: F401  # an import like the others: polars makes it at its first array, pandas at its own import
from torch import Tensor

from cascade_kd.config import load_dataset_definition
from cascade_kd.data import load, prepare
from cascade_kd.train.samples import Sampler

IDS = ["user_id", "item_id"]
ATTRIBUTES = ["sex", "age", "occupation", "genres", "year"]
HISTORY = "rated_films"


def main() -> None:
    clock.imported()
    options = clock.options(__doc__)
    os.environ["CASCADE_KD_CACHE"] = str(options.work)
    os.environ["CASCADE_KD_DATA"] = str(options.data.parent)
    definition, file = load_dataset_definition("movielens-1m")
    if not options.all_features:
        names = [*ATTRIBUTES, HISTORY] if options.history else ATTRIBUTES
        feature = tuple(feature for feature in definition.feature if feature.name in names)
        definition = definition.model_copy(update={"feature": feature})
    dataset = load(prepare(definition, base=file.parent))
    clock.mark("loaded")
    sampler = Sampler(dataset, dataset.rows("train"), "like", batch_size=options.batch_size, seed=0)
    names = [*IDS, *(feature.name for feature in definition.feature)]

    def epoch() -> Iterator[dict[str, Tensor]]:
        for step in range(sampler.steps_per_epoch):
            batch = sampler.batch(step)
            inputs = dataset.inputs(
                names, batch.requests, batch.item_R, batch.row_R, part="train", event_R=batch.event_R
            )
            yield {"label": batch.label_R, **inputs.user, **inputs.item}

    clock.finish(epoch, ["cascade_kd", "polars", "numpy", "torch"])


if __name__ == "__main__":
    main()

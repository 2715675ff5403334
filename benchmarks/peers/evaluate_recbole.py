"""RecBole: its full-ranking evaluation (``Trainer.evaluate``) of BPR over Gowalla, its default metrics.

A tenth of the training pairs is its validation part, which it masks at test time like the rest, as ours does.
``eval_batch_size`` is in scores; ``--users`` of them a batch, 1 being what its default of 4,096 comes to here.
"""

from __future__ import annotations

import logging
import sys
import warnings

import ranking

warnings.filterwarnings("ignore")

import pandas as pd  # noqa: E402
import torch  # noqa: E402
from recbole.config import Config  # noqa: E402
from recbole.data import create_dataset, data_preparation  # noqa: E402
from recbole.utils import get_model, get_trainer, init_seed  # noqa: E402

NAME = "gowalla"


def convert(options: ranking.Options) -> None:
    """The atomic files: the last tenth of each user's training pairs is ``valid``."""
    folder = options.work / "recbole" / NAME
    folder.mkdir(parents=True, exist_ok=True)
    train = pd.DataFrame(ranking.read_pairs(options.data / "train.txt"), columns=["user_id:token", "item_id:token"])
    users = train.groupby("user_id:token")
    late = users.cumcount() >= (0.9 * users["item_id:token"].transform("size")).astype(int).clip(lower=1)
    test = pd.DataFrame(ranking.read_pairs(options.data / "test.txt"), columns=train.columns)
    for part, table in {"train": train[~late], "valid": train[late], "test": test}.items():
        table.to_csv(folder / f"{NAME}.{part}.inter", sep="\t", index=False)


def settings(options: ranking.Options, num_items: int) -> dict[str, object]:
    return {
        "data_path": str(options.work / "recbole"),
        "load_col": {"inter": ["user_id", "item_id"]},
        "benchmark_filename": ["train", "valid", "test"],
        "eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "group_by": "user", "order": "RO", "mode": "full"},
        "metrics": ["Recall", "MRR", "NDCG", "Hit", "Precision"],
        "topk": [ranking.K],
        "metric_decimal_place": 10,
        "eval_batch_size": options.users * (num_items + 1),
        "embedding_size": ranking.DIM,
        "use_gpu": False,
        "device": "cpu",
        "gpu_id": "",
        "show_progress": False,
        "state": "WARNING",
        "worker": 0,
        "reproducibility": False,
        "checkpoint_dir": str(options.work / "saved"),
    }


def main() -> None:
    options = ranking.options(__doc__)
    if not (options.work / "recbole" / NAME / f"{NAME}.test.inter").is_file():
        convert(options)
    user_ND, item_ND = ranking.read_vectors(options)
    sys.argv = sys.argv[:1]  # Config reads the command line
    logging.disable(logging.WARNING)
    config = Config(model="BPR", dataset=NAME, config_dict=settings(options, len(item_ND)))
    init_seed(1, False)
    dataset = create_dataset(config)
    train, _, test = data_preparation(config, dataset)
    torch.set_num_threads(options.threads)
    model = get_model("BPR")(config, train.dataset)
    for table, vectors_ND in ((model.user_embedding, user_ND), (model.item_embedding, item_ND)):
        field = "user_id" if table is model.user_embedding else "item_id"
        raw = torch.tensor([int(token) for token in dataset.field2id_token[field][1:]])  # token 0 is padding
        table.weight.data[1:] = vectors_ND[raw]
    trainer = get_trainer(config["MODEL_TYPE"], "BPR")(config, model)

    def one_pass() -> tuple[int, float, float]:
        found = trainer.evaluate(test, load_best_model=False)
        return len(test.uid_list), found[f"recall@{ranking.K}"], found[f"ndcg@{ranking.K}"]

    ranking.finish(one_pass, options, ["recbole", "torch"])


if __name__ == "__main__":
    main()

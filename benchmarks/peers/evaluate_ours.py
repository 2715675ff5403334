"""cascade_kd: ``evaluate`` of a recall stage over the catalogue's ``gowalla``, as a run calls it, all metrics.

The stage's model looks its vectors up, as RecBole's BPR does. Every pass makes the stage anew, so that building the
index and measuring it against exact search is part of the time.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import ClassVar

import ranking
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from cascade_kd.cascade import Cascade
from cascade_kd.config import load_dataset_definition
from cascade_kd.data import Dataset, load, prepare
from cascade_kd.evaluate import evaluate
from cascade_kd.evaluate.evaluation import Labelled
from cascade_kd.evaluate.settings import EvaluateConfig
from cascade_kd.memory import kept_memory
from cascade_kd.stages import RetrievalStage
from cascade_kd.types import ITEM_ID, USER_ID, Inputs, Level, Output, Side


class Vectors(nn.Module):
    """A vector a user, a vector an item; the logit is their inner product."""

    Config: ClassVar[type[BaseModel]] = BaseModel
    levels: ClassVar[tuple[Level, ...]] = ("recall",)
    sides: ClassVar[tuple[Side, ...]] = ("user", "item")
    hidden_names = ()

    def __init__(self, user_UD: Tensor, item_ID: Tensor) -> None:
        super().__init__()
        self.user = nn.Embedding.from_pretrained(user_UD)
        self.item = nn.Embedding.from_pretrained(item_ID)

    def forward(self, inputs: Inputs, hidden: Collection[str] = ()) -> Output:
        user_RD = self.user_vectors(inputs.user).index_select(0, inputs.row_R)
        return Output((user_RD * self.item_vectors(inputs.item)).sum(1))

    def user_vectors(self, columns: Mapping[str, Tensor]) -> Tensor:
        return self.user(columns[USER_ID])

    def item_vectors(self, columns: Mapping[str, Tensor]) -> Tensor:
        return self.item(columns[ITEM_ID])


def in_order_of_codes(dataset: Dataset, feature: str, vectors_ND: Tensor) -> Tensor:
    """Row c holds the vector of code c; of code 0, zeros."""
    raw = torch.tensor([int(value) for value in dataset.vocabularies[dataset.feature(feature).vocabulary]])
    return torch.cat([torch.zeros_like(vectors_ND[:1]), vectors_ND[raw]])


def main() -> None:
    options = ranking.options(__doc__)
    os.environ["CASCADE_KD_CACHE"] = str(options.work / "ours")
    os.environ["CASCADE_KD_DATA"] = str(options.data.parent)
    definition, file = load_dataset_definition("gowalla")
    dataset = load(prepare(definition, base=file.parent))
    user_ND, item_ND = ranking.read_vectors(options)
    model = Vectors(in_order_of_codes(dataset, USER_ID, user_ND), in_order_of_codes(dataset, ITEM_ID, item_ND))
    features = (dataset.feature(USER_ID), dataset.feature(ITEM_ID))
    asked = {"recall": Labelled("visit", probability_model=False)}

    def one_pass() -> tuple[int, float, float]:
        stage = RetrievalStage("recall", "recall", ranking.K, features, model, dataset)
        done = evaluate(Cascade((stage,)), dataset, asked, EvaluateConfig(k=(ranking.K,)))
        tree = done.cascade
        return len(done.asked.requests), tree[f"recall@{ranking.K}"]["mean"], tree[f"ndcg@{ranking.K}"]["mean"]

    with kept_memory():
        ranking.finish(one_pass, options, ["cascade_kd", "torch"])


if __name__ == "__main__":
    main()

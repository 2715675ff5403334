"""A training loop by hand: the table's codes in one matrix in memory, one fused embedding table, fused Adam.

What an engineer writes who knows the data and wants no more than speed; the first-order weights of DeepFM are a column
of the embedding table.
"""

from __future__ import annotations

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
import train_clock as clock
from torch import Tensor, nn


def read(data: object, name: str) -> pl.DataFrame:
    return pl.read_csv(f"{data}/{name}.csv")


def encoded(data: object) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Codes [N, F] by part, 0 of a column being unknown; labels by part; rows of the table."""
    tables = {name: read(data, name) for name in ("train", "test")}
    code = {name: np.empty((len(table), len(clock.COLUMNS)), np.int32) for name, table in tables.items()}
    first = 0
    for place, column in enumerate(clock.COLUMNS):
        values = {name: table[column].to_numpy() for name, table in tables.items()}
        there = np.bincount(values["train"], minlength=max(int(x.max()) for x in values.values()) + 1) > 0
        code_V = np.where(there, there.cumsum(), 0).astype(np.int32) + first
        for name, value in values.items():
            code[name][:, place] = code_V[value]
        first += int(there.sum()) + 1
    labels = {name: torch.from_numpy(table["click"].to_numpy().astype(np.float32)) for name, table in tables.items()}
    return {name: torch.from_numpy(x) for name, x in code.items()}, labels, first


def deep(width: int, hidden: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for wide in hidden:
        layers += [nn.Linear(width, wide), nn.ReLU()]
        width = wide
    return nn.Sequential(*layers)


class DeepFM(nn.Module):
    def __init__(self, rows: int, hidden: list[int]) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(rows, clock.DIM + 1))
        self.deep = deep(len(clock.COLUMNS) * clock.DIM, hidden)
        self.head = nn.Linear(hidden[-1], 1)

    def forward(self, code: Tensor) -> Tensor:
        row = F.embedding(code, self.embedding)
        field = row[:, :, : clock.DIM]
        total = field.sum(1)
        pairs = 0.5 * (total.square() - field.square().sum(1)).sum(1)
        return row[:, :, clock.DIM].sum(1) + pairs + self.head(self.deep(field.flatten(1))).squeeze(1)


class DCNv2(nn.Module):
    def __init__(self, rows: int, hidden: list[int]) -> None:
        super().__init__()
        width = len(clock.COLUMNS) * clock.DIM
        self.embedding = nn.Parameter(torch.empty(rows, clock.DIM))
        self.cross = nn.ModuleList(nn.Linear(width, width) for _ in range(clock.CROSS_LAYERS))
        self.deep = deep(width, hidden)
        self.head = nn.Linear(width + hidden[-1], 1)

    def forward(self, code: Tensor) -> Tensor:
        start = crossed = F.embedding(code, self.embedding).flatten(1)
        for layer in self.cross:
            crossed = torch.addcmul(crossed, start, layer(crossed))
        return self.head(torch.cat([crossed, self.deep(start)], 1)).squeeze(1)


def auc(score: Tensor, label: Tensor) -> float:
    """By ranks; scores that tie are too few to matter here."""
    rank = torch.empty(len(score), dtype=torch.float64)
    rank[score.argsort()] = torch.arange(1, len(score) + 1, dtype=torch.float64)
    positives = float(label.sum())
    return float((rank[label > 0].sum() - positives * (positives + 1) / 2) / (positives * (len(label) - positives)))


def main() -> None:
    clock.imported()
    asked = clock.options(__doc__)
    torch.manual_seed(asked.seed)
    torch.set_flush_denormal(True)
    code, label, rows = encoded(asked.data)
    model = {"deepfm": DeepFM, "dcnv2": DCNv2}[asked.model](rows, clock.HIDDEN[asked.size])
    clock.same_start(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=clock.RATE, fused=True)
    low = asked.precision == "bfloat16"
    with clock.Steps(asked) as steps:
        for row in torch.randperm(len(code["train"])).split(asked.batch_size):
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                logit = model(code["train"][row])
            loss = F.binary_cross_entropy_with_logits(logit.float(), label["train"][row])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    found = None
    if asked.quality:
        with torch.no_grad():
            found = auc(torch.cat([model(part) for part in code["test"].split(1 << 16)]), label["test"])
    clock.finish(steps, ["torch", "polars"], found)


if __name__ == "__main__":
    main()

"""Features to field embeddings: one fused table a stage (floor 3). N rows, F fields, T tags or history, D embedding.

A categorical feature takes its code's row; tags and histories the mean of their rows, padding left out; a number x
the line x*w + b, a precomputed vector x the projection W x + b. Features that index one vocabulary (an item and the
user's history of items) share its rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cascade_kd.models.lookup import lookup_sum
from cascade_kd.types import Feature, Inputs

EMBEDDING_STD = 0.05


class FieldEmbedding(nn.Module):
    """Embeds the user side and the item side (context and pair features included) from one table."""

    def __init__(self, features: Sequence[Feature], dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.offsets: dict[str, int] = {}  # vocabulary -> its first row in the table
        rows = 0
        for feature in features:
            if feature.size and feature.vocabulary not in self.offsets:
                self.offsets[feature.vocabulary] = rows
                rows += feature.size
        self.table = nn.Embedding(max(rows, 1), dim)
        nn.init.normal_(self.table.weight, std=EMBEDDING_STD)
        self.user = Side([f for f in features if f.side in ("user", "context")], self.offsets, dim)
        self.item = Side([f for f in features if f.side in ("item", "pair")], self.offsets, dim)

    def forward(self, inputs: Inputs) -> Tensor:
        """[R, F, D] of all features, the user side first: embedded once a request and repeated for its rows."""
        user_RFD = self.user_fields(inputs.user).index_select(0, inputs.row_R)
        return torch.cat([user_RFD, self.item_fields(inputs.item)], dim=1)

    def user_fields(self, columns: Mapping[str, Tensor]) -> Tensor:
        """[B, F, D] of the user and context features."""
        return self.user(columns, self.table.weight)  # type: ignore[no-any-return]

    def item_fields(self, columns: Mapping[str, Tensor]) -> Tensor:
        """[R, F, D] of the item and pair features."""
        return self.item(columns, self.table.weight)  # type: ignore[no-any-return]


class Side(nn.Module):
    """The features of one side, grouped by kind so that each group is one look-up."""

    def __init__(self, features: Sequence[Feature], offsets: Mapping[str, int], dim: int) -> None:
        super().__init__()
        self.codes = [f for f in features if f.kind == "categorical"]
        self.pooled = [f for f in features if f.kind in ("tags", "history")]
        self.numbers = [f for f in features if f.is_number]
        self.vectors = [f for f in features if f.kind == "vector"]
        groups = (*self.codes, *self.pooled, *self.numbers, *self.vectors)
        self.names = tuple(f.name for f in groups)  # the order of the fields
        self.pooled_offsets = [offsets[f.vocabulary] for f in self.pooled]
        self.code_offset_F: Tensor
        self.register_buffer(
            "code_offset_F", torch.tensor([offsets[f.vocabulary] for f in self.codes], dtype=torch.int64), False
        )
        if self.numbers:
            self.weight_FD = nn.Parameter(torch.randn(len(self.numbers), dim) * EMBEDDING_STD)
            self.bias_FD = nn.Parameter(torch.zeros(len(self.numbers), dim))
        self.projections = nn.ModuleList(nn.Linear(f.length, dim) for f in self.vectors)
        for projection in self.projections:
            assert isinstance(projection, nn.Linear)
            nn.init.normal_(projection.weight, std=EMBEDDING_STD)
            nn.init.zeros_(projection.bias)

    def forward(self, columns: Mapping[str, Tensor], table_VD: Tensor) -> Tensor:
        """[N, F, D], fields in the order of ``names``."""
        groups: list[Tensor] = []
        if self.codes:
            codes_NF = torch.stack([columns[f.name] for f in self.codes], dim=1) + self.code_offset_F
            groups.append(F.embedding(codes_NF, table_VD))
        for feature, offset in zip(self.pooled, self.pooled_offsets, strict=True):
            codes_NT = columns[feature.name]
            present_NT = (codes_NT > 0).to(table_VD.dtype)
            weight_NT = present_NT / present_NT.sum(1, keepdim=True).clamp(min=1)
            groups.append(lookup_sum(table_VD, codes_NT + offset, weight_NT).unsqueeze(1))
        if self.numbers:
            numbers_NF = torch.stack([columns[f.name] for f in self.numbers], dim=1)
            groups.append(numbers_NF.unsqueeze(2) * self.weight_FD + self.bias_FD)
        for feature, projection in zip(self.vectors, self.projections, strict=True):
            groups.append(projection(columns[feature.name]).unsqueeze(1))
        return torch.cat(groups, dim=1)

"""Features to field embeddings: one fused table a stage (floor 3). N rows, F fields, T tags or history, D embedding.

A categorical feature takes its code's row; tags and histories the mean of their rows, padding left out; a number x
the line x*w + b, a precomputed vector x the projection W x + b. Features that index one vocabulary (an item and the
user's history of items) share its rows.

A vocabulary of more than ``max_rows`` = m values is compressed: code c has the sum of rows c mod m and m + c div m. No
two values have the same pair of rows, but a row serves several. Source: Shi et al., KDD 2020, the quotient-remainder
trick with addition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from cascade_kd.models.settings import EMBEDDING_STD
from cascade_kd.models.table import Table
from cascade_kd.types import Feature, Inputs


@dataclass(frozen=True)
class Rows:
    """Where a vocabulary of ``size`` values lies in the table: from row ``first``, compressed if ``modulus`` < size."""

    first: int
    modulus: int
    size: int

    @property
    def compressed(self) -> bool:
        """Whether a value has two rows that it shares with others."""
        return self.modulus < self.size

    @property
    def end(self) -> int:
        """The row after its last."""
        return self.first + self.modulus + (-(-self.size // self.modulus) if self.compressed else 0)

    def of(self, codes: Tensor) -> list[Tensor]:
        """The row of every code, or its two."""
        if not self.compressed:
            return [codes + self.first]
        return [codes % self.modulus + self.first, codes // self.modulus + (self.first + self.modulus)]


class FieldEmbedding(nn.Module):
    """Embeds the user side and the item side (context and pair features included) from one table.

    All weights start from N(0, std^2), the biases of numbers at 0.
    """

    def __init__(
        self, features: Sequence[Feature], dim: int, std: float = EMBEDDING_STD, max_rows: int | None = None
    ) -> None:
        super().__init__()
        self.dim, self.max_rows = dim, max_rows
        self.rows: dict[str, Rows] = {}  # by vocabulary
        end = 0
        for feature in features:
            if feature.size and feature.vocabulary not in self.rows:
                rows = Rows(end, min(max_rows or feature.size, feature.size), feature.size)
                self.rows[feature.vocabulary] = rows
                end = rows.end
        self.table = Table(max(end, 1), dim, std)
        self.user = Side([f for f in features if f.side in ("user", "context")], self.rows, dim, std)
        self.item = Side([f for f in features if f.side in ("item", "pair")], self.rows, dim, std)

    @property
    def offsets(self) -> dict[str, int]:
        """The first row of every vocabulary."""
        return {vocabulary: rows.first for vocabulary, rows in self.rows.items()}

    def forward(self, inputs: Inputs) -> Tensor:
        """[R, F, D] of all features, the user side first: embedded once a request and repeated for its rows.

        Where there are no more rows than requests the codes are repeated, not their embeddings.
        """
        user, row_R = inputs.user, inputs.row_R
        if any(len(row_R) > len(column) for column in user.values()):
            user_RFD = self.user_fields(user).index_select(0, row_R)
            return torch.cat([user_RFD, self.item_fields(inputs.item)], dim=1)
        user = {name: column.index_select(0, row_R) for name, column in user.items()}
        if not (self.user.is_plain and self.item.is_plain):
            return torch.cat([self.user_fields(user), self.item_fields(inputs.item)], dim=1)
        places = [self.user.places(user), self.item.places(inputs.item)]
        return self.table(torch.cat(places, dim=1))  # type: ignore[no-any-return]

    def user_fields(self, columns: Mapping[str, Tensor], pooled: Mapping[str, Tensor] | None = None) -> Tensor:
        """[B, F, D] of the user and context features; ``pooled`` means [B, D] stand for columns of that name."""
        return self.user(columns, self.table, pooled or {})  # type: ignore[no-any-return]

    def item_fields(self, columns: Mapping[str, Tensor]) -> Tensor:
        """[R, F, D] of the item and pair features."""
        return self.item(columns, self.table)  # type: ignore[no-any-return]

    def values(self, vocabulary: str, codes: Tensor) -> Tensor:
        """[..., D] embeddings of single values of a vocabulary, codes [...]."""
        looked = [self.table(rows) for rows in self.rows[vocabulary].of(codes)]
        return looked[0] if len(looked) == 1 else looked[0] + looked[1]  # type: ignore[no-any-return]


class Side(nn.Module):
    """The features of one side, grouped by kind so that each group is one look-up."""

    def __init__(self, features: Sequence[Feature], rows: Mapping[str, Rows], dim: int, std: float) -> None:
        super().__init__()
        self.codes = [f for f in features if f.kind == "categorical"]
        self.pooled = [f for f in features if f.kind in ("tags", "history")]
        self.numbers = [f for f in features if f.is_number]
        self.vectors = [f for f in features if f.kind == "vector"]
        self.features = (*self.codes, *self.pooled, *self.numbers, *self.vectors)  # in the order of the fields
        self.names = tuple(f.name for f in self.features)
        self.pooled_rows = [rows[f.vocabulary] for f in self.pooled]
        self.code_rows = [rows[f.vocabulary] for f in self.codes]
        self.compressed = [place for place, of_one in enumerate(self.code_rows) if of_one.compressed]
        self.code_offset_F: Tensor
        self.register_buffer(
            "code_offset_F", torch.tensor([of_one.first for of_one in self.code_rows], dtype=torch.int64), False
        )
        if self.numbers:
            self.weight_FD = nn.Parameter(torch.randn(len(self.numbers), dim) * std)
            self.bias_FD = nn.Parameter(torch.zeros(len(self.numbers), dim))
        self.projections = nn.ModuleList(nn.Linear(f.length, dim) for f in self.vectors)
        for projection in self.projections:
            assert isinstance(projection, nn.Linear)
            nn.init.normal_(projection.weight, std=std)
            nn.init.zeros_(projection.bias)

    @property
    def is_plain(self) -> bool:
        """Whether every feature is a code with a row of its own: then one look-up of ``places`` is all."""
        return len(self.codes) == len(self.names) and not self.compressed

    def places(self, columns: Mapping[str, Tensor]) -> Tensor:
        """[N, F] the table rows of the categorical features, of a compressed vocabulary as if it were not."""
        if not self.codes:
            return self.code_offset_F.new_zeros(0)  # of which torch.cat takes no notice
        return torch.stack([columns[f.name] for f in self.codes], dim=1) + self.code_offset_F

    def forward(
        self, columns: Mapping[str, Tensor], table: Table, pooled: Mapping[str, Tensor] = MappingProxyType({})
    ) -> Tensor:
        """[N, F, D], fields in the order of ``names``; the means ``pooled`` [N, D] are known already."""
        groups: list[Tensor] = []
        if self.codes:
            groups.append(self._code_fields(columns, table))
        for feature, rows in zip(self.pooled, self.pooled_rows, strict=True):
            if feature.name in pooled:
                groups.append(pooled[feature.name].unsqueeze(1))
                continue
            codes_NT = columns[feature.name]
            present_NT = (codes_NT > 0).to(table.weight.dtype)
            weight_NT = present_NT / present_NT.sum(1, keepdim=True).clamp(min=1)
            places = rows.of(codes_NT)
            if rows.compressed:
                places, weight_NT = [torch.cat(places, dim=1)], weight_NT.repeat(1, 2)
            groups.append(table.weighted_sum(places[0], weight_NT).unsqueeze(1))
        if self.numbers:
            numbers_NF = torch.stack([columns[f.name] for f in self.numbers], dim=1)
            groups.append(numbers_NF.unsqueeze(2) * self.weight_FD + self.bias_FD)
        for feature, projection in zip(self.vectors, self.projections, strict=True):
            groups.append(projection(columns[feature.name]).unsqueeze(1))
        return torch.cat(groups, dim=1)

    def _code_fields(self, columns: Mapping[str, Tensor], table: Table) -> Tensor:
        """[N, F, D] by one look-up; the second rows of compressed vocabularies stand behind the first ones of all."""
        if not self.compressed:
            return table(self.places(columns))  # type: ignore[no-any-return]
        places = [rows.of(columns[f.name]) for rows, f in zip(self.code_rows, self.codes, strict=True)]
        first, second = [p[0] for p in places], [p[1] for p in places if len(p) == 2]
        looked = table(torch.stack([*first, *second], dim=1))
        which = torch.tensor(self.compressed, device=looked.device)
        return looked[:, : len(first)].index_add(1, which, looked[:, len(first) :])  # type: ignore[no-any-return]

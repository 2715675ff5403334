"""Two towers and an inner product, for recall and pre-rank (floor 3). B requests, R rows, D output width."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from pydantic import BaseModel
from torch import Tensor, nn

from cascade_kd.errors import UserError
from cascade_kd.models.fields import FieldEmbedding
from cascade_kd.models.history import make_encoder, means_along
from cascade_kd.models.interaction import linear
from cascade_kd.models.interface import Stretches
from cascade_kd.models.mlp import MLP
from cascade_kd.models.settings import TwoTowerConfig
from cascade_kd.types import ITEM_ID, Feature, Inputs, Level, Output, Side


class Tower(nn.Module):
    """Fields -> MLP -> linear projection to the output width, if any."""

    def __init__(self, num_fields: int, config: TwoTowerConfig) -> None:
        super().__init__()
        self.mlp = MLP(num_fields * config.embedding_size, config.hidden, dropout=config.dropout)
        self.out: nn.Module = nn.Identity()
        if config.output_size:
            self.out = linear(self.mlp.out_width, config.output_size)

    def forward(self, fields_NFD: Tensor, hidden: Collection[str], prefix: str) -> tuple[Tensor, dict[str, Tensor]]:
        """[N, F, D] to [N, output], and the hidden states asked for."""
        x_NW, states = self.mlp(fields_NFD.flatten(1), hidden, f"{prefix}.mlp.")
        return self.out(x_NW), states


@final
class TwoTower(nn.Module):
    """logit = <user vector, item vector> / temperature + bias; both towers read one fused embedding table.

    The bias is one number for all rows: it calibrates probabilities and changes no order. Source: Yi et al.,
    RecSys 2019 (towers, cosine with temperature); the light pre-ranker of Xu et al., KDD 2020, has the same form.
    """

    Config: ClassVar[type[BaseModel]] = TwoTowerConfig
    levels: ClassVar[tuple[Level, ...]] = TwoTowerConfig.levels
    sides: ClassVar[tuple[Side, ...]] = TwoTowerConfig.sides

    def __init__(self, config: TwoTowerConfig, features: Sequence[Feature]) -> None:
        super().__init__()
        pair = [f.name for f in features if f.side == "pair"]
        if pair:
            raise UserError(
                f"a two-tower model was given pair features {pair}, which belong to neither tower; leave them out of "
                "`features`, or use a model that scores pairs, such as type 'dcnv2'"
            )
        self.scale = 1.0 / config.temperature
        self.cosine = config.similarity == "cosine"
        self.fields = FieldEmbedding(features, config.embedding_size, config.embedding_std, config.embedding_max_rows)
        self.histories = tuple(f.name for f in features if f.kind == "history" and config.history is not None)
        lengths = [f.length for f in features if f.name in self.histories]
        encoders = [make_encoder(config.history, config.embedding_size, n) for n in lengths if config.history]
        self.encoders = nn.ModuleList(encoders)
        self.user = Tower(len(self.fields.user.names) + len(encoders), config)
        self.item = Tower(len(self.fields.item.names), config)
        if not config.output_size and self.user.mlp.out_width != self.item.mlp.out_width:
            raise UserError(
                f"a two-tower model without a projection has user vectors of width {self.user.mlp.out_width} and item "
                f"vectors of width {self.item.mlp.out_width}; want output_size >= 1, as many fields on either side, or "
                "a hidden layer"
            )
        self.bias = nn.Parameter(torch.zeros(()))

    @property
    def hidden_names(self) -> tuple[str, ...]:
        """``user.mlp.k``, ``user.vector`` [B, D], ``item.mlp.k``, ``item.vector`` [R, D]; ``history`` if encoded."""
        towers = (("user", self.user), ("item", self.item))
        names = [n for side, tower in towers for n in (*tower.mlp.hidden_names(f"{side}.mlp."), f"{side}.vector")]
        return (*names, "history") if self.histories else tuple(names)

    def forward(self, inputs: Inputs, hidden: Collection[str] = ()) -> Output:
        """Logits [R]; hidden states of the user tower have one row a request, of the item tower one a row."""
        user_BD, states = self._user(inputs.user, hidden)
        item_RD, item_states = self._tower("item", self.fields.item_fields(inputs.item), hidden)
        logits_R = (user_BD.index_select(0, inputs.row_R) * item_RD).sum(1) * self.scale + self.bias
        return Output(logits_R, states | item_states)

    def user_vectors(self, columns: Mapping[str, Tensor]) -> Tensor:
        """[B, D] such that ``user @ item`` is the logit without its bias (the temperature sits in the user's)."""
        return self._user(columns, ())[0] * self.scale

    def vectors_along(self, columns: Mapping[str, Tensor], stretches: Stretches) -> Tensor:
        """[P, D]: ``user_vectors`` of the P events, by one pass over every stretch.

        An event's history is its stretch up to the event's place. ``columns`` [P, ...] lack that history alone.
        """
        codes_BL = stretches.item_BL
        item_BLD = self.fields.values(ITEM_ID, codes_BL)
        mean_PD = _taken(means_along(item_BLD), stretches.place_P)
        fields_PFD = self.fields.user_fields(columns, {stretches.history: mean_PD})
        for encoder in self.encoders:
            encoded_BLD: Tensor = encoder.along(item_BLD, codes_BL > 0)  # type: ignore[operator]
            fields_PFD = torch.cat([fields_PFD, _taken(encoded_BLD, stretches.place_P).unsqueeze(1)], dim=1)
        return self._tower("user", fields_PFD, ())[0] * self.scale

    def item_vectors(self, columns: Mapping[str, Tensor]) -> Tensor:
        """[R, D], the vectors an index holds."""
        return self._tower("item", self.fields.item_fields(columns), ())[0]

    def _user(self, columns: Mapping[str, Tensor], hidden: Collection[str]) -> tuple[Tensor, dict[str, Tensor]]:
        fields_BFD = self.fields.user_fields(columns)
        encoded: list[Tensor] = []
        for name, encoder in zip(self.histories, self.encoders, strict=True):
            codes_BL = columns[name]
            encoded.append(encoder(self.fields.values(ITEM_ID, codes_BL), codes_BL > 0))
        if encoded:
            fields_BFD = torch.cat([fields_BFD, torch.stack(encoded, dim=1)], dim=1)
        user_BD, states = self._tower("user", fields_BFD, hidden)
        if "history" in hidden and encoded:
            states["history"] = torch.cat(encoded, dim=1)
        return user_BD, states

    def _tower(self, side: str, fields_NFD: Tensor, hidden: Collection[str]) -> tuple[Tensor, dict[str, Tensor]]:
        tower = self.user if side == "user" else self.item
        x_ND, states = tower(fields_NFD, hidden, side)
        if self.cosine:
            x_ND = F.normalize(x_ND, dim=1)
        if f"{side}.vector" in hidden:
            states[f"{side}.vector"] = x_ND
        return x_ND, states


def _taken(x_BLD: Tensor, place_P: Tensor) -> Tensor:
    """[P, D] of the places, zeros for an empty history's."""
    there_P1 = (place_P >= 0).unsqueeze(1)
    return x_BLD.flatten(0, 1).index_select(0, place_P.clamp(min=0)) * there_P1

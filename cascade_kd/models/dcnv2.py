"""DCN-V2 ranker (floor 3). B requests, R rows, F fields, D embedding, W = F*D."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar, final

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from cascade_kd.models.fields import FieldEmbedding
from cascade_kd.models.mlp import MLP
from cascade_kd.models.settings import DCNv2Config
from cascade_kd.types import Feature, Inputs, Level, Output, Side


class CrossNetwork(nn.Module):
    """x_{l+1} = x_0 * (W_l x_l + b_l) + x_l, elementwise product (Wang et al., WWW 2021, eq. 1)."""

    def __init__(self, width: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(num_layers))
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x0_RW: Tensor) -> Tensor:
        """[R, W] to [R, W]."""
        x_RW = x0_RW
        for layer in self.layers:
            x_RW = torch.addcmul(x_RW, x0_RW, layer(x_RW))
        return x_RW


@final
class DCNv2(nn.Module):
    """Cross network and deep network side by side over all fields; one linear head over both.

    Source: Wang et al., "DCN V2", WWW 2021, the parallel structure with full-rank cross layers.
    """

    Config: ClassVar[type[BaseModel]] = DCNv2Config
    levels: ClassVar[tuple[Level, ...]] = DCNv2Config.levels
    sides: ClassVar[tuple[Side, ...]] = DCNv2Config.sides

    def __init__(self, config: DCNv2Config, features: Sequence[Feature]) -> None:
        super().__init__()
        width = len(features) * config.embedding_size
        self.fields = FieldEmbedding(features, config.embedding_size, config.embedding_std, config.embedding_max_rows)
        self.cross = CrossNetwork(width, config.cross_layers)
        self.mlp = MLP(width, config.hidden, dropout=config.dropout, batch_norm=config.batch_norm)
        self.head = nn.Linear(width + self.mlp.out_width, 1)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def hidden_names(self) -> tuple[str, ...]:
        """``fields`` [R, F, D], ``embedding`` [R, F*D], ``interaction`` [R, F*D], ``mlp.k`` [R, hidden[k]]."""
        return ("fields", "embedding", "interaction", *self.mlp.hidden_names())

    def forward(self, inputs: Inputs, hidden: Collection[str] = ()) -> Output:
        """Logits [R]; the user side is embedded once a request and repeated for its rows."""
        user_RFD = self.fields.user_fields(inputs.user).index_select(0, inputs.row_R)
        fields_RFD = torch.cat([user_RFD, self.fields.item_fields(inputs.item)], dim=1)
        embedding_RW = fields_RFD.flatten(1)
        cross_RW = self.cross(embedding_RW)
        deep_RW, states = self.mlp(embedding_RW, hidden)
        logits_R = self.head(torch.cat([cross_RW, deep_RW], dim=1)).squeeze(1)
        for name, state in (("fields", fields_RFD), ("embedding", embedding_RW), ("interaction", cross_RW)):
            if name in hidden:
                states[name] = state
        return Output(logits_R, states)

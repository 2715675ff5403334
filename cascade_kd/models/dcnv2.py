"""DCN-V2 ranker (floor 3). B requests, R rows, F fields, D embedding, W = F*D."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar, final

import torch
from pydantic import BaseModel
from torch import nn

from cascade_kd.models.fields import FieldEmbedding
from cascade_kd.models.interaction import CrossLayers, linear
from cascade_kd.models.mlp import MLP
from cascade_kd.models.settings import DCNv2Config
from cascade_kd.types import Feature, Inputs, Level, Output, Side


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
        self.cross = CrossLayers(width, config.cross_layers)
        self.mlp = MLP(width, config.hidden, dropout=config.dropout, batch_norm=config.batch_norm)
        self.head = linear(width + self.mlp.out_width, 1)

    @property
    def hidden_names(self) -> tuple[str, ...]:
        """``fields`` [R, F, D], ``embedding`` [R, F*D], ``interaction`` [R, F*D], ``mlp.k`` [R, hidden[k]]."""
        return ("fields", "embedding", "interaction", *self.mlp.hidden_names())

    def forward(self, inputs: Inputs, hidden: Collection[str] = ()) -> Output:
        """Logits [R]; the user side is embedded once a request and repeated for its rows."""
        fields_RFD = self.fields(inputs)
        embedding_RW = fields_RFD.flatten(1)
        cross_RW = self.cross(embedding_RW)
        deep_RW, states = self.mlp(embedding_RW, hidden)
        logits_R = self.head(torch.cat([cross_RW, deep_RW], dim=1)).squeeze(1)
        for name, state in (("fields", fields_RFD), ("embedding", embedding_RW), ("interaction", cross_RW)):
            if name in hidden:
                states[name] = state
        return Output(logits_R, states)

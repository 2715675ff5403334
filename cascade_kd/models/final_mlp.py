"""FinalMLP: two MLPs that see the fields through gates of their own, fused bilinearly (floor 3).

R rows, F fields, D embedding, W width of a stream, H heads of the fusion.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar, final

import torch
from pydantic import BaseModel
from torch import nn

from cascade_kd.models.fields import FieldEmbedding
from cascade_kd.models.interaction import linear
from cascade_kd.models.mlp import MLP
from cascade_kd.models.settings import FinalMLPConfig
from cascade_kd.types import Feature, Inputs, Level, Output, Side


@final
class FinalMLP(nn.Module):
    """logit = bias + w1.x + w2.y + sum_h x_h' W_h y_h, of two streams x and y cut into H heads.

    A stream's input is the embedding times 2 sigmoid(g(context)), g an MLP over the user side's fields in the first
    stream, over the item side's in the second; without `gate_hidden` the inputs are not gated.
    Source: Mao et al., AAAI 2023, eq. 6 to 11. There the contexts are chosen fields or a learned constant.
    """

    Config: ClassVar[type[BaseModel]] = FinalMLPConfig
    levels: ClassVar[tuple[Level, ...]] = FinalMLPConfig.levels
    sides: ClassVar[tuple[Side, ...]] = FinalMLPConfig.sides

    def __init__(self, config: FinalMLPConfig, features: Sequence[Feature]) -> None:
        super().__init__()
        dim, width = config.embedding_size, len(features) * config.embedding_size
        self.fields = FieldEmbedding(features, dim, config.embedding_std, config.embedding_max_rows)
        self.num_user = len(self.fields.user.names)
        contexts = (self.num_user * dim, (len(features) - self.num_user) * dim)
        self.gates = nn.ModuleList(
            nn.Sequential(linear(size, config.gate_hidden), nn.ReLU(), linear(config.gate_hidden, width), nn.Sigmoid())
            for size in contexts
            if config.gate_hidden and size
        )
        self.mlp = MLP(width, config.hidden, dropout=config.dropout, batch_norm=config.batch_norm)
        second = config.second_hidden or config.hidden
        self.second = MLP(width, second, dropout=config.dropout, batch_norm=config.batch_norm)
        self.num_heads = config.fusion_heads
        self.linear_x = linear(self.mlp.out_width, 1)
        self.linear_y = linear(self.second.out_width, 1, bias=False)
        shape = (config.fusion_heads, self.mlp.out_width // self.num_heads, self.second.out_width // self.num_heads)
        self.fusion_HVW = nn.Parameter(torch.empty(shape))
        nn.init.xavier_uniform_(self.fusion_HVW)

    @property
    def hidden_names(self) -> tuple[str, ...]:
        """``fields`` [R, F, D], ``embedding`` [R, F*D], ``mlp.k`` and ``second.k`` of the two streams."""
        return ("fields", "embedding", *self.mlp.hidden_names(), *self.second.hidden_names("second."))

    def forward(self, inputs: Inputs, hidden: Collection[str] = ()) -> Output:
        """Logits [R]."""
        fields_RFD = self.fields(inputs)
        embedding_RW = fields_RFD.flatten(1)
        x_RW = y_RW = embedding_RW
        if len(self.gates) == 2:
            x_RW = 2 * self.gates[0](fields_RFD[:, : self.num_user].flatten(1)) * embedding_RW
            y_RW = 2 * self.gates[1](fields_RFD[:, self.num_user :].flatten(1)) * embedding_RW
        x_RV, states = self.mlp(x_RW, hidden)
        y_RU, more = self.second(y_RW, hidden, "second.")
        x_RHV, y_RHU = (z.unflatten(1, (self.num_heads, -1)) for z in (x_RV, y_RU))
        fused_R = torch.einsum("rhv,hvu,rhu->r", x_RHV, self.fusion_HVW, y_RHU)
        logits_R = self.linear_x(x_RV).squeeze(1) + self.linear_y(y_RU).squeeze(1) + fused_R
        found = {"fields": fields_RFD, "embedding": embedding_RW}
        return Output(logits_R, {name: state for name, state in found.items() if name in hidden} | states | more)

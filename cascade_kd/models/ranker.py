"""One ranker, put together of up to three parts: LR, FM, DNN, Wide&Deep, DeepFM, DCN-V2, xDeepFM, AutoInt+ (floor 3).

B requests, R rows, F fields, D embedding, W width.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar, final

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from cascade_kd.errors import UserError
from cascade_kd.models.fields import FieldEmbedding
from cascade_kd.models.interaction import (
    CompressedInteraction,
    CrossNetwork,
    FactorizationMachine,
    SelfAttention,
    linear,
)
from cascade_kd.models.mlp import MLP
from cascade_kd.models.settings import RankerConfig
from cascade_kd.types import Feature, Inputs, Level, Output, Side


@final
class Ranker(nn.Module):
    """logit = bias + first-order term + interaction's logit + MLP's logit, each part where its setting asks for it.

    | model | first order | interaction | MLP | source |
    |---|---|---|---|---|
    | LR | yes | none | none | |
    | FM | yes | fm | none | Rendle, ICDM 2010 |
    | DNN | no | none | yes | |
    | Wide&Deep | yes | none | yes | Cheng et al., DLRS 2016; no hand-made crosses |
    | DeepFM | yes | fm | yes | Guo et al., IJCAI 2017 |
    | DCN-V2, parallel | no | cross | yes | Wang et al., WWW 2021 |
    | xDeepFM | yes | cin | yes | Lian et al., KDD 2018 |
    | AutoInt+ | no | attention | yes | Song et al., CIKM 2019 |
    """

    Config: ClassVar[type[BaseModel]] = RankerConfig
    levels: ClassVar[tuple[Level, ...]] = RankerConfig.levels
    sides: ClassVar[tuple[Side, ...]] = RankerConfig.sides

    def __init__(self, config: RankerConfig, features: Sequence[Feature]) -> None:
        super().__init__()
        num_fields, dim = len(features), config.embedding_size
        std, most = config.embedding_std, config.embedding_max_rows
        deep = bool(config.hidden)
        if not (deep or config.linear or config.interaction != "none"):
            raise UserError("a ranker needs a part: give `hidden`, linear = true, or an `interaction`")
        self.bias = nn.Parameter(torch.zeros(()))
        self.first_order = FieldEmbedding(features, 1, std, most) if config.linear else None
        self.fields = FieldEmbedding(features, dim, std, most) if deep or config.interaction != "none" else None
        self.interaction = _interaction(config, num_fields)
        self.mlp = MLP(num_fields * dim, config.hidden, dropout=config.dropout, batch_norm=config.batch_norm)
        self.head = linear(self.mlp.out_width, 1, bias=False) if deep else None

    @property
    def hidden_names(self) -> tuple[str, ...]:
        """``fields`` [R, F, D], ``embedding`` [R, F*D], ``interaction`` [R, W], ``mlp.k``: of the parts there are."""
        if self.fields is None:
            return ()
        interaction = ("interaction",) if self.interaction is not None else ()
        return ("fields", "embedding", *interaction, *self.mlp.hidden_names())

    def forward(self, inputs: Inputs, hidden: Collection[str] = ()) -> Output:
        """Logits [R]; the user side is embedded once a request and repeated for its rows."""
        logits_R = self.bias.expand(len(inputs.row_R))
        states: dict[str, Tensor] = {}
        if self.first_order is not None:
            logits_R = logits_R + self.first_order(inputs).sum((1, 2))
        if self.fields is None:
            return Output(logits_R, states)
        fields_RFD = self.fields(inputs)
        embedding_RW = fields_RFD.flatten(1)
        found = {"fields": fields_RFD, "embedding": embedding_RW}
        if self.interaction is not None:
            found["interaction"], share_R = self.interaction(fields_RFD)
            logits_R = logits_R + share_R
        if self.head is not None:
            deep_RW, states = self.mlp(embedding_RW, hidden)
            logits_R = logits_R + self.head(deep_RW).squeeze(1)
        return Output(logits_R, {name: state for name, state in found.items() if name in hidden} | states)


def _interaction(config: RankerConfig, num_fields: int) -> nn.Module | None:
    if config.interaction == "fm":
        return FactorizationMachine()
    if config.interaction == "cross":
        return CrossNetwork(num_fields * config.embedding_size, config.layers)
    if config.interaction == "cin":
        return CompressedInteraction(num_fields, [config.maps] * config.layers)
    if config.interaction == "attention":
        return SelfAttention(
            num_fields, config.embedding_size, layers=config.layers, heads=config.heads, size=config.attention_size
        )
    return None

"""Deep interest network: a history weighed by the candidate it meets (floor 3).

B requests, R rows, F fields, D embedding, L length of a history, W width.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar, final

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from cascade_kd.errors import UserError
from cascade_kd.models.fields import FieldEmbedding
from cascade_kd.models.interaction import linear
from cascade_kd.models.mlp import MLP
from cascade_kd.models.settings import DINConfig
from cascade_kd.types import ITEM_ID, Feature, Inputs, Level, Output, Side


@final
class AttentionUnit(nn.Module):
    """w_l = g(k_l, k_l - q, k_l * q, q), a small MLP of a past item k_l and the candidate q; no softmax over l.

    Source: Zhou et al., DIN, KDD 2018, section 4.3 (there the outer product stands in the place of k * q, in the
    authors' code the elementwise one, as here). The first layer is split by its inputs: what reads k alone is
    computed once a request.
    """

    def __init__(self, dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.of_key = linear(dim, hidden[0])
        self.of_query = linear(dim, hidden[0], bias=False)
        self.of_product = linear(dim, hidden[0], bias=False)
        self.rest = MLP(hidden[0], hidden[1:])
        self.out = linear(self.rest.out_width, 1)

    def forward(self, query_RD: Tensor, key_BLD: Tensor, row_R: Tensor) -> Tensor:
        """Weights [R, L], unbounded."""
        product_RLW = self.of_product(query_RD.unsqueeze(1) * key_BLD.index_select(0, row_R))
        # k and k - q share their weights up to signs: W_a k + W_b (k - q) + W_c q = W_k k + W_q q
        first_RLW = self.of_key(key_BLD).index_select(0, row_R) + self.of_query(query_RD).unsqueeze(1) + product_RLW
        rest_NW, _ = self.rest(first_RLW.relu().flatten(0, 1))
        return self.out(rest_NW).view(first_RLW.shape[:2])  # type: ignore[no-any-return]


@final
class DIN(nn.Module):
    """MLP over the fields and, for every history of items, sum_l w_l k_l with the weights of the attention unit.

    Source: Zhou et al., KDD 2018, eq. 3. Differs: the mean of a history stays a field too, ReLU in the place of Dice.
    """

    Config: ClassVar[type[BaseModel]] = DINConfig
    levels: ClassVar[tuple[Level, ...]] = DINConfig.levels
    sides: ClassVar[tuple[Side, ...]] = DINConfig.sides

    def __init__(self, config: DINConfig, features: Sequence[Feature]) -> None:
        super().__init__()
        self.histories = tuple(f.name for f in features if f.kind == "history")
        if not self.histories or ITEM_ID not in [f.name for f in features]:
            raise UserError(
                "type 'din' weighs the items of a history by the candidate, so its features need a history and "
                f"'{ITEM_ID}'; got {[f.name for f in features]}"
            )
        dim = config.embedding_size
        self.fields = FieldEmbedding(features, dim, config.embedding_std, config.embedding_max_rows)
        self.units = nn.ModuleList(AttentionUnit(dim, config.attention_hidden) for _ in self.histories)
        width = (len(features) + len(self.histories)) * dim
        self.mlp = MLP(width, config.hidden, dropout=config.dropout, batch_norm=config.batch_norm)
        self.head = linear(self.mlp.out_width, 1)

    @property
    def hidden_names(self) -> tuple[str, ...]:
        """``fields`` [R, F, D], ``embedding`` [R, F*D], ``history`` [R, histories * D], ``mlp.k``."""
        return ("fields", "embedding", "history", *self.mlp.hidden_names())

    def forward(self, inputs: Inputs, hidden: Collection[str] = ()) -> Output:
        """Logits [R]."""
        fields_RFD = self.fields(inputs)
        query_RD = self._items(inputs.item[ITEM_ID])
        attended = [
            self._attend(unit, inputs.user[name], query_RD, inputs.row_R)
            for name, unit in zip(self.histories, self.units, strict=True)
        ]
        history_RW = torch.cat(attended, dim=1)
        embedding_RW = fields_RFD.flatten(1)
        deep_RW, states = self.mlp(torch.cat([embedding_RW, history_RW], dim=1), hidden)
        found = {"fields": fields_RFD, "embedding": embedding_RW, "history": history_RW}
        logits_R = self.head(deep_RW).squeeze(1)
        return Output(logits_R, {name: state for name, state in found.items() if name in hidden} | states)

    def _items(self, codes: Tensor) -> Tensor:
        return self.fields.values(ITEM_ID, codes)

    def _attend(self, unit: nn.Module, history_BL: Tensor, query_RD: Tensor, row_R: Tensor) -> Tensor:
        """[R, D]; padding weighs nothing."""
        key_BLD = self._items(history_BL)
        weight_RL = unit(query_RD, key_BLD, row_R) * (history_BL > 0).index_select(0, row_R)
        return torch.bmm(weight_RL.unsqueeze(1), key_BLD.index_select(0, row_R)).squeeze(1)

"""One network for several labels: shared bottom, mixture of experts, entire space (floor 3).

R rows, F fields, D embedding, W width, E experts.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar, final

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from cascade_kd.models.fields import FieldEmbedding
from cascade_kd.models.interaction import linear
from cascade_kd.models.mlp import MLP
from cascade_kd.models.settings import MultiTaskConfig
from cascade_kd.types import Feature, Inputs, Level, Output, Side

HEAD = "head."  # the hidden state of an auxiliary label's logit is this and the label


@final
class MultiTask(nn.Module):
    """The logit of the stage's own label, which is served, and one of every ``auxiliary`` label, hidden ``head.LABEL``.

    ``shared-bottom``: an MLP over the fields, then one small MLP a label. Source: Caruana, Machine Learning 28, 1997.

    ``mmoe``: the label's MLP reads sum_e g_e f_e(x), f_e expert MLPs and g = softmax(W x) of the label's own.
    Source: Ma et al., MMoE, KDD 2018, eq. 6 and 7.

    ``esmm``: the label happens only after the auxiliary one (a conversion after its click), and its probability over
    all impressions is p(first) p(label | first), each of an MLP of its own over shared embeddings; ``conversion`` is
    the logit of the second. Source: Ma et al., ESMM, SIGIR 2018, eq. 2 and 4.
    """

    Config: ClassVar[type[BaseModel]] = MultiTaskConfig
    levels: ClassVar[tuple[Level, ...]] = MultiTaskConfig.levels
    sides: ClassVar[tuple[Side, ...]] = MultiTaskConfig.sides

    def __init__(self, config: MultiTaskConfig, features: Sequence[Feature]) -> None:
        super().__init__()
        self.auxiliary = dict(config.auxiliary)
        self.kind = config.kind
        dim, labels = config.embedding_size, 1 + len(config.auxiliary)
        self.fields = FieldEmbedding(features, dim, config.embedding_std, config.embedding_max_rows)
        width = len(features) * dim
        bottoms = {"shared-bottom": 1, "mmoe": config.experts, "esmm": labels}[config.kind]
        options = {"dropout": config.dropout, "batch_norm": config.batch_norm}
        self.bottoms = nn.ModuleList(MLP(width, config.hidden, **options) for _ in range(bottoms))  # type: ignore[arg-type]
        self.gates = nn.ModuleList(linear(width, bottoms) for _ in range(labels if config.kind == "mmoe" else 0))
        self.tops = nn.ModuleList(MLP(config.hidden[-1], config.head_hidden, **options) for _ in range(labels))  # type: ignore[arg-type]
        self.out = nn.ModuleList(linear(top.out_width, 1) for top in self.tops)  # type: ignore[arg-type]

    @property
    def hidden_names(self) -> tuple[str, ...]:
        """``fields`` [R, F, D], ``embedding`` [R, F*D], ``head.LABEL`` [R] logits, with esmm ``conversion`` [R]."""
        conversion = ("conversion",) if self.kind == "esmm" else ()
        return ("fields", "embedding", *(HEAD + label for label in self.auxiliary), *conversion)

    def forward(self, inputs: Inputs, hidden: Collection[str] = ()) -> Output:
        """Logits [R] of the stage's label; the user side is embedded once a request and repeated for its rows."""
        fields_RFD = self.fields(inputs)
        x_RW = fields_RFD.flatten(1)
        own_R, *others = (
            out(top(shared_RW)[0]).squeeze(1)
            for out, top, shared_RW in zip(self.out, self.tops, self._shared(x_RW), strict=True)
        )
        found = {"fields": fields_RFD, "embedding": x_RW}
        found |= {HEAD + label: logits_R for label, logits_R in zip(self.auxiliary, others, strict=True)}
        if self.kind == "esmm":
            found["conversion"], own_R = own_R, logit_of_product(own_R, others[0])
        return Output(own_R, {name: state for name, state in found.items() if name in hidden})

    def _shared(self, x_RW: Tensor) -> list[Tensor]:
        """What the MLP of every label reads."""
        bottoms = [bottom(x_RW)[0] for bottom in self.bottoms]
        if self.kind == "esmm":
            return bottoms
        if self.kind == "shared-bottom":
            return bottoms * len(self.tops)
        experts_REW = torch.stack(bottoms, dim=1)
        return [torch.bmm(gate(x_RW).softmax(1).unsqueeze(1), experts_REW).squeeze(1) for gate in self.gates]


def logit_of_product(a_R: Tensor, b_R: Tensor) -> Tensor:
    """The logit of sigmoid(a) sigmoid(b), [R]: -log(e^-a + e^-b + e^-(a+b)), finite wherever a and b are."""
    return -torch.logsumexp(torch.stack([-a_R, -b_R, -a_R - b_R]), dim=0)

"""Adapters from a student's hidden state to a teacher's, trained with the student and never exported (floor 4).

Axes: N rows, W units of the student's state, V of the teacher's, M experts, H hidden units of an expert. Weights are
drawn from the generator given, Xavier-uniform, biases are 0: building or calling an adapter draws from no global
generator.
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn

from cascade_kd.losses.checks import check_no_gradient


def gumbel_temperature(progress: float, *, start: float = 1.0, end: float = 1e-10) -> float:
    """Temperature at a share of the training from 0 to 1, ``start (end / start)^progress``."""
    return start * math.pow(end / start, progress)


@final
class Regressor(nn.Module):
    """A linear map from the student's width to the teacher's, or a network of one hidden layer with ReLU.

    Source: the regressor of Romero et al., "FitNets", ICLR 2015, arXiv:1412.6550, section 2.2; also the projector of
    direct matching where widths differ. Differs: the output is linear.
    """

    def __init__(self, width: int, out_width: int, *, hidden: int | None = None, generator: torch.Generator) -> None:
        super().__init__()
        self.first = None if hidden is None else _linear(width, hidden, generator)
        self.last = _linear(width if hidden is None else hidden, out_width, generator)

    def forward(self, student_NW: Tensor) -> Tensor:
        """The student's state at the teacher's width, [N, V]; of [N, F, W] every place by itself, [N, F, V]."""
        if self.first is not None:
            student_NW = self.first(student_NW).relu()
        out_NV: Tensor = self.last(student_NW)
        return out_NV


@final
class Experts(nn.Module):
    """Experts from the student's state to the teacher's, one chosen for each row by a gate on the teacher's state.

    ``sum_m c_m E_m(h_s)`` with ``E_m`` a network W -> (W + V) / 2 -> V and ``c = softmax((gate(h_t) + g) / T)``, g
    Gumbel noise; as the temperature falls the choice becomes hard. With one expert it is a :class:`Regressor`.

    Source: Kang et al., "DE-RRD", CIKM 2020, arXiv:2012.04357: 30 experts, temperature from 1 to 1e-10.
    """

    def __init__(self, width: int, out_width: int, *, experts: int = 30, generator: torch.Generator) -> None:
        super().__init__()
        hidden = (width + out_width) // 2
        self.first_MHW = _weights(experts, hidden, width, generator)
        self.first_MH = nn.Parameter(torch.zeros(experts, hidden))
        self.last_MVH = _weights(experts, out_width, hidden, generator)
        self.last_MV = nn.Parameter(torch.zeros(experts, out_width))
        self.gate = _linear(out_width, experts, generator)

    def forward(
        self, student_NW: Tensor, teacher_NV: Tensor, *, temperature: float, generator: torch.Generator
    ) -> Tensor:
        """The student's state at the teacher's width, [N, V]; ``generator`` (CPU) gives the noise of the choice.

        Raises ValueError for a teacher's state that carries a gradient.
        """
        choice_NM = self.choice(teacher_NV, temperature=temperature, generator=generator)
        hidden_NMH = (torch.einsum("nw,mhw->nmh", student_NW, self.first_MHW) + self.first_MH).relu()
        mixed_NMH = choice_NM[:, :, None] * hidden_NMH
        return torch.einsum("nmh,mvh->nv", mixed_NMH, self.last_MVH) + choice_NM @ self.last_MV

    def choice(self, teacher_NV: Tensor, *, temperature: float, generator: torch.Generator) -> Tensor:
        """Weights of the experts for each row, [N, M]; they sum to 1."""
        check_no_gradient(teacher_NV, "hidden states")
        logits_NM: Tensor = self.gate(teacher_NV)
        # -log of an exponential draw is Gumbel's; drawn on the CPU, so that devices agree.
        exponential_NM = torch.empty(logits_NM.shape, dtype=logits_NM.dtype).exponential_(generator=generator)
        return torch.softmax((logits_NM - exponential_NM.log().to(logits_NM.device)) / temperature, dim=-1)


def _linear(width: int, out_width: int, generator: torch.Generator) -> nn.Linear:
    linear = nn.utils.skip_init(nn.Linear, width, out_width)
    assert isinstance(linear, nn.Linear)
    nn.init.xavier_uniform_(linear.weight, generator=generator)
    nn.init.zeros_(linear.bias)
    return linear


def _weights(experts: int, out_width: int, width: int, generator: torch.Generator) -> nn.Parameter:
    """[M, out_width, width], every expert drawn as a linear layer of its own."""
    weights = torch.empty(experts, out_width, width)
    for weight in weights:
        nn.init.xavier_uniform_(weight, generator=generator)
    return nn.Parameter(weights)

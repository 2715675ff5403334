"""A multi-layer perceptron that gives its hidden states (floor 3). N rows, W width."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear, optional batch norm, ReLU, dropout, for every width in ``hidden``; no head.

    Hidden state ``mlp.k`` is layer k's output after the activation and before dropout.
    """

    def __init__(self, width: int, hidden: Sequence[int], *, dropout: float = 0.0, batch_norm: bool = False) -> None:
        super().__init__()
        widths = [width, *hidden]
        self.out_width = widths[-1]
        self.linear = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.norm = nn.ModuleList(nn.BatchNorm1d(b) if batch_norm else nn.Identity() for b in hidden)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        for linear in self.linear:
            assert isinstance(linear, nn.Linear)
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self, x_NW: Tensor, hidden: Collection[str] = (), prefix: str = "mlp."
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The last layer's output [N, W'] and the states asked for, named ``prefix`` + layer number."""
        states: dict[str, Tensor] = {}
        for k, (linear, norm) in enumerate(zip(self.linear, self.norm, strict=True)):
            x_NW = norm(linear(x_NW)).relu()
            if f"{prefix}{k}" in hidden:
                states[f"{prefix}{k}"] = x_NW
            x_NW = self.dropout(x_NW)
        return x_NW, states

    def hidden_names(self, prefix: str = "mlp.") -> tuple[str, ...]:
        """Names of all hidden states."""
        return tuple(f"{prefix}{k}" for k in range(len(self.linear)))

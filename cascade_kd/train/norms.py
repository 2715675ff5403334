"""How strongly each part of a loss pulls at the weights (floor 6)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cascade_kd.models import Table


def gradient_norms(parts: Mapping[str, Tensor], model: nn.Module) -> dict[str, float]:
    """Length of every part's gradient over all weights; one backward pass a part, and no gradient is left behind."""
    tables = [module for module in model.modules() if isinstance(module, Table) and module.touched is not None]
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    norms: dict[str, float] = {}
    for name, part in parts.items():
        found = torch.autograd.grad(part, weights, retain_graph=True, allow_unused=True)
        squares = [float(gradient.square().sum()) for gradient in found if gradient is not None]
        for table in tables:  # row-sparse: their gradients are not in the tensors
            touched = table.take_touched()
            squares += [] if touched is None else [float(touched[1].square().sum())]
        norms[name] = sum(squares) ** 0.5
    return norms

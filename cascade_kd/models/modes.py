"""A model while it is asked and not trained (floor 3)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: object) -> Iterator[None]:
    """Inside the block the model is in evaluation mode and nothing records a gradient; its mode comes back after it."""
    assert isinstance(model, nn.Module)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)

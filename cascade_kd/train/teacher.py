"""Teacher scores, computed once and kept in a memory-mapped column (floor 6). M training rows."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cascade_kd.data import Dataset
from cascade_kd.stages import LogitStage, event_logits


def teacher_logits(stage: LogitStage, dataset: Dataset, rows_M: Tensor, path: Path) -> Tensor:
    """Logits [M] float32 of the teacher for event rows, each as of its own moment, in the order of ``rows_M``.

    ``path`` (.npy) is read if it exists: the caller names it by the hash of teacher, data and rows. It is written
    under a temporary name and renamed. No gradient can flow: the teacher is scored under ``no_grad`` in eval mode.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            np.save(file, event_logits(stage, dataset, "train", rows_M).cpu().numpy())
        os.replace(temporary, path)
    # Copy-on-write mapping: pages stay shared and on disk, and torch gets memory that it may call writable.
    return torch.from_numpy(np.load(path, mmap_mode="c")).to(rows_M.device)

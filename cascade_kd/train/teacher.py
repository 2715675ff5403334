"""Teacher scores, computed once and kept in a memory-mapped file (floor 6). M training rows, S slots of a row."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cascade_kd.stages import LogitStage
from cascade_kd.stages.scoring import ROWS_PER_CALL
from cascade_kd.train.distributed import rank_0_first
from cascade_kd.train.samples import Sampler
from cascade_kd.train.stream import StreamSampler


def teacher_logits(stage: LogitStage, sampler: Sampler | StreamSampler, path: Path) -> Tensor:
    """Logits [M, S] float32 of the teacher for a student's training rows, each as of its own moment.

    Slot 0 is the logged event, the others its sampled negatives, NaN where there is none. ``path`` (.npy) is read if
    it exists: the caller names it by the hash of teacher, data and rows. It is written under a temporary name and
    renamed. No gradient can flow: a stage scores under ``no_grad`` in evaluation mode.
    """
    with rank_0_first():
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
            try:
                _write(stage, sampler, temporary)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
    # Copy-on-write mapping: pages stay shared and on disk, and torch gets memory that it may call writable.
    return torch.from_numpy(np.load(path, mmap_mode="c")).to(sampler.device)


def _write(stage: LogitStage, sampler: Sampler | StreamSampler, path: Path) -> None:
    shape = (sampler.num_rows, sampler.num_slots)
    scores_MS = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    step = max(1, ROWS_PER_CALL // sampler.num_slots)
    for sample_B in torch.arange(shape[0], device=sampler.device).split(step):
        batch = sampler.rows(sample_B)
        logits_R = stage.logits(batch.requests, batch.item_R, batch.row_R, batch.event_R)
        block_BS = torch.full((len(sample_B), shape[1]), torch.nan, device=logits_R.device)
        block_BS[batch.row_R, batch.slot_R] = logits_R
        start = int(sample_B[0])
        scores_MS[start : start + len(sample_B)] = block_BS.cpu().numpy()
    scores_MS.flush()

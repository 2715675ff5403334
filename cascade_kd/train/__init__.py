"""Training: one ``fit`` over the star schema, samples, checkpoints, upstream lists, teacher scores (floor 6).

The names below load on first use: ``settings`` alone, which the check of a TOML reads, takes no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cascade_kd.lazy import lazy

if TYPE_CHECKING:
    from cascade_kd.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from cascade_kd.train.lists import upstream_lists
    from cascade_kd.train.loop import fit
    from cascade_kd.train.progress import ProgressLog
    from cascade_kd.train.settings import SampleSource, TrainConfig
    from cascade_kd.train.state import is_finished, load_best
    from cascade_kd.train.task import Student, Task, make_sampler
    from cascade_kd.train.teacher import teacher_logits
    from cascade_kd.train.terms import LiveTeacher, Term
else:
    __getattr__ = lazy(
        __name__,
        {
            "Checkpoint": "checkpoint",
            "LiveTeacher": "terms",
            "ProgressLog": "progress",
            "SampleSource": "settings",
            "Student": "task",
            "Task": "task",
            "Term": "terms",
            "TrainConfig": "settings",
            "fit": "loop",
            "is_finished": "state",
            "load_best": "state",
            "load_checkpoint": "checkpoint",
            "make_sampler": "task",
            "save_checkpoint": "checkpoint",
            "teacher_logits": "teacher",
            "upstream_lists": "lists",
        },
    )

__all__ = [
    "Checkpoint",
    "LiveTeacher",
    "ProgressLog",
    "SampleSource",
    "Student",
    "Task",
    "Term",
    "TrainConfig",
    "fit",
    "is_finished",
    "load_best",
    "load_checkpoint",
    "make_sampler",
    "save_checkpoint",
    "teacher_logits",
    "upstream_lists",
]

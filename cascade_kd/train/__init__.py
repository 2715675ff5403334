"""Training: one ``fit`` over the star schema, samples, checkpoints, upstream lists, teacher scores (floor 6)."""

from cascade_kd.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from cascade_kd.train.loop import Task, Term, fit, is_finished, load_best, make_sampler
from cascade_kd.train.lists import upstream_lists
from cascade_kd.train.progress import ProgressLog
from cascade_kd.train.settings import SampleSource, TrainConfig
from cascade_kd.train.teacher import teacher_logits

__all__ = [
    "Checkpoint",
    "ProgressLog",
    "SampleSource",
    "Task",
    "Term",
    "TrainConfig",
    "fit",
    "is_finished",
    "load_best",
    "make_sampler",
    "load_checkpoint",
    "save_checkpoint",
    "teacher_logits",
    "upstream_lists",
]

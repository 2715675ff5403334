"""A whole experiment: train the rounds, evaluate, report (floor 8)."""

from cascade_kd.experiment.run import RunResult, run

__all__ = ["RunResult", "run"]

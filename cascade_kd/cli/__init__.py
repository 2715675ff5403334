"""The command line (floor 9)."""

from cascade_kd.cli.main import main

__all__ = ["main"]

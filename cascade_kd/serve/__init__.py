"""Using a trained cascade (floor 6)."""

from cascade_kd.serve.recommend import recommend

__all__ = ["recommend"]

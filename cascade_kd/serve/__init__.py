"""Using a trained cascade, and proving what it reads (floor 6)."""

from cascade_kd.serve.inputs import prove_availability, traced_inputs
from cascade_kd.serve.recommend import recommend

__all__ = ["prove_availability", "recommend", "traced_inputs"]

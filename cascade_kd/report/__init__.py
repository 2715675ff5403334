"""What a run found, written as ``metrics.json``, terminal tables and one self-contained HTML file (floor 1)."""

from cascade_kd.report.files import atomic_path, atomic_write_bytes, atomic_write_text
from cascade_kd.report.html import render_html
from cascade_kd.report.report import Report, to_json
from cascade_kd.report.terminal import funnel_tables

__all__ = [
    "Report",
    "atomic_path",
    "atomic_write_bytes",
    "atomic_write_text",
    "funnel_tables",
    "render_html",
    "to_json",
]

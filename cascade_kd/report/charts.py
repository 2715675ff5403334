"""The pictures of a report as Vega-Lite specifications (needs the extra ``report``).

Colours are CSS variables of the page, so one drawing serves light and dark; widths follow the container.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import altair as alt
import vl_convert

from cascade_kd.report.headline import percent
from cascade_kd.report.report import Report
from cascade_kd.report.tables import figure, is_distilled, stage_keeps, stage_names

Rows = list[dict[str, Any]]
KEPT, LOST, INK, MUTED, LINE = "var(--kept)", "var(--lost)", "var(--ink)", "var(--muted)", "var(--line)"
ROUNDS = ("var(--round-0)", "var(--round-1)", "var(--round-2)", "var(--round-3)")  # round 4 is drawn as round 3
SHORT_NAME = 14  # longer stage names stand on a line of their own, so that a phone shows their figures
CONFIG = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": MUTED,
        "titleColor": MUTED,
        "titleFontWeight": "normal",
        "gridColor": LINE,
        "domain": False,
        "tickColor": LINE,
        "labelFontSize": 11,
        "titleFontSize": 11,
    },
    "text": {"color": INK},
}


@cache
def javascript() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script of the Vega-Lite version that Altair writes."""
    version = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    known = {name.lstrip("v") for name in vl_convert.get_vegalite_versions()}
    snippet = "window.vegaEmbed = vegaEmbed;"
    bundle: str = vl_convert.javascript_bundle(snippet, vl_version=version if version in known else None)
    return bundle


def draw(report: Report) -> dict[str, list[Chart]]:
    """All charts by section: "funnel", "agreement", "curves", "calibration"."""
    funnel = funnel_chart(report)
    return {
        "funnel": [funnel] if funnel else [],
        "agreement": agreement_charts(report),
        "curves": curve_charts(report),
        "calibration": calibration_charts(report),
    }


def funnel_chart(report: Report) -> Chart | None:
    """A bar a stage: the share of test positives that survives it, then the share that it loses."""
    keeps = stage_keeps(report)
    rows: Rows = []
    for stage in stage_names(report):
        kept = figure(report, ("cascade", "survival", stage)).mean
        lost = figure(report, ("cascade", "lost", stage)).mean
        if kept is not None and lost is not None:
            budget = f" (top {keeps[stage]:,})" if stage in keeps else ""
            text = [f"{stage}{budget}", f"{percent(kept)} kept, {percent(lost)} lost here"]
            base = figure(report, ("baseline", "cascade", "survival", stage)).mean if is_distilled(report) else None
            rows.append({"stage": stage, "kept": kept, "lost": lost, "before": kept + lost, "base": base, "text": text})
    if not rows:
        return None
    alt_text = "Share of test positives kept and lost by every stage. " + "; ".join(map(_joined, rows))
    lines = 1 if all(len(row["stage"]) <= SHORT_NAME for row in rows) else 2
    if lines == 1:
        rows = [{**row, "text": _joined(row)} for row in rows]
    tooltip = [alt.Tooltip("stage:N"), alt.Tooltip("kept:Q", format=".4f"), alt.Tooltip("lost:Q", format=".4f")]
    tooltip += [alt.Tooltip("base:Q", format=".4f", title="kept without distillation")] * is_distilled(report)
    y = alt.Y("stage:N", sort=None, axis=None)
    share = {"scale": alt.Scale(domain=[0, 1]), "axis": alt.Axis(format="%", tickCount=5, grid=False)}
    chart = alt.Chart(_data(rows))
    kept_bar = chart.mark_bar(size=24, color=KEPT, cornerRadius=2).encode(
        y=y, x=alt.X("kept:Q", title="share of the users' test positives", **share), tooltip=tooltip
    )
    lost_bar = chart.mark_bar(size=24, color=LOST, cornerRadius=2).encode(
        y=y, x=alt.X("kept:Q", **share), x2="before:Q", tooltip=tooltip
    )
    label = chart.mark_text(
        align="left", dy=-7 - 16 * lines, fontSize=13, lineHeight=16, limit={"expr": "width"}
    ).encode(y=y, x=alt.value(0), text="text:N")
    layers = [lost_bar, kept_bar, label]
    if is_distilled(report):
        marker = alt.Chart(_data([row for row in rows if row["base"] is not None]))
        layers.append(marker.mark_tick(thickness=2, size=28, color=INK).encode(y=y, x=alt.X("base:Q", **share)))
    return _chart("Where the test positives go", alt_text, alt.layer(*layers), height=(46 + 16 * lines) * len(rows))


def curve_charts(report: Report) -> list[Chart]:
    """Per stage the training loss and the validation metric by epoch, a line a round and seed."""
    charts = []
    for stage in dict.fromkeys(point["stage"] for point in report.curves):
        points = [point for point in report.curves if point["stage"] == stage]
        charts.append(_curve(f"{stage}: training loss", points, "loss"))
        for metric in dict.fromkeys(point["metric"] for point in points):
            title = f"{stage}: validation {metric}"
            charts.append(_curve(title, [point for point in points if point["metric"] == metric], "value"))
    return charts


def calibration_charts(report: Report) -> list[Chart]:
    """Per stage the observed share of positives against the predicted probability, in bins, with the diagonal."""
    charts = []
    for stage, all_bins in report.calibration.items():
        bins = [point for point in all_bins if None not in point.values()]
        top = max((max(point["predicted"], point["observed"]) for point in bins), default=1.0)
        scale = alt.Scale(domain=[0, top])
        base = alt.Chart(_data(bins)).encode(
            x=alt.X("predicted:Q", scale=scale, title="predicted"),
            y=alt.Y("observed:Q", scale=scale, title="observed"),
            tooltip=[alt.Tooltip("predicted:Q", format=".4f"), alt.Tooltip("observed:Q", format=".4f"), "n:Q"],
        )
        drawn = alt.layer(_diagonal(top), base.mark_line(color=KEPT), base.mark_point(color=KEPT, filled=True, size=40))
        gap = max((abs(point["predicted"] - point["observed"]) for point in bins), default=0.0)
        alt_text = f"Calibration of {stage}: {len(bins)} bins, largest gap to the diagonal {gap:.3f}."
        charts.append(_chart(stage, alt_text, drawn, height=260))
    return charts


def agreement_charts(report: Report) -> list[Chart]:
    """Per distiller how often student and teacher give which pair of probabilities, with the diagonal."""
    charts = []
    for name, bins in report.agreement.items():
        width = _bin_width(bins)
        cells: Rows = [
            {
                **point,
                **{
                    f"{side}_{end}": point[side] + sign * width / 2
                    for side in ("teacher", "student")
                    for end, sign in (("low", -1), ("high", 1))
                },
            }
            for point in bins
            if point["n"] > 0
        ]
        scale = alt.Scale(domain=[0, 1])
        heat = (
            alt.Chart(_data(cells))
            .mark_rect(color=KEPT)
            .encode(
                x=alt.X("teacher_low:Q", scale=scale, title="teacher's probability"),
                x2="teacher_high:Q",
                y=alt.Y("student_low:Q", scale=scale, title="student's probability"),
                y2="student_high:Q",
                opacity=alt.Opacity("n:Q", scale=alt.Scale(type="log", range=[0.08, 1]), legend=None),
                tooltip=["teacher:Q", "student:Q", alt.Tooltip("n:Q", title="rows", format=",")],
            )
        )
        total = sum(point["n"] for point in cells)
        near = sum(point["n"] for point in cells if abs(point["teacher"] - point["student"]) <= 0.1 + 1e-9)
        alt_text = (
            f"{name}: {percent(near / total) if total else 'none'} of {total:,} rows lie within .1 of the diagonal."
        )
        charts.append(_chart(name, alt_text, alt.layer(heat, _diagonal(1.0, INK)), height=300))
    return charts


def _joined(row: dict[str, Any]) -> str:
    return ": ".join(row["text"])


def _curve(title: str, points: Rows, field: str) -> Chart:
    rows = [point for point in points if point.get(field) is not None]
    rounds = sorted({point["round"] for point in rows})
    colours = [ROUNDS[min(number, len(ROUNDS) - 1)] for number in rounds]
    line = alt.Chart(_data(rows)).mark_line(point=alt.OverlayMarkDef(size=18), strokeWidth=1.5)
    drawn = line.encode(
        x=alt.X("epoch:Q", title="epoch", axis=alt.Axis(tickMinStep=1, format="d", grid=False)),
        y=alt.Y(f"{field}:Q", title=None, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5)),
        color=alt.Color("round:N", scale=alt.Scale(domain=rounds, range=colours), legend=None),
        detail="seed:N",
        tooltip=["round:N", "seed:N", "epoch:Q", alt.Tooltip(f"{field}:Q", format=".4f")],
    )
    ends = f"from {rows[0][field]:.4f} to {rows[-1][field]:.4f} in the last run drawn" if rows else "no points"
    return _chart(title, f"{title} by epoch, {ends}.", drawn, height=170)


def _diagonal(top: float, colour: str = MUTED) -> alt.Chart:
    ends = alt.Chart(_data([{"x": 0, "y": 0}, {"x": top, "y": top}]))
    return ends.mark_line(color=colour, strokeDash=[4, 4], strokeWidth=1).encode(x="x:Q", y="y:Q")


def _bin_width(bins: Rows) -> float:
    middles = sorted({point[side] for point in bins for side in ("teacher", "student")})
    return min((high - low for low, high in pairwise(middles)), default=0.05)


def _data(rows: Rows) -> alt.Data:
    return alt.Data(values=rows)


def _chart(title: str, text: str, drawn: Any, *, height: int) -> Chart:
    spec: dict[str, Any] = drawn.properties(width="container", height=height).to_dict()
    spec.pop("config", None)  # the page brings one for all
    return Chart(title, text, spec)


@dataclass(frozen=True)
class Chart:
    """A title, a text that says what is seen, and a Vega-Lite specification."""

    title: str
    alt: str
    spec: dict[str, Any]

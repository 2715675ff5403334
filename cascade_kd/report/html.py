"""``report.html``: one file that needs no network."""

from __future__ import annotations

from dataclasses import replace
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING

from cascade_kd.report import listings
from cascade_kd.report.cells import format_number
from cascade_kd.report.headline import headlines
from cascade_kd.report.markup import (
    card,
    chart_html,
    details,
    key,
    notes_html,
    script_code,
    script_json,
    table_html,
)
from cascade_kd.report.report import Report
from cascade_kd.report.tables import (
    cascade_table,
    codistill_table,
    distill_table,
    figure,
    funnel_table,
    index_table,
    is_distilled,
    popularity_table,
    previous_table,
)
from cascade_kd.report.tree import jsonable

if TYPE_CHECKING:
    from cascade_kd.report.charts import Chart

    Pictures = dict[str, list[tuple[int, Chart]]]  # section -> charts with their numbers on the page

NO_PICTURES = "The pictures are left out, since altair or vl-convert-python is missing: pip install cascade-kd[report]"
ROUND_NAMES = ("round 0 (undistilled)", "round 1 (distilled)", "round 2", "round 3 and later")


def render_html(report: Report) -> str:
    """The whole report as one HTML document: tables always, pictures when the extra ``report`` is installed."""
    report = replace(  # null instead of NaN in what the pictures show
        report,
        curves=jsonable(report.curves),
        calibration=jsonable(report.calibration),
        agreement=jsonable(report.agreement),
    )
    pictures = _pictures(report)
    sections = {
        "Funnel": _funnel(report, pictures),
        "Distillation": _distillation(report, pictures),
        "Learning curves": _curves(report, pictures),
        "Calibration": _calibration(report, pictures),
        "Run": _run(report),
    }
    sections = {title: body for title, body in sections.items() if body}
    ids = {title: title.lower().replace(" ", "-") for title in sections}
    links = "".join(f'<a href="#{ids[title]}">{title}</a>' for title in sections)
    cards = "".join(map(card, headlines(report)))
    name = escape(str(report.run.get("name", "unnamed run")))
    return "".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
            '<link rel="icon" href="data:,">\n',  # else a browser asks the server for one
            f"<title>{name}: cascade report</title>\n<style>\n{_asset('page.css')}</style>\n</head>\n<body>\n",
            f"<header><h1>{name}</h1><p>{escape(_subtitle(report))}</p><nav>{links}</nav></header>\n<main>\n",
            f'<div class="cards">{cards}</div>\n' if cards else "",
            notes_html([*report.notes, *([] if pictures is not None else [NO_PICTURES])]),
            *(f'<section id="{ids[title]}"><h2>{title}</h2>\n{body}</section>\n' for title, body in sections.items()),
            "</main>\n<footer>Written by cascade-kd.</footer>\n",
            _scripts(pictures) if pictures is not None else "",
            "</body>\n</html>\n",
        ]
    )


def _pictures(report: Report) -> Pictures | None:
    """The charts of every section with their numbers, None when the extra is not installed."""
    try:
        from cascade_kd.report import charts
    except ImportError:
        return None
    numbered: Pictures = {}
    count = 0
    for section, drawn in charts.draw(report).items():
        numbered[section] = list(enumerate(drawn, start=count))
        count += len(drawn)
    return numbered


def _scripts(pictures: Pictures) -> str:
    from cascade_kd.report.charts import CONFIG, javascript

    drawings = {"config": CONFIG, "specs": [chart.spec for group in pictures.values() for _, chart in group]}
    return (
        "<noscript><p>The pictures need JavaScript; the tables hold the same figures.</p></noscript>\n"
        f'<script type="application/json" id="drawings">{script_json(drawings)}</script>\n'
        f"<script>{script_code(javascript())}</script>\n<script>\n{_asset('page.js')}</script>\n"
    )


def _figures(pictures: Pictures | None, section: str, shape: str = "", legend: str = "") -> str:
    group = (pictures or {}).get(section, [])
    drawn = "".join(chart_html(number, chart.title, chart.alt, legend) for number, chart in group)
    return f'<div class="charts {shape}">{drawn}</div>\n' if drawn else ""


def _subtitle(report: Report) -> str:
    run = report.run
    facts = [f"{len(report.seeds)} seed" + "s" * (len(report.seeds) != 1)]
    sayings = {"threads": "{} threads", "device": "on {}", "wall_s": "{}", "peak_rss_bytes": "{} peak memory"}
    facts += [saying.format(listings.fact(key, run[key])) for key, saying in sayings.items() if run.get(key)]
    return " · ".join(facts)


def _funnel(report: Report, pictures: Pictures | None) -> str:
    legend = key("--kept", "kept by this stage") + key("--lost", "lost in this stage")
    legend += key("--ink", "kept without distillation", tick=True) * is_distilled(report)
    drawn = (
        funnel_table(report),
        cascade_table(report),
        popularity_table(report),
        previous_table(report),
        index_table(report),
    )
    tables = [table_html(table) for table in drawn if table.rows]
    return _figures(pictures, "funnel", "wide", legend) + "".join(tables)


def _distillation(report: Report, pictures: Pictures | None) -> str:
    shown = "".join(table_html(table) for table in (distill_table(report), codistill_table(report)) if table.rows)
    heat = _figures(
        pictures, "agreement", "square", '<span class="quiet">the stronger the colour, the more rows (log scale)</span>'
    )
    text = "<p>Teacher and student on the same rows; on the dashed line they agree.</p>\n" if heat else ""
    return shown + text + heat + listings.agreement_tables(report)


def _curves(report: Report, pictures: Pictures | None) -> str:
    rounds = sorted({min(point["round"], len(ROUND_NAMES) - 1) for point in report.curves})
    legend = "".join(key(f"--round-{number}", ROUND_NAMES[number]) for number in rounds)
    drawn = _figures(pictures, "curves")
    text = f'<p class="quiet">{legend}one line a seed</p>\n' if drawn and len(rounds) > 1 else ""
    return text + drawn + listings.curve_table(report)


def _calibration(report: Report, pictures: Pictures | None) -> str:
    drawn = _figures(pictures, "calibration", "square")
    errors = {stage: figure(report, ("stages", stage, "ece")).mean for stage in report.calibration}
    known = [f"{stage} {format_number(error)}" for stage, error in errors.items() if error is not None]
    text = f"<p>Expected calibration error: {escape(', '.join(known))}.</p>\n" if known else ""
    return text + drawn + listings.calibration_tables(report)


def _run(report: Report) -> str:
    config = details("Resolved configuration", f"<pre>{escape(report.config_toml)}</pre>")
    return listings.run_tables(report) + listings.all_figures(report) + config


def _asset(name: str) -> str:
    return files("cascade_kd.report").joinpath("assets", name).read_text(encoding="utf-8")

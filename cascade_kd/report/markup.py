"""Pieces of HTML: every text that goes in is escaped here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from cascade_kd.report.cells import VERDICT_NOTE, Cell, Row, Table, format_number
from cascade_kd.report.headline import Headline

MINUS = str.maketrans({"-": "−"})  # noqa: RUF001  the typographic minus is as wide as the plus


def table_html(table: Table) -> str:
    """A table of figures with its notes, scrolling inside its own box."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    body = "\n".join(_row(row) for row in table.rows)
    notes = list(table.notes)
    if any(cell.stderr is not None for cell in table.figures):
        notes.insert(1, "se: standard error within a seed, over users or rows, averaged over the seeds")
    if any(cell.verdict for cell in table.figures):
        notes.append(VERDICT_NOTE)
    return scroll(
        table.title,
        f"<table><caption>{escape(table.title)}</caption>"
        f'<thead><tr><th scope="col"></th>{head}</tr></thead>\n<tbody>{body}</tbody></table>',
    ) + "".join(f'<div class="quiet">{escape(note)}</div>\n' for note in notes)


def plain_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of ready texts; the first cell of a row is its header."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "\n".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return scroll(title, f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>")


def facts_table(title: str, facts: Mapping[str, str]) -> str:
    """Names and values, one a line."""
    rows = "".join(
        f'<tr><th scope="row">{escape(key)}</th><td>{escape(value)}</td></tr>' for key, value in facts.items()
    )
    return scroll(title, f'<table class="facts"><caption>{escape(title)}</caption><tbody>{rows}</tbody></table>')


def scroll(label: str, inner: str) -> str:
    """A box that scrolls sideways by itself, reachable by keyboard."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">{inner}</div>\n'


def details(summary: str, inner: str) -> str:
    """Folded away until asked for."""
    return f"<details><summary>{escape(summary)}</summary>{inner}</details>\n"


def card(headline: Headline) -> str:
    """A headline as a card."""
    return (
        f'<div class="card"><h2>{escape(headline.label)}</h2>'
        f'<strong class="{headline.verdict}">{escape(headline.value.translate(MINUS))}</strong>'
        f"<p>{escape(headline.text)}</p></div>\n"
    )


def notes_html(notes: Sequence[str]) -> str:
    """Warnings and remarks, nothing when there are none."""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<aside class="notes" aria-label="Notes"><ul>{items}</ul></aside>\n' if notes else ""


def chart_html(number: int, title: str, text: str, legend: str = "") -> str:
    """The place of chart ``number``; ``legend`` is HTML already."""
    return (
        f"<figure><figcaption><b>{escape(title)}</b>{legend}</figcaption>"
        f'<div class="chart" data-chart="{number}" role="img" aria-label="{escape(text)}"></div></figure>\n'
    )


def key(colour: str, text: str, *, tick: bool = False) -> str:
    """One entry of a legend; ``colour`` is a CSS variable of the page."""
    shape = ' class="tick"' if tick else ""
    return f'<span class="key"><i{shape} style="background:var({colour})"></i>{escape(text)}</span>'


def script_json(value: Any) -> str:
    """JSON that may stand inside a script element: no ``<`` is left in it."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def script_code(code: str) -> str:
    """Code that may stand inside a script element: an end tag can only occur in a string, where ``\\/`` is ``/``."""
    return re.sub(r"<(/script|!--)", r"<\\\1", code, flags=re.IGNORECASE)


def _row(row: Row) -> str:
    cells = "".join(_cell(cell) for cell in row.cells)
    return f'<tr class="{row.kind}"><th scope="row">{escape(row.label)}</th>{cells}</tr>'


def _cell(cell: Cell | str) -> str:
    if isinstance(cell, str):
        return f"<td>{escape(cell)}</td>"
    title = f' title="{escape(cell.why)}"' if cell.why else ""
    spread = f" <span>±{cell.spread}</span>" if cell.spread else ""
    within = f"<small>se {format_number(cell.stderr)}</small>" if cell.stderr is not None else ""
    return f'<td class="{cell.verdict}"{title}>{cell.value.translate(MINUS)}{spread}{within}</td>'

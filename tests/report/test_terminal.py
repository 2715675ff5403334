from __future__ import annotations

import io

import pytest
from rich.console import Console

from cascade_kd.report import Report, funnel_tables
from cascade_kd.report.cells import Cell
from cascade_kd.report.tables import cascade_table, distill_table, funnel_table

VARIANTS = {
    "three seeds": {},
    "one seed": {"seeds": 1},
    "no distiller": {"distilled": False},
    "long names": {"stages": ("two tower recall over everything there is", "pre rank", "[red]rank[/red]")},
}


def printed(report, width, encoding="utf-8", **options):
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    Console(file=file, width=width, **options).print(*funnel_tables(report))
    file.flush()
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_line_is_too_wide_and_no_number_is_cut(made_up, variant, width):
    report = made_up.make_report(**variant)
    text = printed(report, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    words = text.split()
    for table in (funnel_table(report), cascade_table(report), distill_table(report)):
        for cell in table.figures:
            if cell.mean is not None:
                assert cell.value in words
            if cell.spread:
                assert f"±{cell.spread}" in words


def test_wide_tables_have_a_line_a_row(made_up):
    lines = printed(made_up.make_report(), 120).splitlines()
    row = next(line for line in lines if line.startswith("prerank")).split()
    assert row[:2] == ["prerank", "50"]
    assert len(row) == 2 + 6 * 2
    header = next(line for line in lines if line.startswith("Stages"))
    assert header.split() == ["Stages", "keep", "AUC", "GAUC", "log", "loss", "recall@keep", "survival", "lost", "here"]
    below = lines[next(number for number, line in enumerate(lines) if line.startswith("prerank")) + 1 :][:2]
    assert [line.split()[0] for line in below] == ["undistilled", "difference"]


def test_at_80_columns_the_error_stands_below_its_figure(made_up):
    lines = printed(made_up.make_report(), 80).splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("prerank"))
    assert len(lines[place].split()) == 2 + 6
    errors = lines[place + 1].split()
    assert len(errors) == 6
    assert all(error.startswith("±.") for error in errors)
    ends = [lines[place].index(word) + len(word) for word in lines[place].split()[2:]]
    below = [lines[place + 1].index(word) + len(word) for word in dict.fromkeys(errors)]
    assert set(below) <= set(ends)  # both lines are flush right in the same columns


def test_a_narrow_terminal_gets_a_figure_a_line(made_up):
    text = printed(made_up.make_report(seeds=1), 40)
    assert any(line.split()[:2] == ["prerank", "keep"] for line in text.splitlines())


def test_output_to_a_file_is_plain(made_up):
    text = printed(made_up.make_report(), 80)
    assert "\x1b" not in text
    assert "coloured" not in text
    coloured = printed(made_up.make_report(), 80, force_terminal=True, color_system="standard", no_color=False)
    assert "\x1b[" in coloured


def test_names_are_not_markup(made_up):
    text = printed(made_up.make_report(stages=("[bold]a", "[/]b", "[red]c")), 120)
    for name in ("[bold]a", "[/]b", "[red]c"):
        assert name in text


def test_consoles_without_unicode_get_ascii(made_up):
    text = printed(made_up.make_report(), 80, encoding="ascii")
    assert "+-.0" in text
    assert max(map(len, text.splitlines())) <= 80


def test_one_seed_says_so(made_up):
    assert "± standard error, one seed" in printed(made_up.make_report(seeds=1), 120)


def test_an_empty_report_prints_nothing_wrong():
    assert funnel_tables(Report(run={}, seeds={}, config_toml="")) == funnel_tables(Report({}, {"0": {}}, ""))
    assert Cell().value == "–"  # noqa: RUF001

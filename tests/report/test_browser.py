"""``report.html`` in a real browser, at desktop and phone width, light and dark."""

from __future__ import annotations

import pytest

from cascade_kd.report import atomic_write_text, render_html

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
OPEN_ALL = "document.querySelectorAll('details').forEach((box) => { box.open = true; })"
WIDTH = "document.documentElement.scrollWidth"
DRAWN = """
[...document.querySelectorAll(".chart")].map((box) => {
  const drawing = box.querySelector("svg, canvas");
  const size = drawing ? drawing.getBoundingClientRect() : { width: 0, height: 0 };
  const marks = box.querySelectorAll(".mark-rect path, .mark-line path, .mark-symbol path").length;
  return [size.width, size.height, box.clientWidth, marks];
})
"""
BAR = "getComputedStyle(document.querySelector('.chart .mark-rect path')).fill"
PAPER = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def browser(chromium, tmp_path_factory):
    program = chromium.find_chromium()
    if program is None:
        pytest.skip("no Chromium on this machine (CI installs one)")
    with chromium.chromium(program, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(made_up, tmp_path_factory):
    """Addresses of report.html by variant."""
    folder = tmp_path_factory.mktemp("reports")
    names = (f"recall {made_up.HOSTILE}", "pre rank", "x" * 60)
    variants = {
        "three seeds": made_up.make_report(),
        "hostile names": made_up.make_report(seeds=1, stages=names),
        "no distiller": made_up.make_report(seeds=1, distilled=False),
    }
    for name, report in variants.items():
        atomic_write_text(folder / f"{name}.html", render_html(report))
    return {name: (folder / f"{name}.html").as_uri() for name in variants}


@pytest.mark.parametrize(
    ("variant", "size", "scheme"),
    [
        ("three seeds", "desktop", "light"),
        ("three seeds", "phone", "dark"),
        ("hostile names", "desktop", "dark"),
        ("hostile names", "phone", "light"),
        ("no distiller", "phone", "light"),
    ],
)
def test_report_in_a_browser(browser, pages, variant, size, scheme):
    width, height = SIZES[size]
    page = browser.open(pages[variant], width=width, height=height, scheme=scheme)
    try:
        drawn = page.evaluate(DRAWN)
        assert len(drawn) == (9 if variant == "no distiller" else 10)
        for drawing_width, drawing_height, box_width, marks in drawn:
            assert 200 < drawing_width <= box_width + 1
            assert drawing_height > 100
            assert marks > 0
        assert page.evaluate(WIDTH) <= width
        page.evaluate(OPEN_ALL)
        assert page.evaluate(WIDTH) <= width
        assert page.complaints() == []
        assert page.requests() == [pages[variant]]
    finally:
        page.close()


def test_colours_follow_the_scheme(browser, pages):
    seen = {}
    for scheme in ("light", "dark"):
        page = browser.open(pages["three seeds"], width=1280, height=900, scheme=scheme)
        seen[scheme] = (page.evaluate(BAR), page.evaluate(PAPER))
        page.close()
    assert "rgb(0, 0, 0)" not in (*seen["light"], *seen["dark"])  # an unknown variable would paint it black
    assert seen["light"][0] != seen["dark"][0]
    assert seen["light"][1] != seen["dark"][1]


def test_the_check_itself_sees_errors_requests_and_overflow(browser, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!DOCTYPE html><meta name=viewport content='width=device-width'><div style='width:2000px'>wide</div>"
        "<img src='missing.png'><script>console.error('told'); setTimeout(() => { undefinedFunction(); });</script>",
        encoding="utf-8",
    )
    page = browser.open(bad.as_uri(), width=390, height=844)
    page.evaluate("new Promise((done) => setTimeout(done, 50))")
    complaints = " ".join(page.complaints())
    assert "told" in complaints
    assert "undefinedFunction" in complaints
    assert (tmp_path / "missing.png").as_uri() in page.requests()
    assert page.evaluate(WIDTH) > 390
    page.close()

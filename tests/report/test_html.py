from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from cascade_kd import report as package
from cascade_kd.report import Report, render_html
from cascade_kd.report.cells import format_number
from cascade_kd.report.markup import script_code, script_json
from cascade_kd.report.tree import leaf_mean

VOID = {"meta", "link", "br", "hr", "img"}


class Outline(HTMLParser):
    """Tags in order with their attributes; asserts that every end tag closes the last open one."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words, self.scripts = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.scripts if self.open and self.open[-1] == "script" else self.words).append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def text(self):
        return "\n".join(self.words)


@pytest.fixture
def without_pictures(monkeypatch):
    """As if the extra ``report`` were not installed."""
    monkeypatch.setitem(sys.modules, "altair", None)
    monkeypatch.delitem(sys.modules, "cascade_kd.report.charts", raising=False)
    monkeypatch.delattr(package, "charts", raising=False)


@pytest.fixture
def hostile(made_up):
    """A report with a hostile name wherever a name can stand."""
    bad = made_up.HOSTILE
    base = made_up.make_report(seeds=2, stages=(f"recall {bad}", f"prerank {bad}", f"rank {bad}"))
    seeds = {f"{seed} {bad}": tree for seed, tree in base.seeds.items()}
    for tree in seeds.values():
        tree["stages"][f"prerank {bad}"][bad] = {"mean": None, "why": bad, "extra" + bad: bad}
        tree["baseline"]["reference"][bad] = {"auc": 0.5, "recall@10": 0.1}
        tree["teachers"][bad] = {"auc": 0.5}
    curves = [{**point, "metric": bad, "seed": bad} for point in base.curves]
    run = {**base.run, "name": bad, "device": bad, bad: bad, "versions": {bad: bad}}
    return replace(base, run=run, seeds=seeds, notes=[bad], curves=curves, config_toml=base.config_toml + f"# {bad}\n")


@pytest.fixture(scope="module")
def full(made_up):
    """The report of three seeds and its page."""
    report = made_up.make_report()
    return report, Outline(render_html(report))


def specifications(page):
    return json.loads(next(text for text in page.scripts if text.startswith('{"config"')))["specs"]


def test_one_document_with_title_headings_and_no_outside_address(full):
    _, page = full
    assert page.all("html") == [{"lang": "en"}]
    assert "movielens-1m-logit" in page.text
    assert [tag for tag, _ in page.tags].count("h1") == 1
    sections = [attrs["id"] for attrs in page.all("section")]
    assert sections == ["funnel", "distillation", "learning-curves", "calibration", "run"]
    assert [attrs["href"] for attrs in page.all("a")] == [f"#{name}" for name in sections]
    assert page.all("link") == [{"rel": "icon", "href": "data:,"}]
    assert not any("src" in attrs for _, attrs in page.tags)
    assert "url(" not in page.text


def test_every_chart_has_a_place_a_specification_and_a_text(full):
    _, page = full
    boxes = [attrs for attrs in page.all("div") if attrs.get("class") == "chart"]
    specs = specifications(page)
    # Funnel, agreement, loss and metric of three stages, calibration of two.
    assert len(boxes) == len(specs) == 1 + 1 + 6 + 2
    assert [int(box["data-chart"]) for box in boxes] == list(range(len(specs)))
    assert all(box["role"] == "img" and len(box["aria-label"]) > 20 for box in boxes)
    assert all(spec["width"] == "container" for spec in specs)
    assert "43." in boxes[0]["aria-label"]


def test_figures_of_the_pictures_stand_in_tables_too(full):
    report, text = full[0], full[1].text
    point = report.curves[37]
    for value in (point["loss"], point["value"], report.calibration["rank"][3]["observed"]):
        assert format_number(value) in text
    assert f"{max(cell['n'] for cell in report.agreement['rank->prerank:logit']):,}" in text
    survival = [tree["cascade"]["survival"]["prerank"]["mean"] for tree in report.seeds.values()]
    assert format_number(sum(survival) / 3) in text


def test_every_figure_of_every_seed_is_there_with_error_and_count(full):
    report, text = full[0], full[1].text
    for seed in "012":
        assert f"seed {seed}" in text
        auc = report.seeds[seed]["stages"]["prerank"]["auc"]
        assert f"{format_number(leaf_mean(auc))} ±.0011 (n 97,214)" in text
    assert "one class share .0660" in text


def test_run_facts_configuration_and_notes(full):
    report, text = full[0], full[1].text
    for fact in ("23 min 03 s", "1.80 GiB", "2.13.0", report.run["config_sha256"], report.run["commit"], "0, 1, 2"):
        assert fact in text
    assert report.config_toml in text
    assert report.notes[0] in text
    assert "pip install" not in text


def test_hostile_names_stay_text(hostile, made_up):
    html = render_html(hostile)
    page = Outline(html)
    assert len(page.all("script")) == 3
    assert not any("alert(1)" in script for script in page.scripts if not script.startswith('{"config"'))
    assert html.count("<!--") == 0
    # Notes, title, heading, configuration and more show it as it is.
    assert page.text.count(made_up.HOSTILE) > 20
    assert "alert(1)" in json.dumps(specifications(page))


def test_scripts_cannot_be_closed_from_inside():
    text = script_json({"name": "</script><!-- <b>"})
    assert "<" not in text
    assert json.loads(text) == {"name": "</script><!-- <b>"}
    assert script_code('a = "</SCRIPT>" + "</script>" + "<!--"') == r'a = "<\/SCRIPT>" + "<\/script>" + "<\!--"'


def test_without_altair_the_tables_are_written_and_the_way_to_pictures(made_up, without_pictures):
    report = made_up.make_report()
    html = render_html(report)
    page = Outline(html)
    assert "pip install cascade-kd[report]" in page.text
    assert page.all("script") == []
    assert not any(attrs.get("class") == "chart" for attrs in page.all("div"))
    assert len(html) < 150_000
    point = report.curves[37]
    for value in (point["loss"], report.calibration["rank"][3]["observed"]):
        assert format_number(value) in page.text


def test_one_seed_and_no_distiller(made_up):
    page = Outline(render_html(made_up.make_report(seeds=1, distilled=False)))
    assert "distillation" not in [attrs["id"] for attrs in page.all("section")]
    assert "undistilled" not in page.text
    assert "± standard error, one seed" in page.text
    assert "No stage of this run has a teacher." in page.text


def test_not_a_number_is_never_drawn_or_shown(made_up):
    report = made_up.make_report(seeds=1)
    report.curves[0]["loss"] = float("nan")
    report.curves[1]["value"] = None
    report.calibration["rank"][0]["observed"] = float("nan")
    page = Outline(render_html(report))
    assert not re.search(r"\bnan\b", page.text, re.IGNORECASE)
    assert len(specifications(page)) == 10


def test_an_empty_report_is_still_a_document():
    page = Outline(render_html(Report(run={}, seeds={}, config_toml="")))
    assert "unnamed run" in page.text


def test_the_same_report_gives_the_same_file(made_up):
    assert render_html(made_up.make_report(seeds=1)) == render_html(made_up.make_report(seeds=1))

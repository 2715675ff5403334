from __future__ import annotations

import json
import math
import os
import stat

import pytest

from cascade_kd.report import Report, atomic_write_text, to_json
from cascade_kd.report.tree import leaves


def strict(text):
    def refuse(literal):
        raise AssertionError(f"{literal} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_metrics_json_is_strict_and_holds_every_metric(made_up):
    report = made_up.make_report()
    document = strict(to_json(report))
    assert list(document) == ["schema", "run", "seeds", "summary"]
    assert document["schema"] == 1
    assert document["run"]["peak_rss_bytes"] == report.run["peak_rss_bytes"]
    assert list(document["seeds"]) == ["0", "1", "2"]
    assert document["seeds"]["1"]["stages"]["rank"]["auc"] == report.seeds["1"]["stages"]["rank"]["auc"]
    written = [path for path, _ in leaves(document["summary"])]
    assert written == [path for path, _ in leaves(report.seeds["0"])]
    auc = [report.seeds[seed]["stages"]["prerank"]["auc"]["mean"] for seed in "012"]
    assert document["summary"]["stages"]["prerank"]["auc"]["mean"] == pytest.approx(sum(auc) / 3)
    assert document["summary"]["stages"]["prerank"]["auc"]["seeds"] == 3


def test_nan_is_null_with_a_reason(made_up):
    text = to_json(made_up.make_report(seeds=1))
    assert "NaN" not in text
    document = strict(text)
    why = "sampled softmax is no probability model"
    loss = document["seeds"]["0"]["stages"]["recall"]["logloss"]
    assert loss == {"mean": None, "stderr": None, "n": 0, "why": why}
    assert document["summary"]["stages"]["recall"]["logloss"] == {"mean": None, "sd": None, "seeds": 0, "why": why}


def test_json_keeps_the_order_in_which_trees_were_built():
    tree = {"stages": {"zebra": {"auc": 1.0}, "ant": {"auc": 1.0}}}
    report = Report(run={"b": 1, "a": math.nan}, seeds={"10": tree, "2": tree}, config_toml="")
    document = strict(to_json(report))
    assert list(document["run"].items()) == [("b", 1), ("a", None)]
    assert list(document["seeds"]) == ["10", "2"]
    assert list(document["summary"]["stages"]) == ["zebra", "ant"]
    assert to_json(report) == to_json(report)


def test_write_json_writes_what_to_json_says(made_up, tmp_path):
    report = made_up.make_report(seeds=1)
    report.write_json(tmp_path / "new folder" / "metrics.json")
    assert (tmp_path / "new folder" / "metrics.json").read_text("utf-8") == to_json(report)


def test_atomic_write_replaces_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "report.html"
    atomic_write_text(path, "old")
    atomic_write_text(str(path), "new é\n")
    assert path.read_bytes() == "new é\n".encode()
    assert os.listdir(tmp_path) == ["report.html"]
    mask = os.umask(0o022)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("failing", ["replace", "fsync"])
def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch, failing):
    path = tmp_path / "metrics.json"
    atomic_write_text(path, "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="disk full"):
        atomic_write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["metrics.json"]


def test_text_that_cannot_be_encoded_keeps_the_old_file(tmp_path):
    path = tmp_path / "metrics.json"
    atomic_write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        atomic_write_text(path, "new \ud800")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["metrics.json"]


def test_the_file_is_complete_before_it_gets_its_name(tmp_path, monkeypatch):
    seen = []
    replace = os.replace

    def spy(source, target):
        seen.append((source.parent, source.read_text(), target.exists()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", spy)
    atomic_write_text(tmp_path / "a.json", "whole")
    assert seen == [(tmp_path, "whole", False)]


def test_a_report_is_frozen(made_up):
    with pytest.raises(AttributeError):
        made_up.make_report(seeds=1).notes = []

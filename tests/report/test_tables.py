from __future__ import annotations

import statistics
from dataclasses import replace

import pytest

from cascade_kd.report import Report, render_html
from cascade_kd.report.cells import Cell, format_number
from cascade_kd.report.headline import headlines, percent
from cascade_kd.report.report import to_json
from cascade_kd.report.tables import (
    cascade_table,
    difference,
    distill_table,
    figure,
    funnel_table,
    index_table,
    stage_keeps,
    stage_names,
    student_of,
)


def cell_at(table, label, column, kind="main"):
    """The cell of the row of ``kind`` that belongs to the stage ``label``."""
    stage = None
    for row in table.rows:
        stage = row.label if row.kind in ("main", "reference") else stage
        if stage == label and (row.kind == kind or row.kind == "reference"):
            return row.cells[table.columns.index(column)]
    raise AssertionError(f"no {kind} row of {label}")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.8123, ".8123"),
        (0.81234999, ".8123"),
        (-0.0021, "-.0021"),
        (-0.00001, ".0000"),
        (0.0, ".0000"),
        (1.0, "1.0000"),
        (0.99999, "1.0000"),
        (12.5, "12.5000"),
        (123.456, "123.5"),
        (-1234.5, "-1,234.5"),
        (97214.4, "97,214"),
    ],
)
def test_format_number(value, text):
    assert format_number(value) == text
    assert format_number(abs(value), signed=True) == f"+{format_number(abs(value))}"


def test_one_seed_shows_its_standard_error_several_their_deviation(made_up):
    one = figure(made_up.make_report(seeds=1), ("stages", "prerank", "auc"))
    assert one.error == 0.0011
    assert one.stderr is None
    report = made_up.make_report(seeds=3)
    values = [tree["stages"]["prerank"]["auc"]["mean"] for tree in report.seeds.values()]
    three = figure(report, ("stages", "prerank", "auc"))
    assert three.mean == pytest.approx(statistics.mean(values))
    assert three.error == pytest.approx(statistics.stdev(values))
    assert three.stderr == pytest.approx(0.0011)


def test_differences_are_paired_by_seed():
    def tree(new, old):
        return {"stages": {"s": {"auc": new}}, "baseline": {"stages": {"s": {"auc": old}}}}

    pairs = {"0": tree(0.9, 0.8), "1": tree(0.7, 0.5), "2": tree(0.6, None)}
    change = difference(Report({}, pairs, ""), ("stages", "s", "auc"), ("baseline", "stages", "s", "auc"), better=1)
    assert change.mean == pytest.approx(0.15)
    assert change.error == pytest.approx(statistics.stdev([0.1, 0.2]))


@pytest.mark.parametrize(
    ("mean", "error", "better", "verdict"),
    [
        (0.004, 0.001, 1, "better"),
        (-0.004, 0.001, 1, "worse"),
        (-0.004, 0.001, -1, "better"),
        (0.0019, 0.001, 1, ""),
        (0.004, None, 1, ""),
        (0.004, 0.001, 0, ""),
    ],
)
def test_a_difference_is_judged_only_beyond_twice_its_deviation(mean, error, better, verdict):
    assert Cell(mean=mean, error=error, signed=True, better=better).verdict == verdict


def test_funnel_has_a_row_a_stage_in_order_with_what_distillation_changed(made_up):
    report = made_up.make_report()
    table = funnel_table(report)
    assert [(row.label, row.kind) for row in table.rows] == [
        ("recall", "main"),
        ("prerank", "main"),
        ("undistilled", "baseline"),
        ("difference", "difference"),
        ("rank", "main"),
        ("undistilled", "baseline"),
        ("difference", "difference"),
        ("best possible", "reference"),
    ]
    assert [cell_at(table, stage, "keep") for stage in made_up.STAGES] == ["200", "50", "10"]
    seeds = report.seeds.values()
    kept = [tree["stages"]["prerank"]["recall@50"]["mean"] for tree in seeds]
    assert cell_at(table, "prerank", "recall@keep").mean == pytest.approx(statistics.mean(kept))
    lost = [tree["baseline"]["cascade"]["lost"]["prerank"]["mean"] for tree in seeds]
    assert cell_at(table, "prerank", "lost here", "baseline").mean == pytest.approx(statistics.mean(lost))
    change = cell_at(table, "prerank", "log loss", "difference")
    assert change.mean < 0
    assert change.better == -1
    assert cell_at(table, "rank", "AUC", "difference").value == "0"
    assert cell_at(table, "rank", "AUC", "difference").spread == ""
    assert cell_at(table, "best possible", "AUC").value == ".8412"


def test_without_distillers_there_is_no_undistilled_row(made_up):
    report = made_up.make_report(distilled=False)
    for table in (funnel_table(report), cascade_table(report)):
        assert {row.kind for row in table.rows} == {"main", "reference"}
    assert distill_table(report).rows == ()


def test_teachers_are_listed(made_up):
    report = made_up.make_report(seeds=1)
    report.seeds["0"]["teachers"]["big rank"] = {"auc": made_up.metric(0.83)}
    assert cell_at(funnel_table(report), "teacher big rank", "AUC").value == ".8300"


def test_cascade_stands_beside_its_references(made_up):
    table = cascade_table(made_up.make_report())
    assert table.columns == ("recall@1", "recall@10", "ndcg@1", "ndcg@10")
    labels = [row.label for row in table.rows]
    assert labels == ["cascade", "undistilled", "difference", "recall alone", "popularity", "random"]
    assert cell_at(table, "popularity", "recall@10").value == ".0388"
    assert cell_at(table, "popularity", "ndcg@10").value == "–"  # noqa: RUF001


def test_distillers_show_overlap_and_recovery(made_up):
    table = distill_table(made_up.make_report())
    assert table.columns[:3] == ("overlap@10", "overlap@50", "tau")
    assert table.columns[3:] == ("recovery AUC", "recovery GAUC", "recovery log loss")
    assert [row.label for row in table.rows] == ["rank->prerank: logit"]
    assert cell_at(table, "rank->prerank: logit", "recovery log loss").mean is None


def test_marks_and_reasons_become_notes(made_up):
    table = funnel_table(made_up.make_report())
    assert cell_at(table, "prerank", "log loss").value.endswith("*")
    assert cell_at(table, "recall", "log loss").value == "–"  # noqa: RUF001
    assert table.notes == (
        "± standard deviation over 3 seeds",
        "– log loss: sampled softmax is no probability model (recall)",  # noqa: RUF001
        "* log loss: calibrated: platt (prerank, undistilled)",
    )


def test_names_with_spaces_and_signs(made_up):
    stages = ("two tower", "pre->rank: v2", "final rank")
    report = made_up.make_report(stages=stages)
    assert stage_names(report) == list(stages)
    assert stage_keeps(report) == dict(zip(stages, made_up.KEEPS, strict=True))
    assert "pre->rank: v2" in [row.label for row in funnel_table(report).rows]


def test_student_of():
    assert student_of("rank->prerank:logit") == "prerank"
    assert student_of("big rank->pre: rank:topk-pointwise") == "pre: rank"


def test_an_unreadable_configuration_costs_only_the_budgets(made_up):
    report = replace(made_up.make_report(), config_toml="not = [toml")
    assert stage_keeps(report) == {}
    assert cell_at(funnel_table(report), "recall", "keep") == "–"  # noqa: RUF001
    assert cell_at(funnel_table(report), "recall", "AUC").mean is not None


def test_an_empty_report_has_empty_tables():
    report = Report(run={}, seeds={}, config_toml="")
    assert funnel_table(report).rows == ()
    assert distill_table(report).rows == ()


def test_headlines(made_up):
    kept, gained, lost = headlines(made_up.make_report())
    report = made_up.make_report()
    survival = statistics.mean(tree["cascade"]["survival"]["rank"]["mean"] for tree in report.seeds.values())
    assert kept.value == percent(survival)
    assert "top 10" in kept.text
    assert "AUC of prerank" in gained.text
    assert gained.value.startswith("+.00")
    assert gained.verdict == "better"
    assert "lost in recall" in lost.text
    assert headlines(made_up.make_report(distilled=False))[1].value == "none"
    assert headlines(Report(run={}, seeds={"0": {"stages": {}}}, config_toml=""))[0].label == "Distillation"


def test_percent():
    assert [percent(share) for share in (0.4312, 0.0041, -0.25, 1.0)] == ["43.1%", "0.41%", "-25.0%", "100.0%"]


def test_a_short_list_is_measured_at_its_whole_length(made_up):
    report = made_up.make_report(seeds=1)
    recall = report.seeds["0"]["stages"]["recall"]
    recall["recall@150"] = recall.pop("recall@200")  # keep 200 of a catalogue of 150
    assert cell_at(funnel_table(report), "recall", "recall@keep").mean == recall["recall@150"]["mean"]


def test_the_index_of_a_recall_stage_beside_exact_search(made_up):
    report = made_up.make_report(seeds=2)
    assert index_table(report).rows == ()
    for seed, mean in (("0", 0.96), ("1", 0.98)):
        facts = {"kind": "ivf", "nlist": 40, "nprobe": 8, "build_seconds": 1.5, "bytes_per_vector": 264.0, "notes": []}
        report.seeds[seed]["stages"]["recall"]["index"] = facts | {"recall@200": {"mean": mean, "stderr": 0.01, "n": 9}}
    table = index_table(report)
    assert [row.label for row in table.rows] == ["recall: ivf"]
    assert cell_at(table, "recall: ivf", "share of exact").mean == pytest.approx(0.97)
    assert cell_at(table, "recall: ivf", "share of exact").error == pytest.approx(statistics.stdev([0.96, 0.98]))
    assert cell_at(table, "recall: ivf", "build s").mean == 1.5
    assert cell_at(table, "recall: ivf", "bytes per vector").mean == 264
    text = render_html(report)
    assert "recall: ivf" in text
    assert "stages / recall / index / nprobe" in text
    assert '"nprobe": 8' in to_json(report)

from __future__ import annotations

import json
import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_kd.report.tree import is_leaf, jsonable, leaves, lookup, summarise, summarise_leaf

finite = st.floats(-1e6, 1e6)


@given(st.lists(finite, min_size=2, max_size=6))
@settings(deadline=None, max_examples=50)
def test_summary_is_mean_and_sample_deviation(values):
    summary = summarise([{"stages": {"rank": {"auc": {"mean": value, "stderr": 0.1, "n": 3}}}} for value in values])
    leaf = summary["stages"]["rank"]["auc"]
    assert leaf["mean"] == pytest.approx(statistics.mean(values), abs=1e-6)
    assert leaf["sd"] == pytest.approx(statistics.stdev(values), abs=1e-4)
    assert leaf["seeds"] == len(values)
    assert set(leaf) == {"mean", "sd", "seeds"}


def test_one_seed_has_no_deviation():
    assert summarise([{"auc": {"mean": 0.8, "stderr": 0.1, "n": 3}}]) == {"auc": {"mean": 0.8, "sd": None, "seeds": 1}}


def test_missing_leaves_are_averaged_over_the_seeds_that_have_them():
    trees = [
        {"a": {"mean": 1.0}, "b": {"mean": None, "why": "no positives"}},
        {"a": {"mean": 3.0}, "c": {"mean": 5.0}, "b": {"mean": math.nan}},
        {"a": {"mean": math.nan}},
    ]
    summary = summarise(trees)
    assert summary["a"] == {"mean": 2.0, "sd": math.sqrt(2.0), "seeds": 2}
    assert summary["b"] == {"mean": None, "sd": None, "seeds": 0, "why": "no positives"}
    assert summary["c"] == {"mean": 5.0, "sd": None, "seeds": 1}


def test_plain_numbers_are_leaves_too():
    trees = [{"recovery": {"auc": 0.4, "gauc": None}}, {"recovery": {"auc": 0.6, "gauc": 0.5}}]
    summary = summarise(trees)["recovery"]
    assert summary["auc"]["mean"] == pytest.approx(0.5)
    assert summary["auc"]["seeds"] == 2
    assert summary["gauc"] == {"mean": 0.5, "sd": None, "seeds": 1}


def test_a_stage_may_be_called_mean():
    tree = {"stages": {"mean": {"auc": {"mean": 0.5, "stderr": 0.1, "n": 2}}}}
    assert not is_leaf(tree["stages"])
    assert summarise([tree])["stages"]["mean"]["auc"]["mean"] == 0.5
    assert [path for path, _ in leaves(tree)] == [("stages", "mean", "auc")]


def test_text_in_a_tree_is_no_metric():
    assert summarise([{"note": "hello", "list": [1, 2], "auc": 1.0}]) == {"auc": {"mean": 1.0, "sd": None, "seeds": 1}}


def test_order_is_that_of_the_first_seed_and_of_later_additions():
    summary = summarise([{"z": 1.0, "a": 1.0}, {"m": 1.0, "a": 1.0}])
    assert list(summary) == ["z", "a", "m"]


@pytest.mark.parametrize(
    ("value", "why"), [(math.nan, "not a number"), (math.inf, "infinite"), (-math.inf, "infinite")]
)
def test_what_is_not_finite_becomes_null_with_a_reason(value, why):
    assert jsonable({"auc": {"mean": value, "stderr": 0.1, "n": 0}}) == {
        "auc": {"mean": None, "stderr": 0.1, "n": 0, "why": why}
    }
    assert jsonable({"mean": value, "why": "one class"})["why"] == "one class"
    assert jsonable({"mean": 0.5, "stderr": value}) == {"mean": 0.5, "stderr": None, "why": f"standard error: {why}"}
    assert jsonable([value, {"recovery": {"auc": value}}]) == [None, {"recovery": {"auc": None}}]


def test_a_standard_error_that_is_none_needs_no_reason():
    assert jsonable({"mean": 0.01, "stderr": None, "n": 7}) == {"mean": 0.01, "stderr": None, "n": 7}


def test_numpy_scalars_become_numbers():
    clean = jsonable({"mean": np.float32(0.5), "n": np.int64(3), "flag": True, "nan": np.float64("nan")})
    assert clean == {"mean": 0.5, "n": 3, "flag": True, "nan": None}
    assert type(clean["mean"]) is float
    assert type(clean["n"]) is int
    json.dumps(clean, allow_nan=False)


def test_what_json_does_not_know_is_refused():
    with pytest.raises(TypeError, match="got set"):
        jsonable({"mean": {1, 2}})


def test_lookup_stops_where_the_tree_does():
    assert lookup({"a": {"b": 1}}, "a", "b") == 1
    assert lookup({"a": {"b": 1}}, "a", "b", "c") is None
    assert lookup({}, "a") is None


def test_no_value_at_all_says_so():
    assert summarise_leaf([None, None])["why"] == "no seed has a value"

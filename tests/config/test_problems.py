from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cascade_kd.config.problems import keys_of, salvage, validate
from cascade_kd.config.words import choose, listing, show, show_path, suggest
from cascade_kd.distill.settings import LogitDistillConfig
from cascade_kd.evaluate.settings import EvaluateConfig
from cascade_kd.train.settings import SampleSource, TrainConfig


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    num: int = 1
    """How many there are. And more."""
    source: Literal["a", "b"] = Field(default="a", validation_alias="from")


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str
    """What it is called."""
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()
    named: dict[str, Inner] = {}
    either: int | Literal["auto"] | tuple[str, ...] = "auto"
    ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    size: Annotated[list[int], Field(min_length=2, max_length=3)] = [1, 2]
    digest: Annotated[str, Field(pattern="^[0-9a-f]+$")] = "0"
    free: dict[str, Any] = {}

    @field_validator("name")
    @classmethod
    def _short(cls, value: str) -> str:
        if len(value) > 5:
            raise ValueError(f"want at most 5 letters, got '{value}'")
        return value


@pytest.mark.parametrize(
    ("data", "path", "message"),
    [
        ({}, ("name",), "required key is missing: what it is called"),
        ({"name": 1}, ("name",), "want text in quotes, got 1"),
        ({"name": datetime.date(2024, 1, 2)}, ("name",), "want text in quotes, got 2024-01-02"),
        ({"name": "too long"}, ("name",), "want at most 5 letters, got 'too long'"),
        ({"name": "x", "innr": 1}, ("innr",), "unknown key; did you mean 'inner'? Known keys: 'name', 'inner', 'many'"),
        ({"name": "x", "num": 1}, ("num",), "unknown key; did you mean 'inner.num'?"),
        ({"name": "x", "inner": {"source": "a"}}, ("inner", "source"), "unknown key; known keys: 'num', 'from'"),
        ({"name": "x", "inner": {"from": "c"}}, ("inner", "from"), "want one of 'a', 'b', got \"c\""),
        ({"name": "x", "inner": 3}, ("inner",), "want a table, got 3"),
        (
            {"name": "x", "many": {"num": 1}},
            ("many",),
            "want a list, got a table; a list of tables is written [[many]]",
        ),
        ({"name": "x", "many": [{}, {"num": "1"}]}, ("many", 1, "num"), 'want a whole number, got "1"'),
        ({"name": "x", "many": [{"nmu": 1}]}, ("many", 0, "nmu"), "unknown key; did you mean 'num'?"),
        ({"name": "x", "named": {"k": {"nmu": 1}}}, ("named", "k", "nmu"), "unknown key; did you mean 'num'?"),
        (
            {"name": "x", "either": "atuo"},
            ("either",),
            "want a whole number or 'auto' or a list, got \"atuo\"; did you",
        ),
        ({"name": "x", "either": ["a", 1]}, ("either", 1), "want text in quotes, got 1"),
        ({"name": "x", "ratio": 0}, ("ratio",), "want a number > 0, got 0"),
        ({"name": "x", "ratio": 1.5}, ("ratio",), "want a number <= 1, got 1.5"),
        ({"name": "x", "ratio": True}, ("ratio",), "want a number, got true"),
        ({"name": "x", "size": [1]}, ("size",), "want at least 2 entries, got [1]"),
        ({"name": "x", "size": [1, 2, 3, 4]}, ("size",), "want at most 3 entries, got [1, 2, 3, 4]"),
        ({"name": "x", "size": ["a", "b"]}, ("size", 0), 'want a whole number, got "a"'),
        ({"name": "x", "digest": "xyz"}, ("digest",), 'want text of the form ^[0-9a-f]+$, got "xyz"'),
        ({"name": "x", "inner": {"num": 1.0}}, ("inner", "num"), "want a whole number, got 1.0"),
        ({"name": "x", "inner": {"num": True}}, ("inner", "num"), "want a whole number, got true"),
    ],
)
def test_faults_in_plain_words(data: dict[str, Any], path: tuple[Any, ...], message: str) -> None:
    found, faults = validate(Outer, data)
    assert found is None
    assert faults[0].path == path
    assert faults[0].message.startswith(message)
    assert len({fault.path for fault in faults}) == len(faults)


def test_what_is_right_is_built() -> None:
    data = {"name": "x", "inner": {"from": "b"}, "many": [{}], "either": ["a"], "ratio": 1, "free": {"a": [{"b": 1}]}}
    found, faults = validate(Outer, data)
    assert faults == []
    assert found == Outer(
        name="x",
        inner=Inner.model_validate({"from": "b"}),
        many=(Inner(),),
        either=("a",),
        ratio=1.0,
        free={"a": [{"b": 1}]},
    )


def test_salvage_keeps_what_is_right() -> None:
    data: dict[str, Any] = {
        "name": "x",
        "inner": {"num": "1", "from": "b"},
        "many": [{"num": 5}, {"num": "a"}, {"num": 7}, {"x": 1, "num": 8}],
        "size": [1],
        "unknown": 1,
    }
    found, faults = salvage(Outer, data)
    assert found is not None
    assert found.inner == Inner.model_validate({"from": "b"})
    assert [entry.num for entry in found.many] == [5, 1, 7, 8]
    assert found.size == [1, 2]
    assert {fault.path for fault in faults} == {
        ("inner", "num"),
        ("many", 1, "num"),
        ("many", 3, "x"),
        ("size",),
        ("unknown",),
    }
    assert data["many"][1] == {"num": "a"}, "the data is left as it is"


def test_salvage_needs_its_required_keys_or_stand_ins() -> None:
    assert salvage(Outer, {"ratio": 0.25})[0] is None
    found, faults = salvage(Outer, {"ratio": 0.25, "name": 3}, fill={"name": "?"})
    assert found == Outer(name="?", ratio=0.25)
    assert [fault.path for fault in faults] == [("name",)]


def test_words() -> None:
    assert suggest("Learning-Rate", ["learning_rate", "loss"]) == "; did you mean 'learning_rate'?"
    assert suggest("zzz", ["learning_rate"]) == ""
    assert choose("los", ["loss", "x"]) == "; did you mean 'loss'? There are: 'loss', 'x'"
    assert choose("zzz", []) == "; there are: none"
    assert listing([str(n) for n in range(20)]).endswith("'11' and 8 more")
    assert show(True) == "true"
    assert show("a" * 100) == '"' + "a" * 56 + "..."
    assert show(list(range(100))) == "a list of 100"
    assert show_path(("stage", 1, "model", "a.b"), {"stage": [{}, {"name": "rank"}]}) == 'stage.rank.model."a.b"'
    assert show_path(("stage", 0), {"stage": [{}]}) == "stage.0"


def test_settings_in_python() -> None:
    """The same objects are made from Python by field names."""
    train = TrainConfig(label="like", samples=(SampleSource(source="uniform", per_positive=3),))
    assert train.samples[0].source == "uniform"
    assert TrainConfig(label="like").samples == (SampleSource(source="impressions"),)
    assert TrainConfig(label="like", loss="sampled-softmax").monitor == "recall@50"
    assert EvaluateConfig(k=(50, 1, 1)).k == (1, 50)
    assert LogitDistillConfig(teacher="a", student="b", method="logit").end_weight is None
    assert "from" in keys_of(SampleSource)
    with pytest.raises(ValidationError, match="no temperature"):
        LogitDistillConfig(teacher="a", student="b", method="logit", loss="mse", temperature=3)
    with pytest.raises(ValidationError, match="frozen"):
        train.epochs = 3

from __future__ import annotations

from typing import Any

import pytest

from cascade_kd.config.sources import Override, parse_override


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("stage.prerank.keep=100", ("stage", "prerank", "keep"), 100),
        ("distill.0.weight = 0.3", ("distill", "0", "weight"), 0.3),
        ("dataset=movielens-1m", ("dataset",), "movielens-1m"),
        ('dataset="a = b"', ("dataset",), "a = b"),
        ("seeds=[1, 2]", ("seeds",), [1, 2]),
        ("name=", ("name",), ""),
        ("deterministic=true", ("deterministic",), True),
        ("deterministic=True", ("deterministic",), "True"),
        ("stage.rank.model={hidden = [1]}", ("stage", "rank", "model"), {"hidden": [1]}),
        ('expected.rank."recall@10"=[0,1]', ("expected", "rank", "recall@10"), [0, 1]),
        ("expected.rank.recall@10=[0,1]", ("expected", "rank", "recall@10"), [0, 1]),
        ('a."x=y"=1', ("a", "x=y"), 1),
        ("a=1\nb = 2", ("a",), "1\nb = 2"),
        ("a=[1,", ("a",), "[1,"),
        ("a=x = 1", ("a",), "x = 1"),
    ],
)
def test_parse(text: str, path: tuple[str, ...], value: Any) -> None:
    assert parse_override(text) == Override(text, path, value)


@pytest.mark.parametrize("text", ["keep", "", "=3", "a..b=1", "a b=1", "# x=1", "[a]=1", '"a=1', "a\nb=1", ".a=1"])
def test_what_is_no_key(text: str) -> None:
    problem = parse_override(text)
    assert not isinstance(problem, Override)
    assert str(problem).startswith(f"--set {text}: ")
    assert "want" in problem.message


def test_overrides_come_before_validation_and_later_ones_win(project: Any) -> None:
    config = project.load(
        "stage.prerank.keep=20",
        "stage.prerank.keep=30",
        "stage.prerank.train.samples.1.per_positive=9",
        "stage.rank.model={hidden = [3], cross_layers = 2}",
        "stage.rank.features=['item_id']",
        "stage.rank.label_weight=rest",
        "distill.0.weight=0.25",
        "seeds=[7]",
        "evaluate.k=[5, 2, 10]",
        "expected.rank.recall@5=[0, 0.5]",
    )
    prerank, rank = config.stage("prerank"), config.stage("rank")
    assert prerank.keep == 30
    assert [s.per_positive for s in prerank.train.samples] == [0, 9]
    assert (rank.model.hidden, rank.model.cross_layers) == ((3,), 2)
    assert rank.label_weight == "rest"
    assert config.distill[0].weight == 0.25
    assert config.seeds == (7,)
    assert config.evaluate.k == (2, 5, 10)
    assert config.expected["rank"] == {"auc": (0.5, 1.0), "recall@10": (0.0, 1.0), "recall@5": (0.0, 0.5)}


def test_an_override_may_change_the_stage_file_and_the_data_set(project: Any) -> None:
    config = project.load("stage.prerank.use=prerank/two-tower", "stage.prerank.train.label=like")
    assert config.stage("prerank").model.hidden == (64,)
    assert config.stage("prerank").train.label == "like"
    (project.folder / "other.toml").write_text((project.folder / "little.toml").read_text().replace("little", "other"))
    assert project.load("dataset=other.toml").definition.name == "other"


def test_a_list_in_brackets_without_quotes_is_text(project: Any) -> None:
    """[item_id] is no TOML, so it arrives as text and is refused as such."""
    (problem,) = project.problems("stage.rank.features=[item_id]")
    assert str(problem) == "--set stage.rank.features=[item_id]: want 'all' or a list, got \"[item_id]\""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stage.prerank.keep=0", "want a number >= 1, got 0"),
        ("stage.prerank.kep=3", "unknown key; did you mean 'keep'?"),
        ("stage.prerank.train.lr=3", "unknown key; known keys:"),
        ("stage.prerank.keep=200", "keeps 200, more than the 100 that stage 'recall' hands on"),
        ("stage.perank.keep=3", "no stage is named 'perank'; did you mean 'prerank'? There are: 'recall', 'prerank'"),
        ("stage.prerank=3", "want stage.NAME.KEY=VALUE"),
        ("stage=3", "want stage.NAME.KEY=VALUE"),
        ("stage.prerank.use=rank/nothing", "no stage 'rank/nothing' in the catalogue"),
        ("stage.prerank.type=towers", "no stage type 'towers'"),
        ("stage.prerank.model.hidden=[16, -1.5]", "model.hidden.1: want a whole number, got -1.5"),
        ("stage.prerank.keep.x=1", "'keep' is a value and has no keys"),
        (
            "stage.prerank.train.samples.2.per_positive=1",
            "'train.samples' is a list and '2' none of its places; it has the places 0 to 1",
        ),
        ("stage.prerank.train.samples.first.from=1", "'train.samples' is a list and 'first' none of its places"),
        ("distill.1.weight=1", "'distill' is a list and '1' none of its places; it has the places 0 to 0"),
        ("distill.0.wait=1", "unknown key; did you mean 'weight'?"),
        ("distill.0.schedule=cosine", 'end_weight: schedule = "cosine" needs end_weight'),
        ("sedes=[1]", "unknown key; did you mean 'seeds'?"),
        ("seeds=one", 'want a list, got "one"'),
        ("dataset=synthetik", "no data set 'synthetik' in the catalogue; did you mean 'synthetic'?"),
        ("expected.rank.acu=[0,1]", "no metric 'acu'; did you mean 'auc'?"),
    ],
)
def test_a_wrong_override_is_named(project: Any, text: str, message: str) -> None:
    problems = project.problems(text)
    assert len(problems) == 1, "\n".join(map(str, problems))
    if "end_weight" in message:  # the missing key would have to be written in the file
        assert (problems[0].file, problems[0].key) == ("exp.toml", "distill.0.end_weight")
    else:
        assert str(problems[0]).startswith(f"--set {text}: {message}")


def test_an_override_is_not_blamed_for_the_file(project: Any) -> None:
    project.edit("stages/prerank.toml", "epochs = 5", "epochs = 0")
    (problem,) = project.problems("stage.prerank.train.batch_size=7")
    assert (problem.file, problem.key) == ("stages/prerank.toml", "train.epochs")
    project.edit("exp.toml", "keep = 10\n", "")
    keys = {(p.file, p.key) for p in project.problems("stage.rank.train.batch_size=7")}
    assert keys == {("stages/prerank.toml", "train.epochs"), ("exp.toml", "stage.rank.keep")}


def test_an_override_mends_the_file(project: Any) -> None:
    project.edit("stages/prerank.toml", "epochs = 5", "epochs = 0")
    assert project.load("stage.prerank.train.epochs=4").stage("prerank").train.epochs == 4


def test_a_table_set_as_a_whole_replaces_the_one_below(project: Any) -> None:
    (problem,) = project.problems("stage.rank.train={epochs = 3}")
    assert problem.key == "train.label"
    assert problem.message.startswith("required key is missing")

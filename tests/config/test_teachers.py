"""``[[teacher]]`` tables, and the keys of ``[[distill]]`` that came with them: read, resolved, overridden."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from cascade_kd.config import json_schemas, load_experiment, resolved_toml
from cascade_kd.errors import ConfigError

BIG = "[[teacher]]\nname = 'big'\nuse = 'stages/rank.toml'\nlevel = 'never'\n"
COPIES = BIG + "copies = 3\nmodel.hidden = [32]\ntrain.epochs = 7\n"
MEMBERS = "[[teacher]]\nname = 'both'\nmembers = ['rank', 'big']\n"
COLUMN = "[[teacher]]\nname = 'mine'\ncolumn = 'price'\nscores = 'probability'\n"
PAIR = "[[distill]]\nteacher = '{}'\nstudent = '{}'\nmethod = '{}'\n"
JOINT = PAIR.format("big", "rank", "logit") + "mode = 'joint'\nloss = 'mse'\n"

DISTILLS = {
    "auxiliary head": PAIR.format("big", "rank", "logit") + "head = 'auxiliary'\nlayer = 'mlp.0'\n",
    "hint": PAIR.format("big", "rank", "hidden") + "layers = [['mlp.0', 'mlp.0'], ['fields', 'fields']]\n",
    "experts": PAIR.format("big", "rank", "hidden") + "layers = [['mlp.0', 'mlp.0']]\nprojector = 'experts'\n",
    "phases": PAIR.format("big", "rank", "hidden")
    + "layers = [['mlp.0', 'mlp.0']]\nphases = ['hint', 'full']\nhint_epochs = 2\n",
    "attention": PAIR.format("big", "rank", "hidden") + "layers = [['mlp.0', 'mlp.0']]\nloss = 'attention'\n",
    "relation": PAIR.format("big", "rank", "relation") + "layers = [['mlp.0', 'mlp.0']]\n",
    "shared": JOINT + "share = ['embedding', 'mlp.0']\nexcept = ['embedding.user_id']\nblock = false\n",
    "a joint and an offline one": JOINT + PAIR.format("big", "rank", "logit"),
}


@pytest.fixture
def scored(project: Any) -> Any:
    """The project, its price an untransformed number and every student trained row by row."""
    project.edit(
        "little.toml", 'name = "price"\nkind = "numeric"', 'name = "price"\nkind = "numeric"\ntransform = "none"'
    )
    return project


def again(config: Any, folder: Path) -> Any:
    """The config, written out and read again from another folder."""
    folder.mkdir(exist_ok=True)
    path = folder / "config.toml"
    path.write_text(resolved_toml(config), "utf-8")
    return load_experiment(path)


@pytest.mark.parametrize("distill", list(DISTILLS.values()), ids=list(DISTILLS))
def test_the_resolved_form_loads_again_and_fits_the_schema(scored: Any, tmp_path: Path, distill: str) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="the extra `report` brings jsonschema")
    scored.edit("exp.toml", "#distill", BIG + distill)
    config = scored.load()
    assert again(config, tmp_path / "run") == config
    checker = jsonschema.Draft202012Validator(json.loads(json.dumps(json_schemas()["experiment"])))
    checker.validate(tomllib.loads((scored.folder / "exp.toml").read_text("utf-8")))
    checker.validate(tomllib.loads(resolved_toml(config)))


def test_every_kind_of_teacher(scored: Any, tmp_path: Path) -> None:
    offline = "".join(PAIR.format(name, "prerank", "logit") for name in ("big", "both", "mine"))
    scored.edit("exp.toml", "#distill", COLUMN + MEMBERS + COPIES + offline)
    config = scored.load()
    mine, both, big = config.teachers
    assert (mine.column, mine.scores, mine.model, mine.stages) == ("price", "probability", None, ())
    assert (both.members, both.stages) == (("rank", "big"), ())
    assert [stage.name for stage in big.stages] == ["big.0", "big.1", "big.2"]
    assert (big.model.level, big.model.model.hidden, big.model.train.epochs) == ("never", (32,), 7)
    assert config.stage("rank").model.hidden == (16,)  # the file both use is as it was
    assert {stage.model.hidden for stage in big.stages} == {(32,)}
    read = again(config, tmp_path / "run")
    assert read == config
    assert resolved_toml(read) == resolved_toml(config)


def test_one_copy_is_the_teacher_itself(scored: Any) -> None:
    scored.edit("exp.toml", "#distill", BIG)
    (big,) = scored.load().teachers
    assert [stage.name for stage in big.stages] == ["big"]


@pytest.mark.parametrize(
    ("override", "got", "wanted"),
    [
        ("teacher.big.copies=2", lambda t: t.copies, 2),
        ("teacher.big.model.hidden=[8, 4]", lambda t: t.model.model.hidden, (8, 4)),
        ("teacher.big.train.epochs=9", lambda t: t.model.train.epochs, 9),
        ("teacher.big.level=rank", lambda t: t.model.level, "rank"),
        ("teacher.mine.column=dwell", lambda t: t.column, None),
    ],
)
def test_a_key_of_a_teacher_is_set_by_its_name(
    scored: Any, tmp_path: Path, override: str, got: Any, wanted: Any
) -> None:
    scored.edit("exp.toml", "#distill", COLUMN + BIG)
    before = scored.load()
    if wanted is None:
        assert "no numeric feature 'dwell' with transform" in scored.problems(override)[0].message
        return
    config = scored.load(override)
    assert got(config.teachers[1]) == wanted
    assert config.teachers[0] == before.teachers[0]
    assert config.stages == before.stages
    assert again(config, tmp_path / "run") == config


def test_an_unknown_teacher_in_an_override_is_named(scored: Any) -> None:
    scored.edit("exp.toml", "#distill", BIG)
    (problem,) = scored.problems("teacher.bg.copies=2")
    assert "bg" in problem.message
    assert "'big'" in problem.message


def test_without_distill_leaves_the_teachers_out(scored: Any, tmp_path: Path) -> None:
    scored.edit("exp.toml", "#distill", BIG + PAIR.format("big", "rank", "logit"))
    config = scored.load(without_distill=True)
    assert config.teachers == config.distill == ()
    assert again(config, tmp_path / "run") == config


PHASES = "layers = [['mlp.0', 'mlp.0']]\nphases = ['hint', 'full']\n"


@pytest.mark.parametrize(
    ("distill", "key", "message"),
    [
        (
            PAIR.format("big", "rank", "hidden") + PHASES + "hint_epochs = 3\n",
            "distill.1.phases",
            "phase \"hint\" takes 3 of the 3 epochs of 'rank', and no label would be learnt; want a smaller",
        ),
        (
            PAIR.format("big", "rank", "hidden") + PHASES + "warmup_steps = 5\n",
            "distill.1.phases",
            'phase "hint" has one weight from the first step on; leave warmup_steps out',
        ),
        (
            PAIR.format("big", "rank", "hidden") + PHASES + "schedule = 'linear'\nend_weight = 0\n",
            "distill.1.phases",
            'phase "hint" has one weight from the first step on; leave schedule out',
        ),
        (
            PAIR.format("both", "rank", "logit") + "mode = 'joint'\n",
            "distill.1.mode",
            "'both' is no single model, which a joint step trains; want 'offline'",
        ),
        (
            PAIR.format("both", "rank", "hidden") + "layers = [['mlp.0', 'mlp.0']]\n",
            "distill.1.teacher",
            "method 'hidden' needs the signal 'hidden' of its teacher; 'both' gives 'logits', 'ranking'",
        ),
        (
            PAIR.format("big", "rank", "logit") * 2,
            "distill.2.method",
            "'big' teaches 'rank' by 'logit' twice",
        ),
        (
            JOINT + PAIR.format("prerank", "rank", "logit") + "mode = 'joint'\n",
            "distill.2.teacher",
            "'rank' is trained together with 'big' already; a student has one joint teacher",
        ),
    ],
)
def test_pairs_that_cannot_be_trained_are_refused_with_a_remedy(
    scored: Any, distill: str, key: str, message: str
) -> None:
    scored.edit("exp.toml", 'teacher = "rank"', 'teacher = "recall"')
    scored.edit("exp.toml", "#rank", "train.epochs = 3")
    scored.edit("exp.toml", "#distill", BIG + MEMBERS.replace("'rank', ", "") + distill)
    found = {problem.key: problem.message for problem in scored.problems()}
    assert message in found[key]
    assert len(found) == 1


def test_a_later_stage_and_a_teacher_may_be_monitored_by_recall(scored: Any) -> None:
    scored.edit("exp.toml", "#rank", "train.monitor = 'recall@5'")
    scored.edit("exp.toml", "#distill", BIG + "train.monitor = 'recall@7'\n" + PAIR.format("big", "prerank", "logit"))
    config = scored.load()
    assert config.stage("rank").train.monitor == "recall@5"
    assert config.teachers[0].model.train.monitor == "recall@7"


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        (
            "train.monitor = 'recall@7'",
            "type 'dcnv2' takes recall@K over what the last stage receives",
        ),
        (
            "train.samples = [{ from = 'impressions' }, { from = 'upstream', per_positive = 1 }]",
            "drawn from what the last stage receives, and it is the first",
        ),
    ],
)
def test_a_teacher_beside_one_stage_alone_receives_nothing(scored: Any, keys: str, wanted: str) -> None:
    path = scored.folder / "one.toml"
    stage = "[[stage]]\nname = 'only'\nuse = 'stages/rank.toml'\nkeep = 5\n"
    text = f"name = 'one'\ndataset = 'little.toml'\nseeds = [0]\n{stage}{BIG}{keys}\n"
    path.write_text(text + PAIR.format("big", "only", "logit"), "utf-8")
    with pytest.raises(ConfigError, match=wanted):
        load_experiment(path)


def test_a_first_stage_without_vectors_is_not_monitored_by_recall(scored: Any) -> None:
    path = scored.folder / "one.toml"
    stage = "[[stage]]\nname = 'only'\nuse = 'stages/rank.toml'\nkeep = 5\ntrain.monitor = 'recall@5'\n"
    path.write_text(f"name = 'one'\ndataset = 'little.toml'\nseeds = [0]\n{stage}", "utf-8")
    with pytest.raises(ConfigError, match=r"one\.toml:\d+: .*a first stage takes recall@K over the whole catalogue"):
        load_experiment(path)

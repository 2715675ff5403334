from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cascade_kd.config import load_experiment
from cascade_kd.errors import ConfigError, UserError
from cascade_kd.models import DCNv2, TwoTower
from cascade_kd.retrieval import IndexConfig


def test_a_good_experiment(project: Any) -> None:
    config = project.load()
    assert [(s.name, s.level, s.keep) for s in config.stages] == [
        ("recall", "recall", 100),
        ("prerank", "prerank", 50),
        ("rank", "rank", 10),
    ]
    recall, prerank, rank = config.stages
    assert (recall.model_type, rank.model_type) == (TwoTower, DCNv2)
    assert rank.model == DCNv2.Config(hidden=(16,), cross_layers=1)
    assert (recall.train.monitor, rank.train.monitor) == ("recall@50", "auc")
    assert recall.index == IndexConfig()
    assert prerank.index is None
    assert prerank.features == ("user_id", "item_id", "price")
    assert prerank.toml_file == project.folder / "stages/prerank.toml"
    assert [(s.source, s.per_positive) for s in prerank.train.samples] == [("impressions", 0), ("upstream", 4)]
    assert config.seeds == (0, 1)
    assert (config.rounds, config.init_from, config.deterministic) == (1, None, False)
    assert (config.distill[0].teacher, config.distill[0].temperature) == ("rank", 2.0)
    assert config.expected == {"rank": {"auc": (0.5, 1.0), "recall@10": (0.0, 1.0)}}
    assert config.evaluate.k == (1, 10, 50)
    assert config.definition.name == "little"
    assert config.dataset_file == project.folder / "little.toml"
    assert config.file == project.folder / "exp.toml"
    assert config.stage("rank") is rank


def test_keys_of_the_experiment_lie_over_the_stage_file(project: Any) -> None:
    project.edit("exp.toml", "#prerank", "train.epochs = 7\nmodel = { output_size = 4 }\nfeatures = 'all'")
    stage = project.load().stage("prerank")
    assert (stage.train.epochs, stage.train.label, stage.features) == (7, "click", "all")
    assert (stage.model.output_size, stage.model.hidden) == (4, (16,))
    assert len(stage.train.samples) == 2


def test_a_stage_can_be_written_inline(project: Any) -> None:
    project.edit("exp.toml", 'use = "stages/rank.toml"', 'type = "dcnv2"\nlevel = "rank"\ntrain = { label = "like" }')
    stage = project.load().stage("rank")
    assert (stage.train.label, stage.toml_file) == ("like", project.folder / "exp.toml")


def test_without_distill_leaves_out_pairs_and_bands(project: Any) -> None:
    config = project.load(without_distill=True)
    assert config.distill == ()
    assert config.expected == {}


# What is wrong: edits (file, old, new), the file and the start of the line the problem points at, its key, its words.
WRONG: dict[str, tuple[list[tuple[str, str, str]], str, str, str, str]] = {
    # the experiment's own keys
    "unknown top key": (
        [("exp.toml", "#head", "sedes = [3]")],
        "exp.toml",
        "sedes",
        "sedes",
        "unknown key; did you mean 'seeds'?",
    ),
    "no seeds": ([("exp.toml", "[0, 1]", "[]")], "exp.toml", "seeds", "seeds", "want at least 1 entry, got []"),
    "seed twice": ([("exp.toml", "[0, 1]", "[3, 3]")], "exp.toml", "seeds", "seeds", "seed 3 is listed twice"),
    "negative seed": ([("exp.toml", "[0, 1]", "[0,\n-1]")], "exp.toml", "-1]", "seeds.1", "want a number >= 0, got -1"),
    "seeds of a wrong type": ([("exp.toml", "[0, 1]", "1")], "exp.toml", "seeds", "seeds", "want a list, got 1"),
    "no rounds": ([("exp.toml", "#head", "rounds = 0")], "exp.toml", "rounds", "rounds", "want a number >= 1, got 0"),
    "a number that is no whole number": (
        [("exp.toml", "#head", "rounds = 2.0")],
        "exp.toml",
        "rounds",
        "rounds",
        "want a whole number, got 2.0",
    ),
    "truth in quotes": (
        [("exp.toml", "#head", "deterministic = 'yes'")],
        "exp.toml",
        "deterministic",
        "deterministic",
        'want true or false, got "yes"',
    ),
    "a name that is no folder": (
        [("exp.toml", '"small"', '"../small"')],
        "exp.toml",
        'name = "../small"',
        "name",
        "want letters, digits and - _ .",
    ),
    "one bracket": (
        [("exp.toml", "[[distill]]", "[distill]")],
        "exp.toml",
        "[distill]",
        "distill",
        "want a list, got a table; a list of tables is written [[distill]], with two brackets",
    ),
    "evaluate.k": (
        [("exp.toml", "#distill", "[evaluate]\nk = [0, 5]")],
        "exp.toml",
        "k = ",
        "evaluate.k.0",
        "want a number >= 1, got 0",
    ),
    "unknown data set": (
        [("exp.toml", '"little.toml"', '"synthetik"')],
        "exp.toml",
        "dataset",
        "dataset",
        "no data set 'synthetik' in the catalogue; did you mean 'synthetic'? There are: ",
    ),
    "a data set without its ending": (
        [("exp.toml", '"little.toml"', '"little"')],
        "exp.toml",
        "dataset",
        "dataset",
        "or did you mean the file 'little.toml'?",
    ),
    "a data-set file that is not there": (
        [("exp.toml", '"little.toml"', '"litle.toml"')],
        "exp.toml",
        "dataset",
        "dataset",
        "the data set file 'litle.toml' does not exist",
    ),
    "the data-set file": (
        [("little.toml", 'side = "context"', 'side = "contxt"')],
        "little.toml",
        'side = "contxt"',
        "feature.device.side",
        "got \"contxt\"; did you mean 'context'?",
    ),
    "the data-set file between keys": (
        [("little.toml", 'aggregate = "mean"', 'aggregate = "count"\nsmoothing = 5.0')],
        "little.toml",
        "smoothing = 5.0",
        "feature.item_click_rate.smoothing",
        "smoothing belongs to aggregate 'mean'",
    ),
    # stages: one by one
    "unknown stage file": (
        [("exp.toml", '"stages/rank.toml"', '"rank/dcn2"')],
        "exp.toml",
        'use = "rank/dcn2"',
        "stage.rank.use",
        "no stage 'rank/dcn2' in the catalogue; did you mean 'rank/dcnv2'?",
    ),
    "unknown key in a stage file": (
        [("stages/rank.toml", "cross_layers", "cros_layers")],
        "stages/rank.toml",
        "cros_layers",
        "model.cros_layers",
        "unknown key; did you mean 'cross_layers'? Known keys: ",
    ),
    "unknown key over a stage file": (
        [("exp.toml", "#rank", "model.cros_layers = 2")],
        "exp.toml",
        "model.cros_layers",
        "stage.rank.model.cros_layers",
        "unknown key; did you mean 'cross_layers'?",
    ),
    "a key of a table below": (
        [("exp.toml", "#rank", "epochs = 2")],
        "exp.toml",
        "epochs",
        "stage.rank.epochs",
        "unknown key; did you mean 'train.epochs'?",
    ),
    "a name in a stage file": (
        [("stages/rank.toml", 'level = "rank"', 'level = "rank"\nname = "x"')],
        "stages/rank.toml",
        "name",
        "name",
        "it belongs into the experiment's [[stage]]",
    ),
    "a wrong type over a stage file": (
        [("exp.toml", "#rank", 'train.epochs = "3"')],
        "exp.toml",
        "train.epochs",
        "stage.rank.train.epochs",
        'want a whole number, got "3"',
    ),
    "a wrong range in a model": (
        [("stages/rank.toml", "hidden = [16]", "hidden = [16]\ndropout = 1.5")],
        "stages/rank.toml",
        "dropout",
        "model.dropout",
        "want a number < 1, got 1.5",
    ),
    "unknown type": (
        [("stages/rank.toml", '"dcnv2"', '"dcn"')],
        "stages/rank.toml",
        "type",
        "type",
        "no stage type 'dcn'; did you mean 'dcnv2'? There are: 'two-tower', 'dcnv2', 'din', 'final-mlp', ",
    ),
    "unknown loss": (
        [("stages/rank.toml", 'label = "click"', 'label = "click"\nloss = "bprr"')],
        "stages/rank.toml",
        "loss",
        "train.loss",
        "want one of 'bce', 'sampled-softmax', 'full-softmax', 'bpr', 'ccl', got \"bprr\"",
    ),
    "no keep": (
        [("exp.toml", "keep = 10\n", "")],
        "exp.toml",
        '[[stage]]\nname = "rank"',
        "stage.rank.keep",
        "required key is missing: the budget: how many candidates the stage hands on",
    ),
    "no level in a stage file": (
        [("stages/rank.toml", 'level = "rank"\n', "")],
        "stages/rank.toml",
        "",
        "level",
        "required key is missing: the level it serves",
    ),
    "no label": (
        [("stages/rank.toml", 'label = "click"\n', "")],
        "stages/rank.toml",
        "[train]",
        "train.label",
        "required key is missing: the label that the stage learns",
    ),
    "no training": (
        [("stages/rank.toml", '[train]\nlabel = "click"\n', "")],
        "stages/rank.toml",
        "",
        "train",
        "required key is missing: how it is trained; want a table [train] with at least label",
    ),
    "no use and no type": (
        [("exp.toml", 'use = "stages/rank.toml"\n', 'level = "rank"\ntrain = { label = "click" }\n')],
        "exp.toml",
        '[[stage]]\nname = "rank"',
        "stage.rank.type",
        "required key is missing: the model: a built-in name",
    ),
    "per_positive missing": (
        [("stages/prerank.toml", ", per_positive = 4", "")],
        "stages/prerank.toml",
        "samples",
        "train.samples.1.per_positive",
        'from = "upstream" needs per_positive >= 1',
    ),
    "per_positive of impressions": (
        [("stages/prerank.toml", '{ from = "impressions" }', '{ from = "impressions", per_positive = 2 }')],
        "stages/prerank.toml",
        "samples",
        "train.samples.0.per_positive",
        'from = "impressions" takes every logged event and no per_positive',
    ),
    "a source twice": (
        [("stages/prerank.toml", '{ from = "impressions" }', '{ from = "upstream", per_positive = 2 }')],
        "stages/prerank.toml",
        "samples",
        "train.samples",
        "'upstream' is listed twice",
    ),
    "no samples": (
        [("stages/rank.toml", "[train]", "[train]\nsamples = []")],
        "stages/rank.toml",
        "samples",
        "train.samples",
        "name a source of rows, such as",
    ),
    "a reserved name": (
        [("exp.toml", 'name = "recall"', 'name = "popularity"')],
        "exp.toml",
        'name = "popularity"',
        "stage.popularity.name",
        "'popularity' is a name of the report's own rows",
    ),
    "a stage's name with a dot": (
        [("exp.toml", 'name = "recall"', 'name = "re.call"')],
        "exp.toml",
        'name = "re.call"',
        'stage."re.call".name',
        "want letters, digits, - and _ in a stage's name",
    ),
    "features of a wrong type": (
        [("exp.toml", "#rank", "features = 3")],
        "exp.toml",
        "features",
        "stage.rank.features",
        "want 'all' or a list, got 3",
    ),
    "a feature of a wrong type": (
        [("exp.toml", "#rank", "features = ['price', 3]")],
        "exp.toml",
        "features",
        "stage.rank.features.1",
        "want text in quotes, got 3",
    ),
    "no features": (
        [("exp.toml", "#rank", "features = []")],
        "exp.toml",
        "features",
        "stage.rank.features",
        "the list is empty",
    ),
    "label_weight": (
        [("exp.toml", "#rank", "label_weight = 'res'")],
        "exp.toml",
        "label_weight",
        "stage.rank.label_weight",
        "want a number or one of 'rest', 'learned', got \"res\"; did you mean 'rest'?",
    ),
    # stages: between them
    "names twice": (
        [("exp.toml", 'name = "recall"', 'name = "Prerank"')],
        "exp.toml",
        'name = "prerank"',
        "stage.prerank.name",
        "two stages are named 'prerank' (in upper and lower case: 'Prerank')",
    ),
    "keep grows": (
        [("exp.toml", "keep = 10\n", "keep = 60\n")],
        "exp.toml",
        "keep = 60",
        "stage.rank.keep",
        "keeps 60, more than the 50 that stage 'prerank' hands on",
    ),
    "first stage": (
        [("exp.toml", 'use = "stages/recall.toml"', 'use = "stages/recall.toml"\nlevel = "prerank"')],
        "exp.toml",
        "level",
        "stage.recall.level",
        "must be of level 'recall', got 'prerank'",
    ),
    "levels go backwards": (
        [("exp.toml", "#prerank", "level = 'rank'"), ("stages/rank.toml", 'level = "rank"', 'level = "prerank"')],
        "stages/rank.toml",
        "level",
        "level",
        "level 'prerank' comes after 'rank' of stage 'prerank'",
    ),
    "a second recall stage": (
        [("exp.toml", "#prerank", "level = 'recall'"), ("stages/prerank.toml", ', "price"', "")],
        "exp.toml",
        "level",
        "stage.prerank.level",
        "only the first stage is of level 'recall'",
    ),
    "a type that does not serve the level": (
        [("stages/recall.toml", '"two-tower"', '"dcnv2"'), ("stages/recall.toml", 'loss = "sampled-softmax"', "")],
        "stages/recall.toml",
        "type",
        "type",
        "type 'dcnv2' does not serve level 'recall'; it serves 'prerank', 'rank'",
    ),
    "an index where nothing is retrieved": (
        [("stages/rank.toml", "[model]", "[index]\nkind = 'torch'\n[model]")],
        "stages/rank.toml",
        "[index]",
        "index",
        "only a stage of level 'recall' has an index",
    ),
    "an unknown feature": (
        [("stages/prerank.toml", '"price"', '"prize"')],
        "stages/prerank.toml",
        "features",
        "features.2",
        "data set 'little' has no feature 'prize'; did you mean 'price'? There are: 'user_id', 'item_id', 'device'",
    ),
    "a privileged feature": (
        [("exp.toml", "#rank", "features = [\n'price',\n'dwell']")],
        "exp.toml",
        "'dwell']",
        "stage.rank.features.1",
        "feature 'dwell' is available at 'never', later than this stage's level 'rank'; it is privileged: only a "
        "teacher may see it",
    ),
    "a later feature": (
        [("stages/prerank.toml", '"price"', '"item_click_rate"')],
        "stages/prerank.toml",
        "features",
        "features.2",
        "feature 'item_click_rate' is available at 'rank', later than this stage's level 'prerank'",
    ),
    "a feature of a pair for towers": (
        [
            ("stages/prerank.toml", '"price"', '"pairs"'),
            (
                "little.toml",
                'available = "never"',
                'available = "never"\n'
                '[[feature]]\nname = "pairs"\nkind = "numeric"\nside = "pair"\navailable = "recall"',
            ),
        ],
        "stages/prerank.toml",
        "features",
        "features.2",
        "feature 'pairs' is of side 'pair', and type 'two-tower' sees 'user', 'context', 'item' only",
    ),
    "an empty tower": (
        [("stages/prerank.toml", '["user_id", "item_id", "price"]', '["item_id", "price"]')],
        "stages/prerank.toml",
        "features",
        "features",
        "the user tower has nothing to see: list a feature of side 'user', such as 'user_id'",
    ),
    "a label that the set lacks": (
        [("stages/rank.toml", '"click"', '"clik"')],
        "stages/rank.toml",
        "label",
        "train.label",
        "data set 'little' has no label 'clik'; did you mean 'click'? There are: 'click', 'like'",
    ),
    "upstream of the first stage": (
        [
            ("stages/recall.toml", 'loss = "sampled-softmax"', "samples = [{ from = 'upstream', per_positive = 1 }]"),
        ],
        "stages/recall.toml",
        "samples",
        "train.samples.0.from",
        "the first stage has no stage before it",
    ),
    "a softmax without towers": (
        [("exp.toml", "#rank", "train.loss = 'sampled-softmax'")],
        "exp.toml",
        "train.loss",
        "stage.rank.train.loss",
        "needs user and item vectors, which type 'dcnv2' lacks",
    ),
    "a monitor that there is not": (
        [("exp.toml", "#rank", "train.monitor = 'recall@0'")],
        "exp.toml",
        "train.monitor",
        "stage.rank.train.monitor",
        "want 'auc', 'logloss' or 'recall@K' with a whole number K >= 1, got 'recall@0'",
    ),
    "a monitor that needs probabilities": (
        [("exp.toml", "#recall", "train.monitor = 'logloss'")],
        "exp.toml",
        "train.monitor",
        "stage.recall.train.monitor",
        "loss 'sampled-softmax' gives no probabilities",
    ),
    # distillers
    "an unknown method": (
        [("exp.toml", '"logit"', '"logits"')],
        "exp.toml",
        "method",
        "distill.0.method",
        "no distiller \"logits\" in this version; did you mean 'logit'?",
    ),
    "no method": (
        [("exp.toml", 'method = "logit"\n', "")],
        "exp.toml",
        "[[distill]]",
        "distill.0.method",
        "required key is missing: the distiller; there are: 'logit', 'hidden', 'relation'",
    ),
    "an unknown teacher": (
        [("exp.toml", 'teacher = "rank"', 'teacher = "ranker"')],
        "exp.toml",
        "teacher",
        "distill.0.teacher",
        "no stage or teacher is named 'ranker'; did you mean 'rank'? There are: 'recall', 'prerank', 'rank'",
    ),
    "an unknown student": (
        [("exp.toml", 'student = "prerank"', 'student = "x"')],
        "exp.toml",
        "student",
        "distill.0.student",
        "no stage is named 'x'; there are: ",
    ),
    "a teacher of itself": (
        [("exp.toml", 'student = "prerank"', 'student = "rank"')],
        "exp.toml",
        "student",
        "distill.0.student",
        "'rank' cannot teach itself",
    ),
    "a softmax student": (
        [("exp.toml", 'student = "prerank"', 'student = "recall"')],
        "exp.toml",
        "student",
        "distill.0.student",
        "method 'logit' teaches a stage whose [train] loss is 'bce'; 'recall' has 'sampled-softmax'",
    ),
    "a pair twice": (
        [("exp.toml", "#distill", "[[distill]]\nteacher = 'rank'\nstudent = 'prerank'\nmethod = 'logit'")],
        "exp.toml",
        "method = 'logit'",
        "distill.1.method",
        "'rank' teaches 'prerank' by 'logit' twice",
    ),
    "sharing offline": (
        [("exp.toml", "#distill", "share = ['embedding']")],
        "exp.toml",
        "share",
        "distill.0.share",
        'only mode = "joint" shares modules',
    ),
    "an exception without the embedding": (
        [("exp.toml", "#distill", "mode = 'joint'\nexcept = ['embedding.user_id']")],
        "exp.toml",
        "except",
        "distill.0.except",
        "except names features of the shared embedding",
    ),
    "an exception that is no feature": (
        [("exp.toml", "#distill", "mode = 'joint'\nshare = ['embedding']\nexcept = ['user_id']")],
        "exp.toml",
        "except",
        "distill.0.except",
        "want embedding.FEATURE, as in 'embedding.user_id', got 'user_id'",
    ),
    "an open block offline": (
        [("exp.toml", "#distill", "block = false")],
        "exp.toml",
        "block",
        "distill.0.block",
        "an offline teacher is frozen whatever block says",
    ),
    "an auxiliary head on nothing": (
        [("exp.toml", "#distill", "head = 'auxiliary'")],
        "exp.toml",
        "[[distill]]",
        "distill.0.layer",
        "needs the layer it stands on",
    ),
    "a joint teacher of a softmax student": (
        [
            (
                "exp.toml",
                "#distill",
                "[[distill]]\nteacher = 'rank'\nstudent = 'recall'\nmethod = 'relation'\nmode = 'joint'\n"
                "layers = [['mlp.0', 'user.vector']]",
            )
        ],
        "exp.toml",
        "mode",
        "distill.1.mode",
        "a joint step trains row by row, and the [train] loss of 'recall' is 'sampled-softmax'",
    ),
    "no pairs of layers": (
        [
            (
                "exp.toml",
                "#distill",
                "[[distill]]\nteacher = 'rank'\nstudent = 'prerank'\nmethod = 'hidden'\nlayers = [['mlp.0']]",
            )
        ],
        "exp.toml",
        "layers",
        "distill.1.layers",
        "want pairs [teacher's layer, student's layer], got ['mlp.0']",
    ),
    "a projector of attention maps": (
        [
            (
                "exp.toml",
                "#distill",
                "[[distill]]\nteacher = 'rank'\nstudent = 'prerank'\nmethod = 'hidden'\nloss = 'attention'\n"
                "layers = [['mlp.0', 'user.mlp.0']]\nprojector = 'linear'",
            )
        ],
        "exp.toml",
        "projector",
        "distill.1.projector",
        "compares places, not units",
    ),
    # teachers
    "a teacher called as a stage": (
        [("exp.toml", "#distill", "[[teacher]]\nname = 'Rank'\nuse = 'stages/rank.toml'")],
        "exp.toml",
        "name = 'Rank'",
        "teacher.Rank.name",
        "stage 'rank' has this name too",
    ),
    "a budget of a teacher": (
        [("exp.toml", "#distill", "[[teacher]]\nname = 'big'\nuse = 'stages/rank.toml'\nkeep = 5")],
        "exp.toml",
        "keep = 5",
        "teacher.big.keep",
        "neither served nor taught",
    ),
    "an ensemble of nobody": (
        [("exp.toml", "#distill", "[[teacher]]\nname = 'all'\nmembers = ['rank', 'rnk']")],
        "exp.toml",
        "members",
        "teacher.all.members.1",
        "no stage or teacher with a model is named 'rnk'; did you mean 'rank'?",
    ),
    "a column that is not there": (
        [("exp.toml", "#distill", "[[teacher]]\nname = 'log'\ncolumn = 'score'")],
        "exp.toml",
        "column",
        "teacher.log.column",
        "has no numeric feature 'score' with transform = \"none\"",
    ),
    "hidden states of an ensemble": (
        [
            (
                "exp.toml",
                "#distill",
                "[[distill]]\nteacher = 'all'\nstudent = 'prerank'\nmethod = 'hidden'\n"
                "layers = [['mlp.0', 'user.mlp.0']]\n[[teacher]]\nname = 'all'\nmembers = ['rank']",
            )
        ],
        "exp.toml",
        "teacher = 'all'",
        "distill.1.teacher",
        "needs the signal 'hidden' of its teacher; 'all' gives 'logits', 'ranking'",
    ),
    "a temperature without kl": (
        [("exp.toml", "#distill", "loss = 'mse'")],
        "exp.toml",
        "temperature",
        "distill.0.temperature",
        'loss = "mse" has no temperature, got 2',
    ),
    "a cold temperature": (
        [("exp.toml", "temperature = 2.0", "temperature = 0")],
        "exp.toml",
        "temperature",
        "distill.0.temperature",
        "want a number > 0, got 0",
    ),
    "an infinite weight": (
        [("exp.toml", "#distill", "weight = inf")],
        "exp.toml",
        "weight",
        "distill.0.weight",
        "want a finite number, got Infinity",
    ),
    "no end": (
        [("exp.toml", "#distill", "schedule = 'linear'")],
        "exp.toml",
        "[[distill]]",
        "distill.0.end_weight",
        'schedule = "linear" needs end_weight',
    ),
    "an end of a constant": (
        [("exp.toml", "#distill", "end_weight = 0.1")],
        "exp.toml",
        "end_weight",
        "distill.0.end_weight",
        'schedule = "constant" has no end_weight',
    ),
    "a ring": (
        [("exp.toml", "#distill", "[[distill]]\nteacher = 'prerank'\nstudent = 'rank'\nmethod = 'logit'")],
        "exp.toml",
        "student = 'rank'",
        "distill.1.student",
        "the offline pairs form a ring: prerank -> rank -> prerank; a teacher must be complete before its student. "
        'Take one pair out and let it teach in another round, or train the pair together with mode = "joint"',
    ),
    "the rest of too much": (
        [("exp.toml", "#prerank", "label_weight = 'rest'"), ("exp.toml", "#distill", "weight = 1.5")],
        "exp.toml",
        "label_weight",
        "stage.prerank.label_weight",
        "which sum to 1.5; they must not exceed 1",
    ),
    "the rest of too much at the end": (
        [
            ("exp.toml", "#prerank", "label_weight = 'rest'"),
            ("exp.toml", "#distill", "schedule = 'cosine'\nend_weight = 1.25"),
        ],
        "exp.toml",
        "label_weight",
        "stage.prerank.label_weight",
        "which sum to 1.25",
    ),
    # expected
    "bands of nobody": (
        [("exp.toml", "#expected", "[expected.prernk]\nauc = [0, 1]")],
        "exp.toml",
        "[expected.prernk]",
        "expected.prernk",
        "no stage is named 'prernk'; did you mean 'prerank'? There are: 'recall', 'prerank', 'rank', 'cascade'",
    ),
    "an unknown metric": (
        [("exp.toml", "#expected", "acu = [0, 1]")],
        "exp.toml",
        "acu",
        "expected.rank.acu",
        "no metric 'acu'; did you mean 'auc'?",
    ),
    "a metric of stages only": (
        [("exp.toml", "#expected", "[expected.cascade]\nauc = [0, 1]")],
        "exp.toml",
        "auc = [0, 1]",
        "expected.cascade.auc",
        "no metric 'auc'",
    ),
    "a k that is not counted": (
        [("exp.toml", "#expected", '"recall@7" = [0, 1]')],
        "exp.toml",
        '"recall@7"',
        'expected.rank."recall@7"',
        "nothing is counted at 7; add it to [evaluate] k, or choose one of 1, 10, 50",
    ),
    "a band upside down": (
        [("exp.toml", "[0.5, 1.0]", "[0.5, 0.1]")],
        "exp.toml",
        "auc",
        "expected.rank.auc",
        "want [low, high] with low <= high, got [0.5, 0.1]",
    ),
    "half a band": (
        [("exp.toml", "[0.5, 1.0]", "[0.5]")],
        "exp.toml",
        "auc",
        "expected.rank.auc",
        "want [low, high] with low <= high, got [0.5]",
    ),
}


@pytest.mark.parametrize(("edits", "file", "start", "key", "words"), WRONG.values(), ids=WRONG)
def test_one_mistake_gives_one_problem_at_its_place(
    project: Any, edits: list[tuple[str, str, str]], file: str, start: str, key: str, words: str
) -> None:
    for edit in edits:
        project.edit(*edit)
    problems = project.problems()
    assert len(problems) == 1, "\n".join(map(str, problems))
    (problem,) = problems
    assert (problem.file, problem.key) == (file, key)
    assert words in problem.message
    text = (project.folder / file).read_text("utf-8")
    if start:
        assert text[len("".join(text.splitlines(True)[: problem.line - 1])) :].startswith(start)
    else:
        assert problem.line == 0
    assert str(problem).startswith(f"{file}:{problem.line}: {key}: " if start else f"{file}: {key}: ")


def test_everything_wrong_is_said_at_once_in_all_files(project: Any) -> None:
    project.edit("exp.toml", "[0, 1]", "[0, 0]")
    project.edit("exp.toml", "keep = 10\n", "keep = 0\n")
    project.edit("exp.toml", 'teacher = "rank"', 'teacher = "rnk"')
    project.edit("exp.toml", "#expected", "[expected.nobody]\nauc = [0, 1]")
    project.edit("stages/prerank.toml", "epochs = 5", 'epochs = "5"\nlearning_rat = 1')
    project.edit("stages/prerank.toml", 'label = "click"', 'label = "nothing"')
    project.edit("stages/prerank.toml", '"price"', '"item_click_rate"')
    project.edit("stages/rank.toml", "cross_layers = 1", "cross_layers = -1\nhiden = [3]")
    project.edit("stages/recall.toml", 'type = "two-tower"', 'type = "towers"')
    found = {(problem.file, problem.key) for problem in project.problems()}
    assert found == {
        ("exp.toml", "seeds"),
        ("exp.toml", "stage.rank.keep"),
        ("exp.toml", "distill.0.teacher"),
        ("exp.toml", "expected.nobody"),
        ("stages/prerank.toml", "train.epochs"),
        ("stages/prerank.toml", "train.learning_rat"),
        ("stages/prerank.toml", "train.label"),
        ("stages/prerank.toml", "features.2"),
        ("stages/rank.toml", "model.cross_layers"),
        ("stages/rank.toml", "model.hiden"),
        ("stages/recall.toml", "type"),
    }


def test_problems_of_the_data_set_come_with_the_others(project: Any) -> None:
    project.edit("little.toml", 'licence = "none"\n', "licens = 1\n")
    project.edit("little.toml", 'click = "click = 1"', 'click = "click = = 1"')
    project.edit("exp.toml", "keep = 10\n", "keep = true\n")
    project.edit("stages/rank.toml", "[model]", "[model")
    found = [(problem.file, problem.line) for problem in project.problems()]
    assert ("little.toml", project.line("little.toml", "licens")) in found
    assert ("exp.toml", project.line("exp.toml", "keep = true")) in found
    assert ("stages/rank.toml", project.line("stages/rank.toml", "[model")) in found
    assert not any(key in ("stage.rank.type", "stage.rank.level") for key in (p.key for p in project.problems()))


def test_problems_are_in_the_order_of_the_lines_and_said_once(project: Any) -> None:
    project.edit("exp.toml", 'use = "stages/prerank.toml"', 'use = "stages/rank.toml"')
    project.edit("stages/rank.toml", "cross_layers = 1", "cross_layers = -1")
    project.edit("stages/rank.toml", "hidden = [16]", "hidden = [0]\nx = 1")
    project.edit("exp.toml", "#expected", "y = 1")
    problems = project.problems()
    in_rank = [problem.line for problem in problems if problem.file == "stages/rank.toml"]
    assert len(in_rank) == len(set(in_rank))
    assert in_rank == sorted(in_rank)


def test_required_keys_of_an_empty_file(project: Any) -> None:
    (project.folder / "exp.toml").write_text("")
    found = {problem.key: problem.message for problem in project.problems()}
    assert set(found) == {"name", "dataset", "stage"}
    assert found["dataset"].startswith("required key is missing: a data set of the catalogue")


def test_a_wrong_head_hides_nothing_below(project: Any) -> None:
    project.edit("exp.toml", 'name = "small"', "name = 3")
    project.edit("exp.toml", "keep = 10\n", "keep = 0\n")
    project.edit("exp.toml", "#expected", "acu = [0, 1]")
    assert {p.key for p in project.problems()} == {"name", "stage.rank.keep", "expected.rank.acu"}


def test_expected_at_the_stages_own_keep_and_of_the_cascade(project: Any) -> None:
    project.edit("exp.toml", "#expected", '[expected.prerank]\n"ndcg@50" = [0, 1]\n[expected.cascade]\nfound = [0, 1]')
    project.edit("exp.toml", "#distill", "[evaluate]\nk = [3]")
    project.edit("exp.toml", "#head", "rounds = 2")
    assert project.load().expected["prerank"] == {"ndcg@50": (0.0, 1.0)}


def test_two_students_of_one_teacher_and_a_chain_are_no_ring(project: Any) -> None:
    project.edit("stages/recall.toml", 'loss = "sampled-softmax"', 'loss = "bce"')
    pair = "[[distill]]\nteacher = '{}'\nstudent = '{}'\nmethod = 'logit'\n"
    project.edit("exp.toml", "#distill", pair.format("rank", "recall") + pair.format("prerank", "recall"))
    assert len(project.load().distill) == 3


def test_no_such_experiment(project: Any) -> None:
    with pytest.raises(UserError, match=r"the experiment file 'nothing\.toml' does not exist"):
        load_experiment("nothing.toml")
    with pytest.raises(UserError, match=r"no experiment 'demmo' in the catalogue; did you mean 'demo'\?"):
        load_experiment("demmo")


def test_shipped_experiments_are_good(repository: Path) -> None:
    files = [path for path in repository.glob("benchmarks/**/*.toml") if "results" not in path.parts]
    assert files
    for path in files:
        if "[[stage]]" in path.read_text("utf-8"):  # the others are data sets of their own
            config = load_experiment(path)
            assert config.dataset in (config.definition.name, str(config.dataset_file))


PLUG_IN = """
import torch
from pydantic import BaseModel

class Config(BaseModel, extra="forbid", frozen=True):
    width: int = 8

class Scorer(torch.nn.Module):
    Config = Config
    levels = ("rank",)

class Popular:
    Config = Config
    levels = ("recall", "prerank")

class Blind(torch.nn.Module):
    Config = Config
    signals = ("ranking",)

class Bare(torch.nn.Module):
    pass
"""


def test_a_model_of_the_users_own(project: Any, plug_in: Callable[[str, str], None]) -> None:
    plug_in("own_models", PLUG_IN)
    project.edit("stages/rank.toml", '"dcnv2"', '"own_models:Scorer"')
    project.edit("stages/rank.toml", "hidden = [16]\ncross_layers = 1", "width = 3")
    stage = project.load().stage("rank")
    assert stage.model.model_dump() == {"width": 3}
    assert stage.model_type.__name__ == "Scorer"
    project.edit("stages/rank.toml", "width", "widht")
    (problem,) = project.problems()
    assert "did you mean 'width'?" in problem.message


def test_a_stage_of_the_users_own_is_not_trained(project: Any, plug_in: Callable[[str, str], None]) -> None:
    plug_in("own_stages", PLUG_IN)
    inline = 'type = "own_stages:Popular"\nlevel = "recall"'
    project.edit("exp.toml", 'use = "stages/recall.toml"', inline)
    assert project.load().stage("recall").train is None
    project.edit("exp.toml", "#recall", "train = { label = 'click' }")
    (problem,) = project.problems()
    assert "leave [train] out" in problem.message
    project.edit("exp.toml", "train = { label = 'click' }", "")
    project.edit("exp.toml", 'student = "prerank"', 'student = "recall"')
    (problem,) = project.problems()
    assert "is not trained by the library and cannot learn" in problem.message
    project.edit("exp.toml", 'student = "recall"', 'student = "prerank"')
    project.edit("exp.toml", 'teacher = "rank"', 'teacher = "recall"')
    (problem,) = project.problems()
    assert problem.message.startswith("method 'logit' needs the signal 'logits' of its teacher; 'recall'")


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("no_such_package.models:Scorer", "there is no module 'no_such_package' on Python's path"),
        ("refused_models:Scorre", "module 'refused_models' has no 'Scorre'; did you mean 'Scorer'?"),
        ("refused_models:Bare", "has no Config"),
        ("refused_models:torch", "has no Config"),
        ("refused_models:Scorer", "does not serve level 'prerank'; it serves 'rank'"),
        ("refused_models:Blind", ""),
        ("needs_more:Scorer", "module 'needs_more' needs 'something_else', which is not installed"),
        ("falls_over:Scorer", "module 'falls_over' cannot be imported: ZeroDivisionError: division by zero"),
        (":Scorer", 'want "my_package.my_module:MyStage"'),
        ("refused_models:", 'want "my_package.my_module:MyStage"'),
    ],
)
def test_plug_ins_that_cannot_be_used(
    project: Any, plug_in: Callable[[str, str], None], written: str, words: str
) -> None:
    plug_in("refused_models", PLUG_IN)
    plug_in("needs_more", "import something_else")
    plug_in("falls_over", "1 / 0")
    project.edit("stages/prerank.toml", '"two-tower"', f'"{written}"')
    project.edit("stages/prerank.toml", "[model]\nhidden = [16]\n", "")
    if not words:
        project.load()
        return
    (problem,) = project.problems()
    assert (problem.file, problem.line, problem.key) == ("stages/prerank.toml", 1, "type")
    assert words in problem.message


def test_a_teacher_that_gives_no_logits(project: Any, plug_in: Callable[[str, str], None]) -> None:
    plug_in("blind_models", PLUG_IN)
    project.edit("stages/rank.toml", '"dcnv2"', '"blind_models:Blind"')
    project.edit("stages/rank.toml", "hidden = [16]\ncross_layers = 1", "")
    (problem,) = project.problems()
    assert problem.key == "distill.0.teacher"
    assert "needs the signal 'logits'" in problem.message


def test_config_errors_are_user_errors_and_list_one_problem_a_line(project: Any) -> None:
    project.edit("exp.toml", "[0, 1]", "[-1, -2]")
    with pytest.raises(ConfigError) as caught:
        project.load()
    assert str(caught.value).splitlines() == [
        "exp.toml:3: seeds.0: want a number >= 0, got -1",
        "exp.toml:3: seeds.1: want a number >= 0, got -2",
    ]
    assert caught.value.exit_code == 2

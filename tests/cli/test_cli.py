"""The command line as a user meets it: output, exit codes, no traceback for wrong input."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from cascade_kd.config.tables import DISTILLERS
from cascade_kd.train import loop

Tiny = Callable[..., Path]
Command = Callable[..., Any]

QUICK = ["--device", "cpu", *(f"--set=stage.{name}.train.max_steps=2" for name in ("recall", "prerank", "rank"))]


def test_help_lists_what_has_landed(process: Command, command: Command) -> None:
    done = process("--help")
    assert done.code == 0
    for name in ("run", "check", "list", "init", "schema", "data"):
        assert name in done.out
    for later in ("compare", "export", "recommend", "serve", "bench"):
        assert f" {later} " not in done.out
    assert {"prepare", "describe", "audit"} <= set(command("data", "--help").out.split())
    assert command().code == 2, "no command"


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; import cascade_kd.cli\n"
        "print(sorted({'torch', 'polars', 'numpy', 'pydantic', 'faiss', 'sklearn', 'altair'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_does_not_compute_loads_no_torch(tiny: Tiny, tmp_path: Path) -> None:
    csv = tmp_path / "log.csv"
    csv.write_text("user,item,rating,time\n" + "".join(f"u{n % 7},i{n % 5},{n % 3},{n}\n" for n in range(200)))
    commands = [
        ["check", str(tiny())],
        ["run", "demo", "--dry-run"],
        *(["list", what] for what in ("stages", "datasets", "distillers", "metrics")),
        ["schema"],
        ["init", str(csv), "--out", str(tmp_path)],
        ["data", "prepare", str(tmp_path / "tiny.toml")],
        ["data", "describe", str(tmp_path / "tiny.toml")],
    ]
    code = (
        "import sys; from cascade_kd.cli.main import app\n"
        f"for command in {commands}:\n"
        "    app(command, standalone_mode=False)\n"
        "    assert not {'torch', 'faiss', 'sklearn', 'altair'} & set(sys.modules), command\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_run_prints_the_funnel_and_where_the_files_are(command: Command, tiny: Tiny, tmp_path: Path) -> None:
    file = tiny(epochs=1)
    done = command("run", file, "--out", tmp_path / "run", *QUICK, "--set", "stage.rank.keep=4")
    assert done.code == 0, done.err
    for word in ("recall", "prerank", "rank", "undistilled", "best possible", "popularity", "recall@4", "metrics.json"):
        assert word in done.out, word
    assert "epoch  1" in done.err
    again = command("run", file, "--out", tmp_path / "run", *QUICK, "--set", "stage.rank.keep=4")
    assert again.code == 2
    assert "already holds a run" in again.err
    assert "Traceback" not in again.err


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_between_two_steps_says_what_a_signal_in_a_step_says(
    command: Command, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: signal.Signals, code: int
) -> None:
    scaled = loop.scale_rates

    def stopping(optimizers: Sequence[torch.optim.Optimizer], factor: float) -> None:
        if (tmp_path / "run" / "events.ndjson").exists():  # the second epoch begins
            signal.raise_signal(signum)
        scaled(optimizers, factor)

    monkeypatch.setattr(loop, "scale_rates", stopping)
    done = command("run", tiny(epochs=2), "--out", tmp_path / "run", "--device", "cpu")
    assert done.code == code
    assert "`--resume` goes on from there" in done.err


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_there_is_a_run_promises_no_resume(
    command: Command, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: signal.Signals, code: int
) -> None:
    monkeypatch.setattr(
        sys.modules["cascade_kd.experiment.run"], "prepare", lambda *_, **__: signal.raise_signal(signum)
    )
    done = command("run", tiny(), "--out", tmp_path / "run", "--device", "cpu")
    assert done.code == code
    assert "resume" not in done.err
    assert not (tmp_path / "run").exists()


def test_exit_3_outside_the_bands(command: Command, tiny: Tiny, tmp_path: Path) -> None:
    file = tiny(epochs=1, more="\n[expected.rank]\nauc = [0.99, 1.0]\n")
    done = command("run", file, "--out", tmp_path / "run", *QUICK)
    assert done.code == 3
    assert "expected.rank.auc: want a mean over seeds in [0.99, 1.0]" in done.err
    assert (tmp_path / "run" / "report.html").exists()


def test_exit_1_is_a_bug_of_ours_and_its_traceback_is_kept(
    command: Command, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text(
        "import pydantic, torch\n"
        "class Model(torch.nn.Module):\n"
        "    class Config(pydantic.BaseModel):\n        pass\n"
        "    sides = ('user', 'item')\n"
        "    hidden_names = ()\n"
        "    def __init__(self, config, features):\n        super().__init__()\n"
        "        self.w = torch.nn.Parameter(torch.zeros(1))\n"
        "    def forward(self, inputs, hidden=()):\n        raise RuntimeError('a hole in the model')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    done = command(
        "run", tiny(epochs=1), "--out", tmp_path / "run", *QUICK,
        "--set", "stage.rank.type=broken:Model", "--set", "stage.rank.model={}",
    )  # fmt: skip
    assert done.code == 1, done.err
    assert "a hole in the model" in (tmp_path / "run" / "crash.txt").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nowhere.toml"], "nowhere.toml"),
        (["run", "--out"], "--out"),
        (["list", "layers"], "want an experiment"),
        (["list", "stages", "demo"], "list stages takes no file"),
        (["list", "wrong"], "'stages', 'datasets', 'distillers', 'metrics', 'layers'"),
        (["data", "describe", "movielens-2m"], "movielens-2m"),
        (["data", "audit", "movielens-2m"], "movielens-2m"),
        (["data", "audit", "synthetic", "--limit", "0.3"], "greater than or equal to 0.5"),
        (["run", "demo", "--device", "tpu"], "tpu"),
        (["nonsense"], "nonsense"),
    ],
)
def test_wrong_use_is_exit_2_without_a_traceback(command: Command, arguments: list[str], message: str) -> None:
    done = command(*arguments)
    assert done.code == 2, (done.out, done.err)
    assert message in done.err
    assert "Traceback" not in done.err


LEAK = """
[[feature]]
name = "leak"
kind = "numeric"
side = "pair"
expression = "AVG(click) OVER (PARTITION BY item)"
available = "rank"
"""


def test_audit_exits_3_where_something_is_flagged_and_not_allowed(command: Command, tiny_dataset: Path) -> None:
    clean = command("data", "audit", tiny_dataset)
    assert (clean.code, clean.err) == (0, "")
    assert "synthetic: each feature alone, label click" in clean.out
    assert "flagged:" not in clean.out
    text = tiny_dataset.read_text("utf-8")
    tiny_dataset.write_text(text.replace("[split]", f"{LEAK}\n[split]"), "utf-8")
    done = command("data", "audit", tiny_dataset)
    assert (done.code, done.err) == (3, "")
    assert "flagged: 'leak' (available at rank) is computed from the future" in done.out
    assert "1 of 15 features are flagged" in done.out
    (row,) = [line for line in done.out.splitlines() if line.startswith("leak ")]
    assert row.endswith("*")
    allowed = command("data", "audit", tiny_dataset, "--allow", "leak", "--label", "conversion")
    assert allowed.code == 0
    assert "allowed: 'leak'" in allowed.out
    assert "label conversion" in allowed.out
    for wrong, message in ((["--allow", "leek"], "did you mean 'leak'"), (["--label", "clik"], "did you mean 'click'")):
        refused = command("data", "audit", tiny_dataset, *wrong)
        assert refused.code == 2
        assert message in refused.err


def test_wrong_input_is_exit_2_of_the_process(process: Command) -> None:
    done = process("check", "nowhere.toml")
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: the experiment file 'nowhere.toml' does not exist\n"


def test_check_finds_everything_at_once(command: Command, tiny: Tiny) -> None:
    file = tiny()
    text = file.read_text().replace("keep = 5", "kep = 5").replace('loss = "kl"', 'loss = "lk"')
    file.write_text(text.replace("epochs = 2", 'epochs = "two"', 1))
    done = command("check", file)
    assert done.code == 2
    for part in ("kep", "did you mean 'keep'", "lk", "two"):
        assert part in done.err, done.err
    *problems, count = done.err.splitlines()
    assert all(re.match(rf"{re.escape(str(file))}:\d+: \S+: .", line) for line in problems), problems
    assert count == f"{len(problems)} problems"
    good = command("check", tiny())
    assert good.code == 0
    assert "recall (20) -> prerank (10) -> rank (5)" in good.out


FILES: dict[str, tuple[bytes | None, str]] = {  # content (None: a folder), and all that check says of it
    "a_folder": (None, r"error: the experiment file 'x\.toml' is a folder, not a file"),
    "an_empty_file": (b"", r"x\.toml: name: required key is missing: .*\n(.+\n)+3 problems"),
    "no_toml": (b'name = "x"\nseeds = [\n', r"x\.toml:2: not TOML: .* at the end of the file: seeds = \["),
    "a_binary_file": (bytes(range(256)), r"x\.toml:2: not UTF-8 text; save the file as UTF-8"),
    "a_nul": (b'name = "x"\0', r"x\.toml:1: not TOML: [^\0]*"),
    "a_number_without_end": (b"seeds = [" + b"1" * 5000 + b"]", r"x\.toml: cannot be read: Exceeds the limit .*"),
    "brackets_without_end": (b"seeds = " + b"[" * 5000, r"x\.toml: cannot be read: maximum recursion depth exceeded.*"),
    "brackets_in_brackets": (
        b"name = 'x'\nseeds = " + b"[" * 200 + b"]" * 200,
        r"x\.toml:2: lists or tables are nested more than 100 deep",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_check_of_a_file_that_is_no_experiment(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    content, said = FILES[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.toml").mkdir() if content is None else (tmp_path / "x.toml").write_bytes(content)
    done = command("check", "x.toml")
    assert done.code == 2
    assert re.fullmatch(said, done.err.rstrip("\n")), done.err


def test_check_of_a_name_that_is_a_path(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "exp.conf").write_text("")
    for written, said in (("folder", "a folder"), (".", "a folder"), ("exp.conf", "a file"), ("x" * 5000, "no exp")):
        done = command("check", written)
        assert done.code == 2
        assert said in done.err
        assert "'demo'" in done.err, "what there is"


def test_mistakes_of_the_data_set_file_are_said_by_its_lines(command: Command, tiny: Tiny, tmp_path: Path) -> None:
    file, dataset = tiny(), tmp_path / "tiny.toml"
    dataset.write_text(dataset.read_text().replace("rows = 6000", 'rows = "many"').replace("licence", "licnce"))
    at = {line.split()[0]: number for number, line in enumerate(dataset.read_text().splitlines(), 1) if line}
    done = command("check", file)
    assert done.code == 2
    assert done.err.splitlines() == [
        f"{dataset}: licence: required key is missing: whose data it is and what may be done with it",
        f"{dataset}:{at['licnce']}: licnce: unknown key; did you mean 'licence'?",
        f'{dataset}:{at["rows"]}: generator.rows: want a whole number, got "many"',
        "3 problems",
    ]


def test_dry_run_prints_the_resolved_experiment_and_trains_nothing(
    command: Command, tiny: Tiny, tmp_path: Path
) -> None:
    done = command("run", tiny(), "--dry-run", "--out", tmp_path / "run", "--set", "stage.prerank.keep=7")
    assert done.code == 0
    assert "keep = 7" in done.out
    assert not (tmp_path / "run").exists()


def test_lists(command: Command, tiny: Tiny, repository: Path) -> None:
    rows = {what: command("list", what).out.splitlines() for what in ("stages", "datasets", "distillers", "metrics")}
    stages = repository / "stages"
    shipped = sorted(str(path.relative_to(stages).with_suffix("")) for path in stages.rglob("*.toml"))
    assert [row.split()[0] for row in rows["stages"]] == shipped
    assert {"prerank/two-tower", "rank/dcnv2", "recall/two-tower"} <= set(shipped)
    assert {"movielens-1m", "synthetic"} <= {row.split()[0] for row in rows["datasets"]}
    assert [row.split()[0] for row in rows["distillers"]] == list(DISTILLERS)
    assert "gauc" in {row.split()[0] for row in rows["metrics"]}
    assert all(len(row.split()) > 3 for of_kind in rows.values() for row in of_kind), "a name and words"
    layers = command("list", "layers", tiny())
    assert layers.code == 0, layers.err
    cells = [line.split(maxsplit=2) for line in layers.out.splitlines()]
    assert ["rank", "mlp.0", "['rows', 8]"] in cells
    assert ["prerank", "user.vector", "['rows', 4]"] in cells


def test_schema_is_three_json_schemas(command: Command) -> None:
    schemas = json.loads(command("schema").out)
    assert set(schemas) == {"experiment", "stage", "dataset"}
    assert all("properties" in schema or "$ref" in schema for schema in schemas.values())


def test_data_prepare_and_describe(command: Command, tiny: Tiny, tmp_path: Path) -> None:
    tiny()
    done = command("data", "prepare", tmp_path / "tiny.toml")
    assert (done.code, done.err) == (0, "")
    assert (Path(done.out.strip()) / "meta.json").exists()
    described = command("data", "describe", tmp_path / "tiny.toml")
    assert described.code == 0
    for word in ("6,000", "user_category_click_rate", "never", "train"):
        assert word in described.out


def test_data_prepare_shows_what_it_is_at_on_a_terminal(
    command: Command, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny()
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes any stream for a terminal
    done = command("data", "prepare", tmp_path / "tiny.toml")
    assert done.code == 0
    assert "prepare synthetic" in done.err
    assert (Path(done.out.strip()) / "meta.json").exists(), "the path alone on stdout"

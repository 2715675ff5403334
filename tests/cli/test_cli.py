"""The command line as a user meets it: output, exit codes, no traceback for wrong input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Tiny = Callable[..., Path]


def cascade_kd(*arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cascade_kd", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", **env},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_help_lists_what_has_landed() -> None:
    done = cascade_kd("--help")
    assert done.returncode == 0
    for command in ("run", "check", "list", "init", "schema", "data"):
        assert command in done.stdout
    for later in ("compare", "export", "recommend", "serve", "bench"):
        assert f" {later} " not in done.stdout
    assert {"prepare", "describe"} <= set(cascade_kd("data", "--help").stdout.split())


def test_help_loads_nothing_heavy() -> None:
    code = "import sys; import cascade_kd.cli; print(sorted({'torch','polars','faiss','sklearn','altair'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_run_prints_the_funnel_and_where_the_files_are(tiny: Tiny, tmp_path: Path) -> None:
    file = tiny(epochs=1)
    done = cascade_kd("run", file, "--out", tmp_path / "run", "--device", "cpu", "--set", "stage.rank.keep=4")
    assert done.returncode == 0, done.stderr
    for word in ("recall", "prerank", "rank", "undistilled", "best possible", "popularity", "recall@4", "metrics.json"):
        assert word in done.stdout, word
    assert "epoch  1" in done.stderr
    again = cascade_kd("run", file, "--out", tmp_path / "run", "--set", "stage.rank.keep=4")
    assert again.returncode == 2
    assert "already holds a run" in again.stderr
    assert "Traceback" not in again.stderr


def test_exit_3_outside_the_bands(tiny: Tiny, tmp_path: Path) -> None:
    done = cascade_kd("run", tiny(epochs=1, more="\n[expected.rank]\nauc = [0.99, 1.0]\n"), "--out", tmp_path / "run")
    assert done.returncode == 3
    assert "expected.rank.auc: want a mean over seeds in [0.99, 1.0]" in done.stderr
    assert (tmp_path / "run" / "report.html").exists()


def test_exit_1_is_a_bug_of_ours_and_its_traceback_is_kept(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "import pydantic, torch\n"
        "class Model(torch.nn.Module):\n"
        "    class Config(pydantic.BaseModel):\n        pass\n"
        "    sides = ('user', 'item')\n"
        "    hidden_names = ()\n"
        "    def __init__(self, config, features):\n        super().__init__(); self.w = torch.nn.Parameter(torch.zeros(1))\n"
        "    def forward(self, inputs, hidden=()):\n        raise RuntimeError('a hole in the model')\n"
    )
    done = cascade_kd(
        "run", tiny(epochs=1), "--out", tmp_path / "run",
        "--set", "stage.rank.type=broken:Model", "--set", "stage.rank.model={}",
        PYTHONPATH=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "a hole in the model" in (tmp_path / "run" / "crash.txt").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nowhere.toml"], "nowhere.toml"),
        (["run", "--out"], "--out"),
        (["list", "layers"], "want an experiment"),
        (["data", "describe", "movielens-2m"], "movielens-2m"),
        (["run", "demo", "--device", "tpu"], "tpu"),
        (["nonsense"], "nonsense"),
    ],
)
def test_wrong_use_is_exit_2_without_a_traceback(arguments: list[str], message: str) -> None:
    done = cascade_kd(*arguments)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_check_finds_everything_at_once(tiny: Tiny) -> None:
    file = tiny()
    text = file.read_text().replace("keep = 5", "kep = 5").replace('loss = "kl"', 'loss = "lk"').replace("epochs = 2", 'epochs = "two"', 1)
    file.write_text(text)
    done = cascade_kd("check", file)
    assert done.returncode == 2
    for part in ("kep", "did you mean 'keep'", "lk", "two"):
        assert part in done.stderr, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.count(":") >= 3 and file.name in line]
    assert len(lines) >= 3
    good = cascade_kd("check", tiny())
    assert good.returncode == 0
    assert "recall (20) -> prerank (10) -> rank (5)" in good.stdout


def test_dry_run_prints_the_resolved_experiment_and_trains_nothing(tiny: Tiny, tmp_path: Path) -> None:
    done = cascade_kd("run", tiny(), "--dry-run", "--out", tmp_path / "run", "--set", "stage.prerank.keep=7")
    assert done.returncode == 0
    assert "keep = 7" in done.stdout
    assert not (tmp_path / "run").exists()


def test_lists(tiny: Tiny) -> None:
    assert "recall/two-tower" in cascade_kd("list", "stages").stdout
    assert {"movielens-1m", "synthetic"} <= set(cascade_kd("list", "datasets").stdout.split())
    assert "logit" in cascade_kd("list", "distillers").stdout
    assert "gauc" in cascade_kd("list", "metrics").stdout
    layers = cascade_kd("list", "layers", tiny())
    assert layers.returncode == 0, layers.stderr
    rows = [line.split(maxsplit=2) for line in layers.stdout.splitlines()]
    assert ["rank", "mlp.0", "['rows', 8]"] in rows
    assert ["prerank", "user.vector", "['rows', 4]"] in rows


def test_schema_is_three_json_schemas() -> None:
    schemas = json.loads(cascade_kd("schema").stdout)
    assert set(schemas) == {"experiment", "stage", "dataset"}
    assert all("properties" in schema or "$ref" in schema for schema in schemas.values())


def test_data_prepare_and_describe(tiny: Tiny, tmp_path: Path) -> None:
    tiny()
    done = cascade_kd("data", "prepare", tmp_path / "tiny.toml")
    assert done.returncode == 0
    assert (Path(done.stdout.strip()) / "meta.json").exists()
    described = cascade_kd("data", "describe", tmp_path / "tiny.toml")
    assert described.returncode == 0
    for word in ("6,000", "user_category_click_rate", "never", "train"):
        assert word in described.stdout

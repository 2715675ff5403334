from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cascade_kd.config import catalogue, describe_catalogue, describe_distillers, load_dataset_definition
from cascade_kd.config.tables import DISTILLERS, TYPES, describe_class, models, resolve_type, stage_type
from cascade_kd.errors import ConfigError, UserError


def test_the_repositorys_folders(repository: Path) -> None:
    assert catalogue.folder("stages") == repository / "stages"
    assert catalogue.folder("experiments") == repository / "benchmarks"
    assert {"recall/two-tower", "prerank/two-tower", "rank/dcnv2"} <= set(catalogue.names("stages"))
    assert {"movielens-1m", "synthetic"} <= set(catalogue.names("datasets"))
    assert catalogue.find("stages", "rank/dcnv2") == repository / "stages" / "rank" / "dcnv2.toml"
    assert catalogue.find("experiments", "demo") == repository / "benchmarks" / "demo.toml"


def test_unknown_names_get_the_nearest_and_the_list() -> None:
    with pytest.raises(UserError, match=r"no data set 'movielens1m' in the catalogue; did you mean 'movielens-1m'\? "):
        catalogue.find("datasets", "movielens1m")
    with pytest.raises(UserError, match=r"no stage '\.\./secrets' in the catalogue; there are: "):
        catalogue.find("stages", "../secrets")


def test_paths_count_from_the_file_they_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.toml").write_text("")
    assert catalogue.resolve("stages", "a.toml", beside=tmp_path / "sub") == tmp_path / "sub" / "a.toml"
    assert catalogue.resolve("stages", str(tmp_path / "sub" / "a.toml"), beside=Path("x")).is_file()
    monkeypatch.chdir(tmp_path)
    assert catalogue.resolve("stages", "sub/a.toml").is_file()
    with pytest.raises(UserError, match=r"the stage file 'a\.toml' does not exist \(counted from"):
        catalogue.resolve("stages", "a.toml", beside=tmp_path)
    (tmp_path / "b.toml").mkdir()
    with pytest.raises(UserError, match="is a folder, not a file"):
        catalogue.resolve("stages", "b.toml")


def test_an_installed_package_has_its_own_catalogue_and_needs_no_torch(repository: Path, tmp_path: Path) -> None:
    """The layout of the wheel: cascade_kd/catalogue/, nothing beside the package; torch must not be imported."""
    package = tmp_path / "site-packages" / "cascade_kd"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(repository / "cascade_kd", package, ignore=ignore)
    for kind in ("stages", "datasets"):
        shutil.copytree(repository / kind, package / "catalogue" / kind)
    (package / "catalogue" / "experiments").mkdir()
    shutil.copy(repository / "benchmarks" / "demo.toml", package / "catalogue" / "experiments")
    script = (
        "import sys; from cascade_kd.config import catalogue, lines, problems, sources, words\n"
        "assert catalogue.__file__.startswith(sys.argv[1]), catalogue.__file__\n"
        "for kind in ('stages', 'datasets', 'experiments'):\n"
        "    for name in catalogue.names(kind): print(catalogue.find(kind, name).relative_to(sys.argv[1]).as_posix())\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(package.parent)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(package.parent), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = done.stdout.split()
    assert "cascade_kd/catalogue/stages/recall/two-tower.toml" in found
    assert "cascade_kd/catalogue/datasets/synthetic.toml" in found
    assert [path for path in found if "experiments" in path] == ["cascade_kd/catalogue/experiments/demo.toml"]


def test_what_a_run_left_is_no_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_PACKAGE", tmp_path / "cascade_kd")
    for name in ("demo.toml", "movielens-1m/logit.toml", "results/demo/config.toml"):
        path = tmp_path / "benchmarks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    assert catalogue.names("experiments") == ("demo", "movielens-1m/logit")
    assert catalogue.names("stages") == ()


def test_every_type_of_the_table_can_be_resolved() -> None:
    for name, model in models().items():
        assert resolve_type(name) is model
        required = {name for name, field in model.Config.model_fields.items() if field.is_required()}
        assert required == ({"auxiliary"} if name == "multi-task" else set())
        assert stage_type(name) == TYPES[name] == describe_class(TYPES[name].home, model), "the table as the class"
    for name, config in DISTILLERS.items():
        layers = {"layers": [["mlp.0", "mlp.0"]]} if "layers" in config.model_fields else {}
        assert config.model_validate({"teacher": "a", "student": "b", "method": name, **layers}).method == name


def test_one_row_a_thing() -> None:
    stages = {row[0]: row[1:] for row in describe_catalogue("stages")}
    assert stages["rank/dcnv2"][:2] == ("dcnv2", "rank")
    datasets = {row[0]: row[1:] for row in describe_catalogue("datasets")}
    assert datasets["synthetic"][1] == "Apache-2.0"
    assert all(len({len(row) for row in rows.values()}) == 1 for rows in (stages, datasets))
    assert all(cell for rows in (stages, datasets) for row in rows.values() for cell in row)
    assert [row[0] for row in describe_distillers()] == list(DISTILLERS)


def test_a_long_description_stays_on_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_PACKAGE", tmp_path / "cascade_kd")
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "a.toml").write_text('name = "a"\nlicence = 3\ndescription = """\nOne\n  two\n"""\n')
    (tmp_path / "datasets" / "b.toml").write_text("# Only a comment.\n")
    assert describe_catalogue("datasets") == [("a", "One two", ""), ("b", "Only a comment.", "")]


def test_a_name_that_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.toml").write_text("")
    (tmp_path / "b").mkdir()
    (tmp_path / "c.conf").write_text("")
    cases = {
        "a": r"; there are: .*; or did you mean the file 'a\.toml'\?$",
        "b": r"; there are: .*; 'b' is a folder: want a name of these, or a path that ends in \.toml$",
        "c.conf": r"; 'c\.conf' is a file: want a name of these, or a path that ends in \.toml$",
        "nothing": r"; there are: [^;]*$",
        "": r"; there are: [^;]*$",
        "x" * 5000: r"; there are: [^;]*$",
        "x" * 5000 + ".toml": r"does not exist$",
        "~no-such-user/a.toml": r"does not exist$",
        "a\0.toml": r"does not exist$",
    }
    for written, said in cases.items():
        with pytest.raises(UserError, match=said):
            catalogue.resolve("stages", written)


def test_load_dataset_definition(project: Any) -> None:
    definition, file = load_dataset_definition("little.toml")
    assert (definition.name, file) == ("little", project.folder / "little.toml")
    assert load_dataset_definition("synthetic")[0].generator is not None
    project.edit("little.toml", "[labels]", "[lables]")
    with pytest.raises(ConfigError) as caught:
        load_dataset_definition(project.folder / "little.toml")
    assert [(p.line, p.key) for p in caught.value.problems] == [
        (0, "labels"),
        (project.line("little.toml", "[lables]"), "lables"),
    ]

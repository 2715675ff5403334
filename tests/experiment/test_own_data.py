"""README, "Your own data": the files as printed there, the commands as printed there, and what they print."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import polars as pl
import pytest

from cascade_kd.cli import main
from cascade_kd.data import WorldConfig, generate

README = Path(__file__).parents[2] / "README.md"
QUICK = [f"--set=stage.{name}.train.epochs=2" for name in ("recall", "prerank", "rank")]
NAIVE = (
    '  { name = "shelf_rate", kind = "numeric", side = "pair", '
    'expression = "AVG(bought) OVER (PARTITION BY shopper, shelf)", available = "rank" },'
)


def blocks() -> dict[str, str]:
    """Name -> content of the code blocks that are marked ``own-data``."""
    found = re.findall(r"<!-- own-data: (.+?) -->\n```\w+\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    return dict(found)


def write_log(path: Path) -> None:
    """A generated world with a shop's column names."""
    world = generate(WorldConfig(rows=20_000, users=200, items=150))
    shown = world["events"].join(world["items"], on="item", how="left", maintain_order="left")
    shown.select(
        "time",
        pl.format("s{}", "user").alias("shopper"),
        pl.format("a{}", "item").alias("article"),
        pl.col("category").str.replace("category", "shelf").alias("shelf"),
        pl.col("price").round(2),
        "device",
        pl.col("dwell").round(1).alias("seconds"),
        pl.col("click").alias("bought"),
    ).write_csv(path)


def assert_printed(want: str, got: str) -> None:
    """Every line of the README but ``…`` is a line that was printed, in that order."""
    lines = iter(line.rstrip() for line in got.splitlines())
    for line in want.splitlines():
        if line.strip() not in ("", "…"):
            assert line.rstrip() in lines, f"not printed (in this order): {line}\n{got}"


def test_from_a_csv_to_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    readme = blocks()
    write_log(tmp_path / "shop.csv")
    assert (tmp_path / "shop.csv").read_text().startswith(readme["shop.csv"])
    tomls = ("shop.toml", "shop-experiment.toml")
    for name in tomls:
        (tmp_path / name).write_text(readme[name], "utf-8")
    assert sum(len(readme[name].splitlines()) for name in tomls) <= 30
    available = {feature["available"] for feature in tomllib.loads(readme["shop.toml"])["feature"]}
    assert {"rank", "never"} <= available

    def command(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["cascade-kd", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return int(str(stopped.value.code)), out

    printed = {}
    for line in readme["commands"].splitlines():
        name, *arguments = line.split()
        assert name == "cascade-kd"
        quick = ["--device=cpu", *QUICK] if arguments[0] == "run" else []
        code, printed[" ".join(arguments[:-1])] = command(*arguments, *quick)
        assert code == 0, line
    assert_printed(readme["data describe"], printed["data describe"])
    assert (tmp_path / "runs" / "shop" / "report.html").stat().st_size > 10_000
    for line in readme["run"].splitlines():  # figures are of a longer run
        assert line[:16].strip() in printed["run"]

    honest = next(line for line in readme["shop.toml"].splitlines() if '"shelf_rate"' in line)
    assert re.search('expression = ".+?"', NAIVE)[0] in README.read_text("utf-8").replace("\n", " ")  # type: ignore[index]
    (tmp_path / "shop.toml").write_text(readme["shop.toml"].replace(honest, NAIVE), "utf-8")
    code, out = command("data", "audit", "shop.toml")
    assert code == 3
    assert_printed(readme["data audit"], out)

"""Commands, their options and exit codes (floor 9). Heavy imports stay inside the commands that need them."""

from __future__ import annotations

import signal
import sys
import traceback
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from cascade_kd.errors import CascadeKDError, ConfigError, UserError
from cascade_kd.interrupt import Terminated

app = typer.Typer(
    name="cascade-kd",
    help="Recommender cascades whose cheap stages learn from the ranker.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Prepare, describe and audit data sets.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")

File = Annotated[str, typer.Argument(metavar="FILE", help="an experiment's TOML, or the name of a shipped one (demo)")]
Set = Annotated[list[str], typer.Option("--set", metavar="K=V", help="override a key, e.g. stage.prerank.keep=100")]
DataSet = Annotated[str, typer.Argument(metavar="NAME|FILE", help="a data set of the catalogue, or its TOML")]

WITH_DISTILL_OFF = "leave all [[distill]] tables out"


class Device(StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Listing(StrEnum):
    """What ``list`` can list."""

    stages = "stages"
    datasets = "datasets"
    distillers = "distillers"
    metrics = "metrics"
    layers = "layers"


@app.command()
def run(
    file: File,
    overrides: Set = [],  # noqa: B006 - typer reads the default and never changes it
    out: Annotated[Path | None, typer.Option(help="the run directory (default: runs/NAME)")] = None,
    device: Annotated[Device, typer.Option(help="where to compute")] = Device.auto,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in --out")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the resolved experiment and stop")] = False,
    without_distill: Annotated[bool, typer.Option("--without-distill", help=WITH_DISTILL_OFF)] = False,
) -> None:
    """Train, distil, evaluate and report; prints the funnel table."""
    from cascade_kd.config import load_experiment, resolved_toml

    config = load_experiment(file, overrides=overrides, without_distill=without_distill)
    if dry_run:
        typer.echo(resolved_toml(config), nl=False)
        return
    folder = out if out is not None else Path("runs") / config.name

    from cascade_kd.cli.execute import execute

    execute(config, folder, device=device.value, resume=resume)


@app.command()
def check(file: File, overrides: Set = []) -> None:  # noqa: B006
    """Find all that can be found wrong without training."""
    from cascade_kd.config import load_experiment

    config = load_experiment(file, overrides=overrides)
    stages = " -> ".join(f"{stage.name} ({stage.keep})" for stage in config.stages)
    names = ", ".join(objective.name for objective in config.objectives)
    objectives = f"; objectives {names}" if names else ""
    typer.echo(
        f"{config.name}: good; {stages}; {len(config.distill)} distillers{objectives}; seeds {list(config.seeds)}"
    )


@app.command("list")
def list_(
    what: Annotated[Listing, typer.Argument(metavar="WHAT", help="what to list")],
    file: Annotated[str | None, typer.Argument(metavar="FILE", help="of layers: the experiment")] = None,
) -> None:
    """What there is, one line each."""
    from cascade_kd.cli.listing import listing

    for line in listing(what.value, file):
        typer.echo(line)


@app.command()
def init(
    csv: Annotated[Path, typer.Argument(help="your events, one row each")],
    out: Annotated[Path, typer.Option(help="the folder for the two files")] = Path("."),
) -> None:
    """Write a first data-set TOML (types and roles guessed, each guess a comment) and an experiment."""
    from cascade_kd.config import write_first_files

    dataset, experiment = write_first_files(csv, out)
    typer.echo(f"wrote {dataset} and {experiment}; read the comments, then: cascade-kd run {experiment}")


@app.command()
def schema() -> None:
    """JSON Schema of the three file kinds, for editors."""
    import json

    from cascade_kd.config import json_schemas

    typer.echo(json.dumps(json_schemas(), indent=2))


@data_app.command("prepare")
def data_prepare(dataset: DataSet) -> None:
    """Encode a data set once into the cache, and print where it is; nothing is done where it is there already."""
    from cascade_kd.cli.preparing import prepare_shown
    from cascade_kd.config import load_dataset_definition

    definition, file = load_dataset_definition(dataset)
    typer.echo(prepare_shown(definition, file.parent))


@data_app.command("describe")
def data_describe(dataset: DataSet) -> None:
    """Sizes, splits, label rates, and which feature is online, or privileged, at which stage."""
    from rich.console import Console

    from cascade_kd.cli.preparing import prepare_shown
    from cascade_kd.config import load_dataset_definition
    from cascade_kd.data import description, render

    definition, file = load_dataset_definition(dataset)
    for table in render(description(prepare_shown(definition, file.parent))):
        Console().print(table, "")


@data_app.command("audit")
def data_audit(
    dataset: DataSet,
    label: Annotated[str | None, typer.Option(help="a label of the data set (default: its first)")] = None,
    allow: Annotated[list[str], typer.Option(metavar="FEATURE", help="accept what is flagged of a feature")] = [],  # noqa: B006
    limit: Annotated[float, typer.Option(min=0.5, max=1.0, help="flag a feature that alone reaches this AUC")] = 0.9,
) -> None:
    """Find features that tell the outcome or are computed from the future; exit code 3 where one is flagged."""
    from cascade_kd.cli.auditing import audit_shown

    if audit_shown(dataset, label=label, allow=allow, limit=limit).refused:
        raise typer.Exit(3)


def _terminated(signum: int, frame: FrameType | None) -> None:
    raise Terminated("terminated")


def main() -> None:
    """Run the command line and exit with its code: 0 good, 2 wrong input, 3 outside bands, 130, 143, 1 a bug."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        code = app(standalone_mode=False)
    except typer.Abort:
        code = 130
    except CascadeKDError as error:
        typer.echo(_said(error), err=True)
        code = error.exit_code
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        code = 130
    except Exception as error:
        show = getattr(error, "show", None)  # click's own usage errors
        if show is None:
            traceback.print_exc()
            code = 1
        else:
            show()
            code = 2
    sys.exit(code if isinstance(code, int) else 0)


def _said(error: CascadeKDError) -> str:
    """The message on the terminal. The problems of a TOML stay ``file:line: key: problem``, as editors read them."""
    if isinstance(error, ConfigError):
        return f"{error}\n{len(error.problems)} problems" if len(error.problems) > 1 else str(error)
    return f"error: {error}" if isinstance(error, UserError) else str(error)

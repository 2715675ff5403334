"""``run``: the experiment, its table, and what is left behind when it goes wrong (floor 9)."""

from __future__ import annotations

import os
import signal
import traceback
from pathlib import Path

import typer
from rich.console import Console

from cascade_kd.config import ExperimentConfig
from cascade_kd.errors import CascadeKDError, ExpectationError
from cascade_kd.experiment.run import run
from cascade_kd.experiment.rundir import CONFIG, CRASH, METRICS, REPORT
from cascade_kd.interrupt import GOES_ON, Interrupted, Terminated
from cascade_kd.report import atomic_write_text, funnel_tables


def execute(config: ExperimentConfig, folder: Path, *, device: str, resume: bool) -> None:
    """Run, print the tables and where the files are. A bug's traceback is kept in ``crash.txt``."""
    try:
        result = run(config, folder, device=device, resume=resume)
    except (KeyboardInterrupt, Terminated) as stop:  # where no loop defers it, or the second one in a step
        if not (folder / CONFIG).exists():
            raise
        signum = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
        raise Interrupted(signum, f"stopped; what is done is in {folder}, and {GOES_ON}") from None
    except CascadeKDError:
        raise
    except Exception as error:
        if os.environ.get("RANK", "0") != "0":  # of several ranks the first tells
            raise
        atomic_write_text(folder / CRASH, "".join(traceback.format_exception(error)))
        typer.echo(f"a bug of ours, or a machine out of memory: the traceback is in {folder / CRASH}", err=True)
        raise
    if not result.report.seeds:
        return  # one of several ranks, and not the one that writes
    console = Console()
    for table in funnel_tables(result.report):
        console.print(table)
    for note in result.report.notes:
        console.print(f"note: {note}", highlight=False, markup=False)
    console.print(f"{folder / METRICS}  {folder / REPORT}", highlight=False, markup=False, soft_wrap=True)
    if result.outside:
        raise ExpectationError("\n".join(result.outside))

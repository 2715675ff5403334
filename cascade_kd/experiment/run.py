"""From one experiment to one report (floor 8)."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from cascade_kd.cascade import Cascade
from cascade_kd.config import ExperimentConfig, config_sha256, resolved_toml
from cascade_kd.config.tables import stage_type
from cascade_kd.data import Dataset, load, prepare
from cascade_kd.errors import UserError
from cascade_kd.evaluate import Evaluation, agreement_bins, distill_metrics, evaluate, reference_metrics
from cascade_kd.evaluate.evaluation import Labelled, RowMetrics, row_metrics
from cascade_kd.experiment.churn import Predictions, add_churn, codistill_metrics, predictions_of
from cascade_kd.experiment.joint import check_sharing
from cascade_kd.experiment.lists import check_lists
from cascade_kd.experiment.nets import check_layers, nets_of
from cascade_kd.experiment.request_lists import add_request_metrics
from cascade_kd.experiment.rounds import train_rounds
from cascade_kd.experiment.rundir import (
    CHECKPOINTS,
    EVENTS,
    METRICS,
    ORIGIN,
    REPORT,
    check_data,
    check_folder,
    claim,
    trim_events,
)
from cascade_kd.experiment.store import Store
from cascade_kd.experiment.workshop import Round, Workshop
from cascade_kd.experiment.worth import notes_on_teachers, order_of_kept
from cascade_kd.memory import kept_memory
from cascade_kd.report import Report, atomic_write_text, render_html
from cascade_kd.stages import ColumnStage, LogitStage
from cascade_kd.train import ProgressLog
from cascade_kd.train.checks import check_rows
from cascade_kd.train.distributed import barrier, joined, num_ranks, rank, rank_0_first
from cascade_kd.train.grow import save_origin
from cascade_kd.train.together import TOGETHER_FILE

Tree = dict[str, Any]
PACKAGES = ("cascade-kd", "torch", "numpy", "polars", "scikit-learn", "faiss-cpu", "faiss-gpu")


@dataclass(frozen=True)
class RunResult:
    """What a run leaves in memory: the report, the data, and the final cascade of every seed.

    Of several ranks the first alone evaluates and writes; the report of the others has no seeds.
    """

    report: Report
    dataset: Dataset
    cascades: Mapping[int, Cascade]
    out: Path
    outside: list[str]  # figures outside the bands of [expected], one line each


def run(
    config: ExperimentConfig,
    out: Path | str | None = None,
    *,
    device: str = "auto",
    resume: bool = False,
    progress: ProgressLog | None = None,
) -> RunResult:
    """Prepare the data, train all rounds of all seeds, evaluate, and write the run directory.

    ``out`` defaults to ``runs/NAME``. Processes that torchrun started train together; they need one file system. Raises
    UserError for wrong input and Interrupted after a checkpoint was saved.
    """
    with joined(choose_device(device)) as chosen:
        return _run(config, Path(out) if out is not None else Path("runs") / config.name, chosen, resume, progress)


def _run(
    config: ExperimentConfig, folder: Path, chosen: torch.device, resume: bool, progress: ProgressLog | None
) -> RunResult:
    started = time.perf_counter()
    if config.deterministic and chosen.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is refused
    torch.use_deterministic_algorithms(config.deterministic and chosen.type == "cuda")
    toml = resolved_toml(config)
    with rank_0_first():
        check_folder(folder, toml, resume=resume)
    progress = (progress or ProgressLog()) if rank() == 0 else ProgressLog(quiet=True)
    hidden = progress.quiet or not progress.console.is_terminal
    with Progress(console=progress.console, transient=True, disable=hidden) as bars, rank_0_first():
        prepared = prepare(config.definition, base=config.dataset_file.parent, progress=bars)
    dataset = load(prepared).to(chosen)
    for stage in config.stages:
        if stage.train is not None:
            tower = stage_type(stage.type).is_tower
            check_rows(stage.name, dataset, None, stage.train, tower=tower)
    nets = nets_of(config, dataset, taught_only=True)
    check_layers(config, nets, dataset)
    check_sharing(config, nets)
    check_lists(config, dataset)
    if rank() == 0:
        claim(folder, toml)
        check_data(folder, dataset.sha256)
        save_origin(dataset, folder / ORIGIN)
        trim_events(folder / EVENTS, _reached(folder))
        progress.events = folder / EVENTS
    barrier()

    seeds: dict[str, Tree] = {}
    predictions: dict[str, Predictions] = {}
    curves: list[dict[str, Any]] = []
    calibration: dict[str, list[dict[str, Any]]] = {}
    agreement: dict[str, list[dict[str, Any]]] = {}
    cascades: dict[int, Cascade] = {}
    with kept_memory(), progress:
        for seed in config.seeds:
            rounds = train_rounds(Workshop(config, dataset, folder, Store(), progress), seed)
            cascades[seed] = _cascade(config, rounds[-1])
            if rank() > 0:
                continue
            progress.say(f"seed {seed}  evaluating {'both rounds' if len(rounds) > 1 else 'the cascade'}")
            seeds[str(seed)], predictions[str(seed)], final = _measure(config, dataset, rounds)
            curves += _curves(seed, rounds)
            if seed == config.seeds[0]:
                calibration = dict(final.calibration)
                agreement = _agreement(config, dataset, rounds, final)
    add_churn(seeds, predictions)
    report = Report(
        run=_about(config, dataset, chosen, started),
        seeds=seeds,
        config_toml=toml,
        curves=curves,
        calibration=calibration,
        agreement=agreement,
        notes=_notes(config, seeds),
    )
    if rank() > 0:
        return RunResult(report, dataset, cascades, folder, [])
    report.write_json(folder / METRICS)
    atomic_write_text(folder / REPORT, render_html(report))
    return RunResult(report, dataset, cascades, folder, outside_bands(config, report))


def choose_device(name: str) -> torch.device:
    """``auto`` takes CUDA where there is one. Raises UserError for ``cuda`` without CUDA."""
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {name}: want auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this torch sees no CUDA device; use --device cpu, or install a CUDA build")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _measure(config: ExperimentConfig, dataset: Dataset, rounds: list[Round]) -> tuple[Tree, Predictions, Evaluation]:
    """The tree of one seed, what its models say of the test rows, and the last round's evaluation."""
    labels = stage_labels(config, dataset)
    base = evaluate(_cascade(config, rounds[0]), dataset, labels, config.evaluate)
    final = base if len(rounds) == 1 else evaluate(_cascade(config, rounds[-1]), dataset, labels, config.evaluate)
    come_through = [add_request_metrics(config, dataset, rounds[0], found) for found in (base, final)]
    last = config.stages[-1]
    ks = tuple(sorted({*config.evaluate.k, last.keep}))
    mask_seen = config.evaluate.mask_seen
    reference = reference_metrics(dataset, base.asked, labels[last.name].label, ks, mask_seen=mask_seen)
    distill: Tree = {}
    teachers = _teacher_metrics(config, dataset, rounds, labels)
    for pair in config.distill if len(rounds) > 1 else ():
        teacher = rounds[-1 if pair.mode == "joint" else -2][pair.source]
        taught = teachers.get(pair.source)
        distill[pair.name] = distill_metrics(
            teacher.stage,
            final.trace.step(pair.student),
            final.asked.requests,
            config.evaluate.k,
            student=base.stages[pair.student],
            distilled=final.stages[pair.student],
            taught=base.stages[pair.teacher] if taught is None else taught.tree,
        )
        worth = order_of_kept(config, rounds[-2], pair, base)
        distill[pair.name] |= {"order_of_kept": worth} if worth else {}
    tree: Tree = {
        "stages": final.stages,
        "cascade": final.cascade,
        "teachers": {name: rows.tree for name, rows in teachers.items()},
        "baseline": {"stages": base.stages, "cascade": base.cascade, "reference": reference},
        "distill": distill,
    }
    if config.objectives:
        tree["objective"] = come_through[-1]
    if config.codistill is not None:
        tree["codistill"] = codistill_metrics(config, dataset, rounds[-1], labels)
    return tree, predictions_of(base, final, teachers), final


def _teacher_metrics(
    config: ExperimentConfig, dataset: Dataset, rounds: list[Round], labels: Mapping[str, Labelled]
) -> dict[str, RowMetrics]:
    """auc, gauc, logloss and ece of every teacher that is not served, on its own label, else its first student's."""
    served = {stage.name for stage in config.stages}
    known = {t.name: t.model.train for t in config.teachers if t.model is not None and t.model.train is not None}
    found: dict[str, RowMetrics] = {}
    for name, trained in (rounds[0] | rounds[-1]).items():
        if name in served:
            continue
        plain = name.partition(".")[0]  # of a joint teacher, or of a peer
        if plain in known:
            labelled = Labelled(known[plain].label, known[plain].loss == "bce")
        elif plain in served:
            labelled = labels[plain]
        else:
            students = [pair.student for pair in config.distill if pair.teacher == plain]
            labelled = labels[students[0] if students else config.stages[-1].name]
            if isinstance(trained.stage, ColumnStage) and trained.stage.scores == "rank":
                labelled = replace(labelled, probability_model=False)
        assert isinstance(trained.stage, LogitStage)
        found[name] = row_metrics(trained.stage, dataset, labelled)
    return found


def stage_labels(config: ExperimentConfig, dataset: Dataset) -> dict[str, Labelled]:
    """Every stage's label; a stage that is not trained is measured on the last trained stage's."""
    trained = [stage.train.label for stage in config.stages if stage.train is not None]
    default = trained[-1] if trained else next(iter(dataset.events.labels))
    return {
        stage.name: Labelled(stage.train.label, stage.train.loss == "bce")
        if stage.train is not None
        else Labelled(default, False)
        for stage in config.stages
    }


def outside_bands(config: ExperimentConfig, report: Report) -> list[str]:
    """One line for every figure whose mean over seeds lies outside its band."""
    lines = []
    for where, bands in config.expected.items():
        tree = report.summary["cascade"] if where == "cascade" else report.summary["stages"][where]
        for name, (low, high) in bands.items():
            value = tree.get(name, {}).get("mean")
            if value is None or not low <= value <= high:
                got = "nothing" if value is None else f"{value:.4f}"
                lines.append(f"expected.{where}.{name}: want a mean over seeds in [{low}, {high}], got {got}")
    return lines


def _cascade(config: ExperimentConfig, stages: Round) -> Cascade:
    return Cascade(tuple(stages[stage.name].stage for stage in config.stages))


def _curves(seed: int, rounds: list[Round]) -> list[dict[str, Any]]:
    points = []
    for number, stages in enumerate(rounds):
        for name, trained in stages.items():
            if number == 0 or trained is not rounds[number - 1].get(name):
                points += [{"seed": seed, "round": number, "stage": name} | point for point in trained.curve]
    return points


def _agreement(
    config: ExperimentConfig, dataset: Dataset, rounds: list[Round], final: Evaluation
) -> dict[str, list[dict[str, Any]]]:
    """Binned probabilities of teacher and student on the test rows."""
    if len(rounds) == 1:
        return {}
    return {
        pair.name: agreement_bins(final.logits[pair.teacher], final.logits[pair.student])
        for pair in config.distill
        if pair.teacher in final.logits and pair.student in final.logits
    }


def _reached(folder: Path) -> dict[tuple[int, int, str], int]:
    """The step of every stage's last checkpoint."""
    reached = {}
    for path in (folder / CHECKPOINTS).glob("*/*/*/last.json"):
        meta = json.loads(path.read_text("utf-8"))
        reached[meta["seed"], meta["round"], meta["stage"]] = meta["state"]["step"]
    for path in (folder / CHECKPOINTS).glob(f"*/*/*/{Path(TOGETHER_FILE).stem}.json"):
        meta = json.loads(path.read_text("utf-8"))
        reached |= {(meta["seed"], meta["round"], name): state["step"] for name, state in meta["states"].items()}
    return reached


def _notes(config: ExperimentConfig, seeds: Mapping[str, Tree]) -> list[str]:
    """What a reader should know before the figures: which index served, and a stage that orders worse than before."""
    indices = [stage["index"] for tree in seeds.values() for stage in tree["stages"].values() if "index" in stage]
    notes = list(dict.fromkeys(note for index in indices for note in index["notes"]))
    keep = config.stages[-1].keep
    name = f"recall@{keep}"
    for seed, tree in seeds.items():
        notes += notes_on_teachers(config, seed, tree)
        values = [(stage.name, tree["stages"][stage.name].get(name, {}).get("mean")) for stage in config.stages]
        for (before, a), (after, b) in pairwise(values):
            if a is not None and b is not None and b < a:
                notes.append(
                    f"Seed {seed}: stage '{after}' orders worse than '{before}' does: {name} of its own order is "
                    f"{b:.4f}, against {a:.4f} of the order it received."
                )
    return notes


def _about(config: ExperimentConfig, dataset: Dataset, device: torch.device, started: float) -> Tree:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "name": config.name,
        "config_sha256": config_sha256(config),
        "data_sha256": dataset.sha256,
        "commit": _commit(),
        "versions": _versions(),
        "device": device.type if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "ranks": num_ranks(),
        "wall_s": round(time.perf_counter() - started, 1),
        "peak_rss_bytes": peak if sys.platform == "darwin" else peak * 1024,
    }


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _commit() -> str | None:
    """The commit of the library's own checkout, with ``+`` when it has changes; None for an installed wheel."""
    root = Path(__file__).resolve().parent.parent.parent
    if not (root / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(root)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")

"""The first two files of a newcomer: a data-set TOML guessed from a file of events, and an experiment on it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from cascade_kd.config.columns import Attribute, Label, describe_columns, guess_label
from cascade_kd.config.roles import Roles, guess_roles
from cascade_kd.config.sniff import Dialect, sniff
from cascade_kd.config.text import free, line, plain, slug, toml
from cascade_kd.data.readers import read_table
from cascade_kd.data.source import TableSource
from cascade_kd.errors import DataError, UserError
from cascade_kd.types import ITEM_ID, USER_ID

AGAIN = 0.1  # the share of repeated (user, item) events from which seen items stay in the lists
ENOUGH_EVENTS = 5  # of a user, before the split by users leaves a test event


@dataclass(frozen=True)
class _Found:
    """All that was guessed; ``frame`` holds the whole file."""

    csv: Path
    dialect: Dialect
    quote: str
    frame: pl.DataFrame
    roles: Roles
    label: Label
    attributes: list[Attribute]


def write_first_files(csv: Path, out_dir: Path) -> tuple[Path, Path]:
    """Write ``NAME.toml`` (the data set) and ``NAME-experiment.toml`` for a delimited file of events.

    Every guess is a comment in them. Raises UserError where one of them exists, or where no user, item or label can
    be found; DataError where rows cannot be read.
    """
    name = slug(csv.stem) or "dataset"
    dataset, experiment = out_dir / f"{name}.toml", out_dir / f"{name}-experiment.toml"
    for path in (dataset, experiment):
        if path.exists():
            raise UserError(f"'{path}' exists and is left as it is; move it away, or choose another folder with --out")
    found = _look(csv)
    texts = {dataset: _dataset_toml(name, found, out_dir), experiment: _experiment_toml(name, dataset.name, found)}
    out_dir.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    return dataset, experiment


def _look(csv: Path) -> _Found:
    dialect = sniff(csv)
    frame, quote = _read(csv, dialect)
    roles = guess_roles(frame, dialect.columns)
    others = [name for name in dialect.columns if name not in roles.columns()]
    label = guess_label(frame, others, roles)
    others.remove(label.column)
    attributes = describe_columns(frame, others, roles)
    return _Found(csv, dialect, quote, frame, roles, label, attributes)


def _read(csv: Path, dialect: Dialect) -> tuple[pl.DataFrame, str]:
    """The whole file, read as the data-set TOML will have it read; quotes are plain characters where they must be."""
    wanted = dict.fromkeys(dialect.columns, "init")
    for quote in ('"', ""):
        keys = {"separator": dialect.separator, "encoding": dialect.encoding, "quote": quote}
        names = {"header": dialect.has_header, "columns": dialect.columns} if dialect.names_columns else {}
        source = TableSource.model_validate({"file": csv.name, **keys, **names})
        try:
            return read_table("events", source, csv.parent, wanted), quote
        except DataError:
            if not quote or len(dialect.separator) > 1:
                raise
    raise AssertionError("the last quote returns or raises")


def _dataset_toml(name: str, found: _Found, out_dir: Path) -> str:
    roles, label = found.roles, found.label
    lines = [
        f"# Guessed from {found.csv.name} ({len(found.frame)} rows). Read every comment and mend what is wrong; then",
        "# `cascade-kd data describe` shows what came out, and `cascade-kd check` what does not fit.",
        f"name = {toml(name)}",
        'licence = "unknown"            # say whose data this is and what may be done with it',
        "",
        *_table_lines(found, out_dir),
        "",
        "[roles]",
        line("user", roles.user.column, roles.user.why),
        line("item", roles.item.column, roles.item.why),
    ]
    if roles.time is not None:
        lines.append(line("time", roles.time.column, roles.time.why))
        if roles.unit != "s":
            lines.append(line("time_unit", roles.unit, "by the size of the numbers"))
    else:
        lines.append(
            "# no column of unix times or dates (2024-12-31, 2024-12-31 23:59:59) was found: rows are in time order"
        )
    for role, guess in (("request", roles.request), ("position", roles.position)):
        if guess is not None:
            lines.append(line(role, guess.column, guess.why))
    lines += ["", "[labels]                        # Polars SQL over the events; what counts as good"]
    lines += [line(label.name, label.expression, label.why), "", *_feature_lines(found), *_split_lines(found)]
    return "\n".join(lines) + "\n"


def _table_lines(found: _Found, out_dir: Path) -> list[str]:
    dialect = found.dialect
    lines = ["[tables.events]", f"file = {toml(_relative(found.csv, out_dir))}"]
    lines.append(line("separator", dialect.separator, dialect.separator_why))
    if dialect.encoding != "utf8":
        lines.append(line("encoding", dialect.encoding, "the file is not UTF-8"))
    if not found.quote and len(dialect.separator) == 1:
        lines.append(line("quote", "", "quotes are plain characters in this file"))
    if dialect.names_columns:
        lines.append(f"header = {str(dialect.has_header).lower():24s} # {plain(dialect.header_why)}")
        why = "the header has empty or repeated names" if dialect.has_header else "made up: rename them throughout"
        lines.append(f"columns = {toml(list(dialect.columns))}  # {why}")
    else:
        lines.append(f"# the first row is a header: {plain(dialect.header_why)}")
    return lines


def _feature_lines(found: _Found) -> list[str]:
    """The attributes, and three features that every log gives: what the user liked, and two rates for the ranker."""
    label = found.label.name
    taken = {USER_ID, ITEM_ID}
    lines = [
        "# user_id and item_id are features of every data set. `available` names the first stage that has a feature"
    ]
    lines.append(
        "# online: recall, prerank, rank, or never (known only after the event; then only a teacher may see it)."
    )
    tastes: list[str] = []
    for attribute in found.attributes:
        if attribute.kind is None:
            lines += [f"# column {toml(attribute.column)} is left out: {plain(attribute.why)}"]
            continue
        name = free(slug(attribute.column) or "column", taken)
        lines += ["", "[[feature]]", f"name = {toml(name)}"]
        if name != attribute.column:
            lines.append(f"column = {toml(attribute.column)}")
        lines.append(line("kind", attribute.kind, attribute.why))
        if attribute.kind == "tags":
            lines.append(line("separator", attribute.separator, "between the values of one field"))
        lines.append(f"side = {toml(attribute.side)}")
        if attribute.side in ("user", "item"):
            lines.append(line("table", "events", "there is no table of its own: the value of the first event"))
        lines.append(f"available = {toml(attribute.available)}")
        if attribute.side == "item" and attribute.kind in ("categorical", "tags"):
            tastes.append(name)
    lines += _history(free(f"{label}_history", taken), label)
    lines += _rate(free(f"item_{label}_rate", taken), ["item"], "item", label)
    for name in tastes[:1]:
        lines += _rate(free(f"user_{name}_{label}_rate", taken), ["user", f"item.{name}"], "pair", label)
    return lines


def _history(name: str, label: str) -> list[str]:
    lines = ["", "[[feature]]", line("name", name, "the user's last items with the label"), 'kind = "history"']
    return [*lines, 'side = "user"', f"events = {toml(label)}", "length = 50", 'available = "recall"']


def _rate(name: str, keys: list[str], side: str, label: str) -> list[str]:
    lines = ["", "[[feature]]", line("name", name, "of the events before the request; online where few are scored")]
    lines += ['kind = "statistic"', f"side = {toml(side)}", f"keys = {toml(keys)}", f"value = {toml(label)}"]
    return [*lines, 'aggregate = "mean"', 'available = "rank"']


def _split_lines(found: _Found) -> list[str]:
    roles = found.roles
    units = pl.col(roles.request.column).n_unique() if roles.request is not None else pl.len()
    per_user = found.frame.group_by(roles.user.column).agg(units.alias("units"))["units"]
    if (per_user >= ENOUGH_EVENTS).sum() >= 0.2 * len(per_user):
        kind, why = "per-user-time", "each user's last events are test"
    elif roles.time is not None:
        kind, why = "time", "few users have five events: the last events of all are test"
    else:
        kind, why = "leave-last-out", "few users have five events: each user's last one is test"
    lines = ["", "[split]", line("kind", kind, why)]
    return lines if kind == "leave-last-out" else [*lines, "valid = 0.1", "test = 0.1"]


def _experiment_toml(name: str, dataset: str, found: _Found) -> str:
    num_items = found.frame[found.roles.item.column].n_unique()
    recall = max(1, min(200, num_items // 2))
    prerank = max(1, min(50, recall // 2))
    rank = max(1, min(10, prerank // 2))
    small = len(found.frame) < 50_000
    lines = [
        "# A first cascade with a small budget: it shows that everything works. Then raise the epochs.",
        f"name = {toml(name)}",
        f"dataset = {toml(dataset)}",
        "seeds = [0]",
    ]
    stages = [("recall", "recall/two-tower", recall), ("prerank", "prerank/two-tower", prerank)]
    for stage, use, keep in [*stages, ("rank", "rank/dcnv2", rank)]:
        lines += ["", "[[stage]]", f"name = {toml(stage)}", f"use = {toml(use)}"]
        lines.append(f"keep = {keep:<24d} # of {num_items} items" if stage == "recall" else f"keep = {keep}")
        lines += [f"train.label = {toml(found.label.name)}", "train.epochs = 3"]
        lines.append(f"train.batch_size = {256 if small else 2048}")
    lines += ["", "[[distill]]                     # the ranker teaches the pre-ranker"]
    lines += ['teacher = "rank"', 'student = "prerank"', 'method = "logit"', "weight = 0.5"]
    lines += ["", "[evaluate]", f"k = {sorted({1, rank, recall})}"]
    distinct = found.frame.select(found.roles.user.column, found.roles.item.column).unique()
    if len(distinct) < (1 - AGAIN) * len(found.frame):
        share = 1 - len(distinct) / len(found.frame)
        lines.append(f"mask_seen = false               # {share:.0%} of the events are of an item the user had before")
    return "\n".join(lines) + "\n"


def _relative(csv: Path, out_dir: Path) -> str:
    """The file as seen from the TOML's folder; absolute where there is no way between them."""
    try:
        return Path(os.path.relpath(csv.resolve(), out_dir.resolve())).as_posix()
    except ValueError:
        return csv.resolve().as_posix()

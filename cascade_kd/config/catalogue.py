"""The shipped stages, data sets and experiments, found by name: ``recall/two-tower``, ``movielens-1m``.

Installed from a wheel they lie in ``cascade_kd/catalogue/``; in an editable install they are the folders of the
repository (experiments: ``benchmarks/``).
"""

from __future__ import annotations

import os.path
from pathlib import Path
from typing import Literal

from cascade_kd.config.words import choose
from cascade_kd.errors import UserError

Kind = Literal["stages", "datasets", "experiments"]

_PACKAGE = Path(__file__).resolve().parents[1]
_ONE = {"stages": "stage", "datasets": "data set", "experiments": "experiment"}


def folder(kind: Kind) -> Path:
    """The folder of one kind; what a run wrote (``results/``) is no part of it."""
    shipped = _PACKAGE / "catalogue"
    if shipped.is_dir():
        return shipped / kind
    return _PACKAGE.parent / ("benchmarks" if kind == "experiments" else kind)


def names(kind: Kind) -> tuple[str, ...]:
    """All names of a kind, sorted; a name is the path below the folder without ``.toml``."""
    top = folder(kind)
    files = [path.relative_to(top).with_suffix("") for path in top.rglob("*.toml")]
    return tuple(sorted(path.as_posix() for path in files if "results" not in path.parts[:-1]))


def find(kind: Kind, name: str) -> Path:
    """The TOML of a name. Raises UserError with the nearest name and the list."""
    known = names(kind)
    if name in known:
        return folder(kind) / f"{name}.toml"
    raise UserError(f"no {_ONE[kind]} '{name}' in the catalogue{choose(name, known)}")


def resolve(kind: Kind, written: str, *, beside: Path | None = None) -> Path:
    """What a user wrote, a path (it ends in ``.toml``) or a catalogue name, as a file that exists.

    A relative path counts from the folder ``beside``, that of the file it is written in; None is the working
    directory. Raises UserError.
    """
    path = os.path.join(beside or "", os.path.expanduser(written))  # of text: pathlib raises on odd or long names
    if not written.endswith(".toml"):
        try:
            return find(kind, written)
        except UserError as error:
            raise UserError(f"{error}{_meant_path(written, path)}") from None
    if not os.path.isfile(path):
        what = "is a folder, not a file" if os.path.isdir(path) else "does not exist"
        counted = f" (counted from {beside.as_posix()})" if beside and not os.path.isabs(written) else ""
        raise UserError(f"the {_ONE[kind]} file '{written}' {what}{counted}")
    return Path(path)


def _meant_path(written: str, path: str) -> str:
    """What to say of a name that is a path, or nothing."""
    if written and os.path.isfile(f"{path}.toml"):
        return f"; or did you mean the file '{written}.toml'?"
    if written and os.path.exists(path):
        what = "folder" if os.path.isdir(path) else "file"
        return f"; '{written}' is a {what}: want a name of these, or a path that ends in .toml"
    return ""

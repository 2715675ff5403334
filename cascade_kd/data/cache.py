"""The cache folder: where it is, folders that appear whole or not at all, digests of files (floor 2)."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cascade_kd.errors import DataError

STALE_SECONDS = 24 * 3600  # a partial folder this old was left by a killed process


def cache_root() -> Path:
    """``$CASCADE_KD_CACHE``, else ``~/.cache/cascade_kd``."""
    given = os.environ.get("CASCADE_KD_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "cascade_kd"


@contextmanager
def staging(final: Path) -> Iterator[Path]:
    """A fresh folder beside ``final`` that becomes ``final`` by one rename when the block ends well.

    Any exception removes it. Where another process was quicker, its folder stays and this one is discarded.
    """
    for old in final.parent.glob(f".{final.name}.*.partial"):
        if time.time() - _modified(old) > STALE_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
    partial = final.with_name(f".{final.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    _make_folder(partial)
    try:
        yield partial
        try:
            partial.rename(final)
        except OSError:
            if not final.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def file_digest(path: Path) -> str:
    """sha256 of a file's content; remembered by path, size and modification time, so that a file is read once."""
    path = path.resolve()
    status = path.stat()
    key = {"path": str(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    note = cache_root() / "digests" / (hashlib.sha256(str(path).encode()).hexdigest() + ".json")
    try:
        known = json.loads(note.read_text())
        if {name: known[name] for name in key} == key:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no note, or one that cannot be read: digest the file again
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    _make_folder(note.parent)
    fresh = note.with_name(f"{note.name}.{os.getpid()}-{secrets.token_hex(4)}")
    fresh.write_text(json.dumps({**key, "sha256": digest}))
    fresh.replace(note)
    return digest


def _make_folder(folder: Path) -> None:
    """``mkdir -p``; a cache that cannot be written is the user's to mend."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"the cache folder {cache_root()} cannot be written ({error.strerror}); set CASCADE_KD_CACHE to another"
        ) from error


def _modified(path: Path) -> float:
    """Modification time in unix seconds; now if the path went away meanwhile."""
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()

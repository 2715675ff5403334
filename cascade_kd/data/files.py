"""The files that a source names: one file, a folder, a pattern, something inside an archive (floor 2)."""

from __future__ import annotations

import os
import re
import tarfile
import urllib.parse
import zipfile
from dataclasses import dataclass
from pathlib import Path

from cascade_kd.data.cache import cache_root, file_digest, staging
from cascade_kd.data.download import MAX_BYTES, UNPACKED, unpack
from cascade_kd.data.problems import did_you_mean
from cascade_kd.data.source import TableSource
from cascade_kd.errors import DataError

NO_VALUE = "__HIVE_DEFAULT_PARTITION__"  # what Hive and Spark name the folder of missing values
_PATTERN = re.compile(r"[*?[]")


@dataclass(frozen=True)
class SourceFile:
    """A file with rows: the code of its part, if the files are of parts, and the values in its folders' names."""

    path: Path
    part: int | None
    partition: tuple[tuple[str, str | None], ...]  # key=value folders, in the order of the path


def source_files(table: str, source: TableSource, folder: Path) -> list[SourceFile]:
    """The files of a source, in the order of its rows. Archives on the way are unpacked into the cache.

    Raises ``DataError`` where there is none, with what the folder holds.
    """
    found = [file for part, name in source.paths for file in _named(table, name, part, folder)]
    keys = {tuple(key for key, _ in file.partition) for file in found}
    if len(keys) > 1:
        raise DataError(f"the folders of its files name different columns: {sorted(keys)}", table=table)
    return found


def digests(table: str, source: TableSource, folder: Path) -> list[list[object]]:
    """What the rows of a source follow from: part, partition values and sha256 of every file, in order."""
    return [[f.part, f.partition, file_digest(f.path)] for f in source_files(table, source, folder)]


def _named(table: str, name: str, part: int | None, folder: Path) -> list[SourceFile]:
    """The files that one ``file`` means."""
    fixed, pattern = _parted(name, folder)
    at = _entered(table, folder, fixed)
    if pattern:
        paths = [path for path in at.glob(pattern) if path.is_file() and not _is_hidden(path.relative_to(at))]
    elif at.is_dir():
        paths = [path for path in at.rglob("*") if path.is_file() and not _is_hidden(path.relative_to(at))]
    else:
        paths = [at]
    if not paths or not paths[0].exists():
        raise _missing(table, at, pattern)
    paths.sort(key=lambda path: path.relative_to(at).as_posix())
    for path in paths:
        if not os.access(path, os.R_OK):
            raise DataError(f"no permission to read {path}", table=table)
    return [SourceFile(path, part, _partition(Path(fixed) / path.relative_to(at))) for path in paths]


def _parted(name: str, folder: Path) -> tuple[str, str]:
    """The fixed folders of a name, and the pattern below them; no pattern where a file of that very name is there."""
    if not _PATTERN.search(name) or (folder / name).is_file():
        return name, ""
    parts = Path(name).parts
    first = next(place for place, part in enumerate(parts) if _PATTERN.search(part))
    return str(Path(*parts[:first])), str(Path(*parts[first:]))


def _entered(table: str, folder: Path, name: str) -> Path:
    """The path of a name; an archive in the middle of it stands for the folder with what it holds."""
    at = folder
    parts = Path(name).parts
    for place, part in enumerate(parts):
        at = at / part
        if place < len(parts) - 1 and at.is_file() and (zipfile.is_zipfile(at) or tarfile.is_tarfile(at)):
            at = _unpacked(table, at)
    return at


def _unpacked(table: str, archive: Path) -> Path:
    """The folder with the files of an archive, unpacked once into the cache."""
    final = cache_root() / "unpacked" / file_digest(archive)
    if not final.is_dir():
        with staging(final) as stage:
            try:
                unpack(archive, stage, max_bytes=UNPACKED * MAX_BYTES)
            except DataError as error:
                raise DataError(f"{archive}: {error}", table=table) from error
    return final


def _is_hidden(path: Path) -> bool:
    """``_SUCCESS``, ``.part-00000.crc`` and the like are no rows; a folder ``_key=value`` is."""
    return any(part.startswith(".") or (part.startswith("_") and "=" not in part) for part in path.parts)


def _partition(path: Path) -> tuple[tuple[str, str | None], ...]:
    """The ``key=value`` folders of a path, as Hive and Spark write them."""
    pairs = [part.partition("=") for part in path.parts[:-1] if "=" in part]
    return tuple((key, None if value == NO_VALUE else urllib.parse.unquote(value)) for key, _, value in pairs)


def _missing(table: str, path: Path, pattern: str) -> DataError:
    """No such file, folder or match: say what is there instead."""
    above = path if pattern or path.is_dir() else path.parent
    there = sorted(entry.name for entry in above.iterdir()) if above.is_dir() else []
    listing = f"; the folder holds: {', '.join(there[:20])}" if there else ""
    what = f"no file matches {path / pattern}" if pattern else f"no file {path}"
    what = f"no file with rows in {path}" if path.is_dir() and not pattern else what
    return DataError(f"{what}{listing}{did_you_mean(path.name, there) if not pattern else ''}", table=table)

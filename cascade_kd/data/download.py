"""Where the files of a data set are: in a folder of the user's, or downloaded once, verified, unpacked (floor 2)."""

from __future__ import annotations

import hashlib
import lzma
import os
import posixpath
import secrets
import stat
import tarfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import IO

from rich.progress import Progress

from cascade_kd.data.cache import cache_root, staging
from cascade_kd.data.definition import DatasetDefinition
from cascade_kd.errors import DataError

MAX_BYTES = 4 << 30  # of a download, unless the TOML says max_bytes
UNPACKED = 20  # an archive may hold this many times max_bytes
BLOCK = 1 << 20
TIMEOUT = 60  # seconds without a byte
DAMAGED = (  # what the standard library raises on bad archives; RuntimeError: a zip with a password
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
    *(EOFError, OSError, RuntimeError, ValueError),
)


def locate(definition: DatasetDefinition, *, base: Path, progress: Progress | None = None) -> Path:
    """The folder that the files of the tables are relative to.

    The first of :func:`folders` that is there, else downloaded from ``url``; without ``path`` and ``url``, ``base``
    itself. Raises ``DataError`` that names all that was tried.
    """
    if definition.path is None and definition.url is None:
        return base
    tried = folders(definition.path, base) if definition.path is not None else []
    for folder in tried:
        if folder.is_dir():
            return folder
    if definition.url is not None:
        assert definition.sha256 is not None  # the definition refuses a url without it
        return download(definition.url, definition.sha256, definition.max_bytes or MAX_BYTES, progress=progress)
    places = ", ".join(str(folder) for folder in tried)
    raise DataError(
        f"data set '{definition.name}' is not there: tried {places}"
        f"{'' if os.environ.get('CASCADE_KD_DATA') else ' (CASCADE_KD_DATA is not set)'}; set CASCADE_KD_DATA to the "
        f"folder that holds '{definition.path}', or add url, sha256 and max_bytes to its TOML"
    )


def folders(path: str, base: Path) -> list[Path]:
    """Where the ``path`` of a data set may be, best first: under ``$CASCADE_KD_DATA``, else relative to ``base``.

    An absolute path is itself alone; one that begins with a dot ("." or "../shop") is relative to ``base`` alone, since
    $CASCADE_KD_DATA is a folder of data sets and never one of them.
    """
    root = os.environ.get("CASCADE_KD_DATA")
    if root and Path(path).parts[:1] not in ((), ("..",)) and not path.startswith("./"):
        return list(dict.fromkeys([Path(root).expanduser() / path, base / path]))
    return [base / path]


def download(url: str, sha256: str, max_bytes: int = MAX_BYTES, *, progress: Progress | None = None) -> Path:
    """The folder with the content of ``url``: an archive's files, or the one file. Kept under ``downloads/SHA256``.

    Nothing is unpacked before the digest is verified, and nothing is left of a download that failed. An archive with
    one top folder counts from inside that folder. Raises ``DataError``.
    """
    final = cache_root() / "downloads" / sha256
    if not final.is_dir():
        with staging(final) as folder:
            body = folder.with_name(f".{sha256}.{os.getpid()}-{secrets.token_hex(4)}.download")
            try:
                _fetch(url, body, sha256, max_bytes, progress)
                if zipfile.is_zipfile(body) or tarfile.is_tarfile(body):
                    unpack(body, folder, max_bytes=UNPACKED * max_bytes)
                else:
                    body.rename(folder / (posixpath.basename(urllib.parse.urlsplit(url).path) or "data"))
            finally:
                body.unlink(missing_ok=True)
    entries = list(final.iterdir())
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else final


def unpack(archive: Path, folder: Path, *, max_bytes: int) -> None:
    """Unpack a zip or tar into ``folder``: plain files and folders only, none outside, ``max_bytes`` in all.

    Raises ``DataError`` for a member with an absolute path, ``..``, a link or a device, and for a damaged archive.
    """
    left = max_bytes
    try:
        for name, content in _members(archive):
            target = folder / _safe(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            with content, target.open("xb") as file:
                while block := content.read(min(BLOCK, left + 1)):
                    left -= len(block)
                    if left < 0:
                        raise DataError(f"the archive holds more than {max_bytes} bytes: not unpacked")
                    file.write(block)
    except FileExistsError as error:
        raise DataError(f"the archive holds {error.filename!r} twice: not unpacked") from error
    except DAMAGED as error:
        raise DataError(f"the archive cannot be unpacked: {error}") from error


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of every file of a zip or tar; whatever is neither file nor folder is refused."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            for entry in zipped.infolist():
                kind = stat.S_IFMT(entry.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise DataError(f"the archive holds a link or device, {entry.filename!r}: not unpacked")
                _safe(entry.filename)
                if not entry.is_dir():
                    yield entry.filename, zipped.open(entry)
    else:
        with tarfile.open(archive) as tarred:
            for member in tarred:
                if not (member.isreg() or member.isdir()):
                    raise DataError(f"the archive holds a link or device, {member.name!r}: not unpacked")
                _safe(member.name)
                content = tarred.extractfile(member)
                if content is not None:
                    yield member.name, content


def _safe(name: str) -> str:
    """A member's path if it stays inside the folder."""
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0] or "\0" in name:
        raise DataError(f"the archive holds {name!r}, which leaves the folder it is unpacked to: not unpacked")
    return name


def _fetch(url: str, target: Path, sha256: str, max_bytes: int, progress: Progress | None) -> None:
    """Stream ``url`` to ``target``, no more than ``max_bytes``, and verify length and digest."""
    too_large = f"{url} serves more than max_bytes = {max_bytes} bytes"
    digest, got = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response, target.open("xb") as file:
            length = response.headers.get("Content-Length")
            want = int(length) if length is not None and length.isdigit() else None
            if want is not None and want > max_bytes:
                raise DataError(f"{too_large} (it announces {want})")
            task = progress.add_task(f"download {posixpath.basename(url)}", total=want) if progress else None
            while block := response.read(BLOCK):
                got += len(block)
                if got > max_bytes:
                    raise DataError(too_large)
                digest.update(block)
                file.write(block)
                if progress and task is not None:
                    progress.update(task, completed=got)
    except urllib.error.HTTPError as error:
        raise DataError(f"{url}: the server answered {error.code} {error.reason}") from error
    except HTTPException as error:
        raise DataError(f"{url}: the transfer broke off after {got} bytes; run it again") from error
    except OSError as error:
        raise DataError(f"{url}: {getattr(error, 'reason', error)}") from error
    if want is not None and got != want:
        raise DataError(f"{url}: the transfer broke off after {got} of {want} bytes; run it again")
    if digest.hexdigest() != sha256:
        raise DataError(f"{url}: its sha256 is {digest.hexdigest()}, the TOML says {sha256}; nothing was unpacked")

"""Downloads from a local server: verified before unpacking, unpacked only inside, nothing left of a failure."""

from __future__ import annotations

import hashlib
import io
import stat
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from rich.progress import Progress

from cascade_kd.data.cache import cache_root
from cascade_kd.data.definition import DatasetDefinition
from cascade_kd.data.download import download, locate, unpack
from cascade_kd.errors import DataError

ROWS = b"user,item\n1,2\n"


class Server:
    """Serves ``bodies`` by path; ``promise`` announces another length than is sent, None announces none."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        self.promise: dict[str, int | None] = {}
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                if self.path not in outer.bodies:
                    self.send_error(404)
                    return
                body = outer.bodies[self.path]
                length = outer.promise.get(self.path, len(body))
                self.send_response(200)
                if length is not None:
                    self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    serving = Server()
    thread = threading.Thread(target=serving.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield serving
    serving.http.shutdown()
    serving.http.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CASCADE_KD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CASCADE_KD_DATA", raising=False)
    return tmp_path / "cache"


def zipped(members: dict[str, bytes]) -> bytes:
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return body.getvalue()


def zipped_link(name: str, target: str) -> bytes:
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, target)
        archive.writestr(f"{name}/log.csv", ROWS)
    return body.getvalue()


def tarred(*members: tuple[str, bytes, bytes, str]) -> bytes:
    """(name, type, content, link) of each member."""
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w:gz") as archive:
        for name, kind, content, link in members:
            entry = tarfile.TarInfo(name)
            entry.type, entry.size, entry.linkname = kind, len(content), link
            archive.addfile(entry, io.BytesIO(content))
    return body.getvalue()


def sha(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def leftovers() -> list[Path]:
    folder = cache_root() / "downloads"
    return list(folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/log.csv", ROWS),
        ("/shop.zip", zipped({"log.csv": ROWS})),
        ("/shop.zip", zipped({"shop/log.csv": ROWS, "shop/more/README": b"x"})),
        ("/shop.tgz", tarred(("shop", tarfile.DIRTYPE, b"", ""), ("shop/log.csv", tarfile.REGTYPE, ROWS, ""))),
    ],
)
def test_good(server: Server, path: str, body: bytes) -> None:
    server.bodies[path] = body
    with Progress(disable=True) as progress:
        folder = download(server.url + path, sha(body), len(body), progress=progress)
        assert progress.tasks[0].completed == len(body)
    assert (folder / "log.csv").read_bytes() == ROWS
    assert download(server.url + path, sha(body), len(body)) == folder
    assert server.asked == [path]  # the second call asked nobody
    assert len(leftovers()) == 1


def test_without_an_announced_length(server: Server) -> None:
    server.bodies["/log.csv"], server.promise["/log.csv"] = ROWS, None
    assert (download(f"{server.url}/log.csv", sha(ROWS)) / "log.csv").read_bytes() == ROWS
    with pytest.raises(DataError, match="more than max_bytes = 5"):
        download(f"{server.url}/log.csv", "0" * 64, 5)
    assert len(leftovers()) == 1


@pytest.mark.parametrize(
    ("promise", "digest", "max_bytes", "words"),
    [
        (len(ROWS) + 10, sha(ROWS), 1000, "broke off"),
        (len(ROWS), "0" * 64, 1000, f"its sha256 is {sha(ROWS)}"),
        (len(ROWS), sha(ROWS), len(ROWS) - 1, "max_bytes"),
        (10**12, sha(ROWS), 1000, "announces 1000000000000"),
    ],
    ids=["truncated", "wrong hash", "too large", "too large as announced"],
)
def test_bad(server: Server, promise: int, digest: str, max_bytes: int, words: str) -> None:
    server.bodies["/log.csv"], server.promise["/log.csv"] = ROWS, promise
    with pytest.raises(DataError, match=words):
        download(f"{server.url}/log.csv", digest, max_bytes)
    assert leftovers() == []


def test_no_such_address(server: Server) -> None:
    with pytest.raises(DataError, match="answered 404"):
        download(f"{server.url}/nothing.zip", "0" * 64)
    with pytest.raises(DataError, match="refused"):
        download("http://127.0.0.1:9/log.csv", "0" * 64)
    assert leftovers() == []


HOSTILE = {
    "zip up": zipped({"../evil": b"x"}),
    "zip deep up": zipped({"a/../../evil": b"x"}),
    "zip absolute": zipped({"/tmp/evil": b"x"}),
    "zip drive": zipped({"C:/evil": b"x"}),
    "zip backslash": zipped({"..\\evil": b"x"}),
    "zip link": zipped_link("out", ".."),
    "zip bomb": zipped({"zeros": bytes(200_000)}),
    "zip damaged": zipped({"log.csv": ROWS})[:-30] + bytes(8),
    "zip file as folder": zipped({"a": b"x", "a/b": b"x"}),
    "tar up": tarred(("../evil", tarfile.REGTYPE, b"x", "")),
    "tar absolute": tarred(("/tmp/evil", tarfile.REGTYPE, b"x", "")),
    "tar link": tarred(("out", tarfile.SYMTYPE, b"", ".."), ("out/evil", tarfile.REGTYPE, b"x", "")),
    "tar hard link": tarred(("passwd", tarfile.LNKTYPE, b"", "/etc/passwd")),
    "tar device": tarred(("null", tarfile.CHRTYPE, b"", "")),
    "tar twice": tarred(("a", tarfile.REGTYPE, b"x", ""), ("a", tarfile.REGTYPE, b"y", "")),
    "tar bomb": tarred(("zeros", tarfile.REGTYPE, bytes(200_000), "")),
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_hostile_archives(tmp_path: Path, body: bytes) -> None:
    archive, target = tmp_path / "archive", tmp_path / "inner" / "target"
    archive.write_bytes(body)
    target.mkdir(parents=True)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=r"not unpacked|cannot be unpacked"):
        unpack(archive, target, max_bytes=100_000)
    outside = [path for path in set(tmp_path.rglob("*")) - before if target not in path.parents]
    assert outside == []
    assert not Path("/tmp/evil").exists()


def test_a_hostile_download_leaves_nothing(server: Server) -> None:
    for name in ("zip up", "zip bomb", "tar link"):
        body = HOSTILE[name]
        server.bodies["/x"] = body
        with pytest.raises(DataError):
            download(f"{server.url}/x", sha(body), len(body))
    assert leftovers() == []
    assert list(cache_root().rglob("evil")) == []


def definition(**keys: object) -> DatasetDefinition:
    base = {"name": "shop", "licence": "", "tables": {"events": {"file": "log.csv"}}}
    roles = {"roles": {"user": "user", "item": "item"}, "labels": {"one": "item > 0"}}
    return DatasetDefinition.model_validate(base | roles | keys)


def test_where_a_data_set_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    root, beside = tmp_path / "root", tmp_path / "toml"
    server.bodies["/log.csv"] = ROWS
    served = {"path": "shop", "url": f"{server.url}/log.csv", "sha256": sha(ROWS)}
    beside.mkdir()
    assert locate(definition(), base=beside) == beside
    with pytest.raises(DataError, match="CASCADE_KD_DATA is not set") as caught:
        locate(definition(path="shop"), base=beside)
    assert str(beside / "shop") in str(caught.value)
    assert locate(definition(**served), base=beside).is_relative_to(cache_root())
    (beside / "shop").mkdir()
    assert locate(definition(**served), base=beside) == beside / "shop"
    assert locate(definition(path=str(beside)), base=tmp_path) == beside  # absolute
    monkeypatch.setenv("CASCADE_KD_DATA", str(root))
    assert locate(definition(path="shop"), base=beside) == beside / "shop"
    with pytest.raises(DataError) as caught:
        locate(definition(path="shap"), base=beside)
    assert str(root / "shap") in str(caught.value)
    (root / "shop").mkdir(parents=True)
    assert locate(definition(path="shop"), base=beside) == root / "shop"
    for path in (".", "./shop", "../toml/shop"):  # said to be beside the file
        assert locate(definition(path=path), base=beside).samefile(beside / path)

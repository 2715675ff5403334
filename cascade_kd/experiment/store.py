"""Stages, lists and teacher scores by content hash, shared between experiments (floor 8)."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

from safetensors.torch import load_file, save

from cascade_kd.data.cache import cache_root, staging
from cascade_kd.report import atomic_write_bytes
from cascade_kd.train.distributed import rank, rank_0_first
from cascade_kd.types import Candidates

FILES = ("best.safetensors", "best.json", "last.safetensors", "last.json")
BESIDE = ("beside.safetensors", "beside.json")  # of a joint training


def content_key(**parts: Any) -> str:
    """A hash of everything that determines a result, the library's own code included."""
    text = json.dumps(parts | {"code": code_digest()}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@functools.cache
def code_digest() -> str:
    """A hash of the library's source, so that a changed library never finds what an older one stored."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


def source_digest(kind: type) -> str:
    """A hash of the file that defines a class: editing a plug-in finds nothing that its older self stored."""
    return hashlib.sha256(Path(inspect.getfile(kind)).read_bytes()).hexdigest()


@final
class Store:
    """A folder of results under the cache; entries appear whole or not at all and are never changed."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or cache_root()

    def holds(self, key: str) -> bool:
        """Whether a trained stage of that key is there."""
        return (self.root / "stages" / key).is_dir()

    def restore(self, key: str, folder: Path) -> bool:
        """Copy a stored stage's checkpoints into ``folder``, unless it holds some; whether there was one."""
        source = self.root / "stages" / key
        if not source.is_dir() or (folder / FILES[0]).exists() or (folder / FILES[2]).exists():
            return False
        folder.mkdir(parents=True, exist_ok=True)
        for name in (*BESIDE, *FILES):
            if name not in BESIDE or (source / name).exists():
                atomic_write_bytes(folder / name, (source / name).read_bytes())
        return True

    def keep(self, key: str, folder: Path) -> None:
        """Store a finished stage's checkpoints."""
        target = self.root / "stages" / key
        if target.is_dir() or rank() > 0:
            return
        with staging(target) as folder_in_the_making:
            for name in (*BESIDE, *FILES):
                if name not in BESIDE or (folder / name).exists():
                    shutil.copyfile(folder / name, folder_in_the_making / name)

    def lists(self, key: str, make: Callable[[], Candidates]) -> Candidates:
        """Stored candidates, made on first use."""
        path = self.root / "lists" / f"{key}.safetensors"
        with rank_0_first():
            if path.exists():
                tensors = load_file(path)
                return Candidates(tensors["item"], tensors["score"], tensors["valid"])
            lists = make()
            tensors = {"item": lists.item_BK, "score": lists.score_BK, "valid": lists.valid_BK}
            atomic_write_bytes(path, save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}))
            return lists

    def orders(self, key: str) -> Path:
        """Where the lists of a teacher are kept."""
        return self.root / "orders" / key

    def column(self, key: str) -> Path:
        """Where a column of teacher scores is kept."""
        return self.root / "teacher" / f"{key}.npy"

"""Weights that peers exchange through a folder, and nothing else (floor 6).

``FOLDER/peer-J/step-S.safetensors`` holds the weights of peer J after S optimiser steps. A file is written to a
temporary name and renamed, so a reader finds it whole or not at all. Whatever a reader finds wrong, it goes on with the
last good weights and says so. What it uses it first copies to a folder of its own: a resumed run goes on with the very
weights that it had read, whatever the peers did meanwhile.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import final

from torch import Tensor, nn

from cascade_kd.errors import RunError
from cascade_kd.report import atomic_path
from cascade_kd.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from cascade_kd.train.distributed import agreed, rank

KEPT = 2  # published weights of a peer: in one process, one peer is at most one exchange ahead of another
POLL_SECONDS = 0.05

_STEP = re.compile(r"step-(\d+)\.safetensors")


@final
class Exchange:
    """One peer's end: publishes its weights and keeps ``nets`` at those that it reads.

    ``own`` receives the copies in use, ``say`` a line where something is missing, late or unreadable, once each time
    that it changes. ``in_step``: weights of the very step are preferred, and waited for up to ``wait_seconds``; else,
    and where they do not come, the newest are taken.
    """

    def __init__(
        self,
        folder: Path,
        peer: int,
        nets: Mapping[int, nn.Module],
        own: Path,
        say: Callable[[str], None],
        *,
        every: int,
        first: int,
        in_step: bool,
        wait_seconds: float = 0.0,
    ) -> None:
        assert peer not in nets
        self.folder, self.peer, self.nets, self.own, self.say = folder, peer, nets, own, say
        self.every, self.in_step, self.wait_seconds = every, in_step, wait_seconds
        self.first = first // every * every  # the exchange whose weights teach in step ``first``
        self.used: dict[int, int] = {}  # peer -> the step of its weights in use
        self._said: dict[int, str] = {}

    def is_due(self, step: int) -> bool:
        """Whether weights are exchanged before this 0-based step."""
        return step >= self.first and step % self.every == 0

    def next_after(self, step: int) -> int:
        """The step before which the next exchange is."""
        return max(self.first, (step // self.every + 1) * self.every)

    def clear(self) -> None:
        """Take away what an earlier training of this peer has published."""
        if rank() > 0:
            return
        for path in (*self._folder(self.peer).glob("step-*"), *self.own.glob("peer-*")):
            path.unlink(missing_ok=True)

    def publish(self, step: int, model: nn.Module, *, finished: bool = False) -> None:
        """Let the others read the weights after ``step`` steps; ``finished``: no later ones will come."""
        if rank() > 0:
            return
        folder = self._folder(self.peer)
        path = folder / f"step-{step:09d}.safetensors"
        if not path.exists() or finished:
            meta = {"peer": self.peer, "step": step, "finished": finished}
            save_checkpoint(path, Checkpoint(_weights(model), meta))
        for earlier in sorted(self._published(self.peer))[:-KEPT]:
            for suffix in (".safetensors", ".json"):
                (folder / f"step-{earlier:09d}{suffix}").unlink(missing_ok=True)

    def read(self, step: int) -> None:
        """Give every net the weights that its peer has published, as of ``step``."""
        if rank() == 0:
            deadline = time.monotonic() + self.wait_seconds
            for peer in self.nets:
                if self.in_step:
                    self._wait(peer, step, deadline)
                self._read(peer, step)
        for peer, at in agreed(self.used).items():  # the other ranks of this peer follow
            if self.used.get(peer) != at:
                self._load(peer, at, self._copy(peer, at))

    def restore(self, used: Mapping[str, int]) -> None:
        """Go on with the weights that a saved training used."""
        for peer, step in ((int(peer), step) for peer, step in used.items()):
            try:
                self._load(peer, step, self._copy(peer, step))
            except (RunError, OSError) as error:
                self._tell(peer, f"its weights of step {step} cannot be read again ({error}); goes on without them")

    def settle(self) -> None:
        """Take away copies that are no longer in use: once what is in use has been noted."""
        if rank() > 0:
            return
        kept = {self._copy(peer, step).name for peer, step in self.used.items()}
        for path in self.own.glob("peer-*.safetensors"):
            if path.name not in kept:
                path.unlink(missing_ok=True)

    def _wait(self, peer: int, step: int, deadline: float) -> None:
        while step not in (found := self._published(peer)) and time.monotonic() < deadline:
            newest = found.get(max(found, default=-1))
            if newest is not None and self._is_last(newest):
                return
            time.sleep(POLL_SECONDS)

    def _read(self, peer: int, step: int) -> None:
        """Take the weights of ``step``, or the newest that can be read."""
        found = self._published(peer)
        newest_first = sorted(found, reverse=True)
        if self.in_step and step in found:
            newest_first = [step, *(other for other in newest_first if other != step)]
        using = self.used.get(peer)
        trouble = "" if found else "has published nothing yet"
        for at in newest_first:
            if using is not None and at <= using:
                if not trouble and at < step and not self._is_last(found[at]):
                    trouble = "has published nothing newer"
                break
            try:
                self._take(peer, at, found[at])
                break
            except (RunError, OSError) as error:
                trouble = f"its weights of step {at} are of no use ({error})"
        using = self.used.get(peer)
        remedy = "goes on without them" if using is None else f"goes on with those of step {using}"
        self._tell(peer, f"{trouble}; {remedy}" if trouble else "")

    def _take(self, peer: int, step: int, path: Path) -> None:
        copy = self._copy(peer, step)
        with atomic_path(copy) as temporary:
            temporary.write_bytes(path.read_bytes())
        try:
            self._load(peer, step, copy)
        except (RunError, OSError):
            copy.unlink(missing_ok=True)
            raise

    def _load(self, peer: int, step: int, copy: Path) -> None:
        """Raises RunError, and leaves the net as it is, where the file does not hold weights of such a net."""
        checkpoint = load_checkpoint(copy)
        weights = dict(checkpoint.model)
        held = self.nets[peer].state_dict()
        if {name: x.shape for name, x in weights.items()} != {name: x.shape for name, x in held.items()}:
            raise RunError("they are those of another model")
        if not all(bool(x.isfinite().all()) for x in weights.values() if x.is_floating_point()):
            raise RunError("some are no finite numbers")
        self.nets[peer].load_state_dict(weights)
        self.used[peer] = step

    def _tell(self, peer: int, trouble: str) -> None:
        """Say what is wrong with a peer when it begins, and when it is over."""
        before = self._said.get(peer, "")
        if trouble != before:
            self._said[peer] = trouble
            self.say(f"peer {peer}: {trouble or f'is back, with its weights of step {self.used.get(peer)}'}")

    def _folder(self, peer: int) -> Path:
        return self.folder / f"peer-{peer}"

    def _copy(self, peer: int, step: int) -> Path:
        return self.own / f"peer-{peer}.step-{step:09d}.safetensors"

    def _published(self, peer: int) -> dict[int, Path]:
        """Step -> file."""
        try:
            paths = list(self._folder(peer).iterdir())
        except OSError:
            return {}
        return {int(match[1]): path for path in paths if (match := _STEP.fullmatch(path.name))}

    @staticmethod
    def _is_last(path: Path) -> bool:
        try:
            return bool(load_checkpoint(path).meta["finished"])
        except (RunError, OSError, KeyError):
            return False


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """What is served of a model: not what is trained beside it."""
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("beside.")}

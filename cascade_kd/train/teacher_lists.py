"""Lists in a teacher's order: made once, kept in memory-mapped files, read by the step (floor 6).

L lists, K places, B lists of a step or of a block of work. The places of a list stand in the teacher's order.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from cascade_kd.data import Dataset
from cascade_kd.data.cache import staging
from cascade_kd.losses import teacher_order
from cascade_kd.report import atomic_write_bytes
from cascade_kd.stages import LogitStage, Stage
from cascade_kd.streams import generator_at
from cascade_kd.types import Candidates, Part, Requests

SHORTEST = 2  # places of a list that has an order


class LoggedLists(NamedTuple):
    """The events of L requests: ``event_LK`` is an event row, -1 behind the end."""

    requests: Requests
    item_LK: Tensor
    event_LK: Tensor


class ListBatch(NamedTuple):
    """The lists of one step; ``number_B`` says which. Padded places hold item 0 and event -1."""

    number_B: Tensor
    requests: Requests
    item_BK: Tensor
    score_BK: Tensor | None
    event_BK: Tensor | None

    @property
    def where_BK(self) -> Tensor:
        """The places that hold an item."""
        return self.item_BK > 0


@final
@dataclass(frozen=True)
class TeacherLists:
    """All lists of a training; ``requests`` of those that have at least 2 places, the others are ``dropped``.

    ``columns`` hold item [L, K] int32, and where there are any score [L, K] float32 and event [L, K] int64, of all.
    """

    requests: Requests
    columns: Mapping[str, Tensor]
    number_L: Tensor  # of the lists that were not dropped, within the columns
    dropped: int

    def __len__(self) -> int:
        return len(self.number_L)

    @property
    def longest(self) -> int:
        """Places of the longest list."""
        return self.columns["item"].shape[1]

    def batch(self, number_B: Tensor) -> ListBatch:
        """The lists numbered ``number_B`` (CPU), cut to the longest of them, on the device of the requests."""
        device = self.requests.user_B.device
        taken = {name: column[self.number_L[number_B]] for name, column in self.columns.items()}
        width = int((taken["item"] > 0).sum(1).max())
        item_BK, score_BK, event_BK = (
            taken[name][:, :width].to(device) if name in taken else None for name in ("item", "score", "event")
        )
        assert item_BK is not None
        return ListBatch(number_B, self.requests[number_B.to(device)], item_BK.long(), score_BK, event_BK)


@final
class ListOrder:
    """Which lists a step learns from: all in a new order, then all in another; a function of the step alone."""

    def __init__(self, num: int, per_step: int, seed: int) -> None:
        self.num, self.per_step, self.seed = num, min(per_step, num), seed
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def at(self, step: int) -> Tensor:
        """[B] numbers of lists, on the CPU."""
        time, place = divmod(step, -(-self.num // self.per_step))
        if self._order[0] != time:
            self._order = (time, torch.randperm(self.num, generator=generator_at(self.seed, time)))
        return self._order[1][place * self.per_step : (place + 1) * self.per_step]


def teacher_lists(
    folder: Path,
    requests: Requests,
    ordered: Callable[[Tensor], dict[str, Tensor]],
    *,
    lists_per_block: int,
    advance: Callable[[int, int], None],
) -> TeacherLists:
    """Read the lists of ``requests`` from ``folder``; make them where it is not there.

    ``ordered`` gives the columns of some lists by their numbers. A block of lists is written when it is done, under a
    temporary name and renamed, so a run that was stopped goes on behind its last block. ``advance`` is told the blocks
    that are done and their number.
    """
    if not folder.is_dir():
        number_L = torch.arange(len(requests), device=requests.user_B.device)
        blocks = number_L.split(lists_per_block)
        parts = [folder.with_name(f"{folder.name}.parts") / f"{number:06}.safetensors" for number in range(len(blocks))]
        for done, (part, number_B) in enumerate(zip(parts, blocks, strict=True), start=1):
            if not part.exists():
                atomic_write_bytes(part, save({name: x.cpu().contiguous() for name, x in ordered(number_B).items()}))
            advance(done, len(blocks))
        with staging(folder) as making:
            _join(parts, making)
        shutil.rmtree(parts[0].parent, ignore_errors=True)
    # Copy-on-write mappings: pages stay shared and on disk, and torch gets memory that it may call writable.
    columns = {path.stem: torch.from_numpy(np.load(path, mmap_mode="c")) for path in sorted(folder.glob("*.npy"))}
    whole_L = (columns["item"] > 0).sum(1) >= SHORTEST
    number_L = whole_L.nonzero().squeeze(1)
    kept = requests[number_L.to(requests.user_B.device)]
    return TeacherLists(kept, columns, number_L, int((~whole_L).sum()))


def _join(parts: list[Path], folder: Path) -> None:
    """One memory-mapped file a column."""
    row = 0
    columns: dict[str, np.memmap] = {}
    sizes = [len(load_file(part)["item"]) for part in parts]
    for part, size in zip(parts, sizes, strict=True):
        for name, column in load_file(part).items():
            array = column.numpy()
            if name not in columns:
                shape = (sum(sizes), *array.shape[1:])
                columns[name] = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", array.dtype, shape)
            columns[name][row : row + size] = array
        row += size
    for made in columns.values():
        made.flush()


def logged_lists(dataset: Dataset, *, by_position: bool = False, part: Part = "train") -> LoggedLists:
    """The events of every request of a part as a list, in the order of their rows, or as they were shown.

    An item that a request has twice counts once, where it stands first.
    """
    events = dataset.events
    assert events.request_N is not None, "config asks for [roles] request"
    row_N = dataset.rows(part)
    if by_position:
        assert events.position_N is not None, "config asks for [roles] position"
        row_N = row_N[events.position_N[row_N].argsort(stable=True)]
    _, list_N = torch.unique(events.request_N[row_N], return_inverse=True)
    first_N = _first_of(list_N * (dataset.num_items + 1) + events.item_N[row_N])
    row_N, list_N = row_N[first_N], list_N[first_N]
    by_list_N = list_N.argsort(stable=True)
    row_N, list_N = row_N[by_list_N], list_N[by_list_N]
    count_L = torch.bincount(list_N)
    place_N = torch.arange(len(list_N), device=list_N.device) - (count_L.cumsum(0) - count_L)[list_N]
    event_LK = torch.full((len(count_L), int(count_L.max())), -1, device=row_N.device)
    event_LK[list_N, place_N] = row_N
    item_LK = events.item_N[event_LK.clamp(min=0)].masked_fill(event_LK < 0, 0)
    earliest_L = event_LK.masked_fill(event_LK < 0, len(events.user_N)).amin(1)
    return LoggedLists(dataset.requests_of(earliest_L, part=part), item_LK, event_LK)


def _first_of(key_N: Tensor) -> Tensor:
    """Mask of the first row of every key."""
    by_key_N = key_N.argsort(stable=True)
    sorted_N = key_N[by_key_N]
    first_N = torch.ones_like(sorted_N, dtype=torch.bool)
    first_N[1:] = sorted_N[1:] != sorted_N[:-1]
    return torch.empty_like(first_N).index_put((by_key_N,), first_N)


def order_logged(stage: Stage, lists: LoggedLists, number_B: Tensor, depth: int | None) -> dict[str, Tensor]:
    """The teacher's order of some logged lists, by its logits where it has any: event columns are known to it."""
    requests, item_BK, event_BK = lists.requests[number_B], lists.item_LK[number_B], lists.event_LK[number_B]
    where_BK = item_BK > 0
    if isinstance(stage, LogitStage) and "logits" in stage.signals:
        row_R, place_R = where_BK.nonzero(as_tuple=True)
        logits_R = stage.logits(requests, item_BK[where_BK], row_R, event_BK[where_BK])
        score_BK = logits_R.new_full(item_BK.shape, -torch.inf).index_put((row_R, place_R), logits_R)
        scores = {"score": score_BK}
    else:
        order = stage.order(requests, Candidates.ranked(item_BK, torch.zeros(item_BK.shape, device=item_BK.device)))
        rank_BK = torch.arange(item_BK.shape[1], device=item_BK.device).neg().expand(item_BK.shape)
        at_BK = item_BK.argsort(dim=1, stable=True)  # the same items stand at these places, and at those of the order
        score_BK = torch.empty(item_BK.shape, device=item_BK.device)
        score_BK.scatter_(1, at_BK, rank_BK.gather(1, order.item_BK.argsort(dim=1, stable=True)).float())
        scores = {}
    place_BK = teacher_order(score_BK, item_BK, where_BK)[:, :depth]
    taken = {"item": item_BK.int(), "event": event_BK} | scores
    return {name: column.gather(1, place_BK) for name, column in taken.items()}


def columns_of(candidates: Candidates, depth: int | None, *, scored: bool) -> dict[str, Tensor]:
    """The first places of candidates in their order."""
    top = candidates if depth is None else candidates.top(depth)
    return {"item": top.item_BK.int()} | ({"score": top.score_BK} if scored else {})

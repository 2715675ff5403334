"""The training reader: shuffled batches of a log that does not fit in memory (floor 2).

Row groups are permuted, neighbours in that order form windows of about ``window_rows`` rows, and the rows of a window
are shuffled together (:mod:`cascade_kd.data.stream.order`). So a batch is a slice of a window that is already in its
order: per window one read and one gather a column, per batch nothing but views.

Two windows are held at a time, the second read by a thread while the first is used, and one more while a window is
being shuffled: 3 x (window_rows + 65,536) rows x the bytes of the columns, 26 MB x columns at the default.

Axes: R rows of a batch, N rows of a window.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cascade_kd.data.stream.files import StreamFiles
from cascade_kd.data.stream.order import Window, epoch_windows, shard_bounds
from cascade_kd.errors import UserError

SAMPLE = "sample"
Place = tuple[int, int]  # epoch, number of the window


class StreamReader:
    """Batches of the columns of ``folder`` (``events/part=train``), each a function of ``step`` alone.

    Epoch ``step // steps_per_epoch`` holds every row exactly once. ``sample``, given beside the columns, is the row's
    number in stream order. ``shard`` = (rank, world): the shards of one world have disjoint rows, whose union is the
    epoch, and equally many steps; they differ by one row at most, so that the last batch of an epoch, which takes
    whatever is left, may be shorter than ``batch_size``, or one row longer.

    ``where`` names a column: only rows with it above 0 count as rows of the stream, their ``sample`` as among these.

    Raises ``UserError`` for an unknown column and for fewer rows than shards.
    """

    def __init__(
        self,
        folder: Path,
        columns: Sequence[str],
        *,
        batch_size: int,
        window_rows: int = 1_000_000,
        seed: int,
        shard: tuple[int, int] = (0, 1),
        where: str | None = None,
    ) -> None:
        assert batch_size >= 1, batch_size
        assert window_rows >= 1, window_rows
        assert 0 <= shard[0] < shard[1], shard
        self._files = StreamFiles(folder)
        self._files.check_columns([*columns, *([where] if where else [])])
        self._columns = list(dict.fromkeys(columns))
        self._where = where
        self._group_G = self._files.group_sizes()  # rows of the files
        self._size_G = self._group_G if where is None else self._files.true_in_groups(where)  # rows that count
        if self.num_rows < shard[1]:
            raise UserError(f"{self.num_rows} rows cannot be shared by {shard[1]} workers; use fewer workers")
        self._batch_size, self._window_rows, self._seed, self._shard = batch_size, window_rows, seed, shard
        self._epoch_windows: dict[int, list[Window]] = {}
        self._loads: dict[Place, Future[dict[str, Tensor]]] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="stream-reader")

    @property
    def num_rows(self) -> int:
        """M, the rows of all shards together."""
        return int(self._size_G.sum())

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch, the same of every shard."""
        smallest = self.num_rows // self._shard[1]
        return -(-smallest // self._batch_size)

    def batch(self, step: int) -> dict[str, Tensor]:
        """The columns and ``sample`` of one batch, [R] each; views of a window, not to be written to."""
        epoch, number = divmod(step, self.steps_per_epoch)
        windows = self._windows(epoch)
        low, high = shard_bounds(self.num_rows, self._shard)
        start = number * self._batch_size
        stop = high - low if number == self.steps_per_epoch - 1 else start + self._batch_size
        pieces: list[dict[str, Tensor]] = []
        at = bisect_right(windows, start, key=lambda window: window.start) - 1
        while start < stop:
            window = windows[at]
            end = min(stop, window.start + window.rows)
            loaded = self._load(epoch, at)
            pieces.append({name: x[start - window.start : end - window.start] for name, x in loaded.items()})
            start, at = end, at + 1
        if len(pieces) == 1:
            return pieces[0]
        return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}

    def rows(self, start: int, stop: int) -> dict[str, Tensor]:
        """The rows ``start .. stop`` in stream order, not shuffled, with ``sample``."""
        assert 0 <= start <= stop <= self.num_rows, (start, stop)
        out = self._files.empty(self._columns, stop - start)
        self._fill(out, 0, start, stop - start)
        return out | {SAMPLE: torch.arange(start, stop)}

    def _windows(self, epoch: int) -> list[Window]:
        """The windows of an epoch; of this one and the next only, as far as they were asked for."""
        if epoch not in self._epoch_windows:
            kept = {e: windows for e, windows in self._epoch_windows.items() if abs(e - epoch) == 1}
            kept[epoch] = epoch_windows(
                self._size_G, window_rows=self._window_rows, seed=self._seed, epoch=epoch, shard=self._shard
            )
            self._epoch_windows = kept
        return self._epoch_windows[epoch]

    def _load(self, epoch: int, at: int) -> dict[str, Tensor]:
        """A window in its shuffled order; starts reading the next one, forgets all others."""
        following: Place = (epoch, at + 1) if at + 1 < len(self._windows(epoch)) else (epoch + 1, 0)
        loads: dict[Place, Future[dict[str, Tensor]]] = {}
        for place in ((epoch, at), following):
            running = self._loads.pop(place, None)
            loads[place] = running or self._thread.submit(self._read, self._windows(place[0])[place[1]])
        for stale in self._loads.values():
            stale.cancel()
        self._loads = loads
        return loads[epoch, at].result()

    def _read(self, window: Window) -> dict[str, Tensor]:
        """One read and one gather a column."""
        plain = self._files.empty(self._columns, window.rows)
        sample = torch.empty(window.rows, dtype=torch.int64)
        at = 0
        for first, count in zip(window.first_P.tolist(), window.count_P.tolist(), strict=True):
            self._fill(plain, at, first, count)
            torch.arange(first, first + count, out=sample[at : at + count])
            at += count
        order = window.permutation()
        shuffled = {SAMPLE: sample.index_select(0, order)}
        for name in self._columns:
            shuffled[name] = plain.pop(name).index_select(0, order)
        return shuffled

    def _fill(self, out: dict[str, Tensor], at: int, first: int, count: int) -> None:
        """Set ``out[name][at : at + count]`` to the rows ``first .. first + count`` of those that count."""
        if self._where is None:
            self._files.read_into(out, at, first, count)
            return
        last_G = np.cumsum(self._size_G)
        while count:
            group = int(np.searchsorted(last_G, first, side="right"))
            offset = first - int(last_G[group] - self._size_G[group])
            take = min(count, int(self._size_G[group]) - offset)
            rows = int(self._group_G[group])
            whole = self._files.empty([*self._columns, self._where], rows)
            self._files.read_into(whole, 0, int(self._group_G[:group].sum()), rows)
            kept = whole[self._where].gt(0).nonzero()[offset : offset + take, 0]
            for name, column in out.items():
                column[at : at + take] = whole[name].index_select(0, kept)
            at, first, count = at + take, first + take, count - take

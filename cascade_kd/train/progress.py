"""Progress of long work on the terminal and in ``events.ndjson`` (floor 6)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

REDRAW_SECONDS = 0.2


@final
class StageProgress:
    """The bar of one stage: loss, monitor, samples per second, time left."""

    def __init__(self, log: ProgressLog, stage: str, steps: int, monitor: str, about: dict[str, Any]) -> None:
        self._log, self._stage, self._monitor, self._about = log, stage, monitor, about
        self._bar: TaskID | None = None
        if log.bars is not None:
            self._bar = log.bars.add_task(log.title(stage, about), total=steps, loss="", value="", rate="")
        self._started = self._drawn = time.perf_counter()
        self._samples = 0

    def step(self, loss: float, step: int, samples: int) -> None:
        """Count one optimiser step of ``samples`` impressions."""
        self._samples += samples
        now = time.perf_counter()
        if self._log.bars is not None and self._bar is not None and now - self._drawn > REDRAW_SECONDS:
            self._drawn = now
            rate = f"{self._samples / (now - self._started):,.0f}/s"
            self._log.bars.update(self._bar, completed=step, loss=f"loss {loss:.4f}", rate=rate)

    def epoch(self, point: dict[str, Any]) -> None:
        """Log the end of an epoch."""
        seconds = time.perf_counter() - self._started
        rate = self._samples / seconds if seconds > 0 else 0.0
        value = "n/a" if point["value"] is None else f"{point['value']:.4f}"
        if self._log.bars is not None and self._bar is not None:
            self._log.bars.update(self._bar, completed=point["step"], value=f"{self._monitor} {value}")
        self._log.say(
            f"{self._log.title(self._stage, self._about)}  epoch {point['epoch']:>2}  loss {point['loss']:.4f}  "
            f"{self._monitor} {value}  {rate:,.0f} samples/s"
        )
        where = {key: self._about[key] for key in ("seed", "round")}
        self._log.event(where | {"stage": self._stage, "samples_per_s": round(rate)} | point)

    def exchanged(self, step: int, peers: dict[str, int]) -> None:
        """Log the steps of the peers' weights that teach from this step on."""
        where = {key: self._about[key] for key in ("seed", "round")}
        self._log.event(where | {"stage": self._stage, "step": step, "peers": peers})

    def close(self) -> None:
        """Take the bar away."""
        if self._log.bars is not None and self._bar is not None:
            self._log.bars.remove_task(self._bar)


@final
class ProgressLog:
    """Bars on a terminal, one line an epoch elsewhere, and one JSON line a logged point in ``events``."""

    def __init__(self, events: Path | None = None, *, console: Console | None = None, quiet: bool = False) -> None:
        self.console = console or Console(stderr=True)
        self.quiet = quiet
        self.events = events
        self.bars: Progress | None = None

    def __enter__(self) -> ProgressLog:
        if self.console.is_terminal and not self.quiet:
            self.bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[loss]} {task.fields[value]} {task.fields[rate]}"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bars is not None:
            self.bars.stop()
            self.bars = None

    @contextmanager
    def stage(
        self, stage: str, epochs: int, steps_per_epoch: int, monitor: str, about: dict[str, Any]
    ) -> Iterator[StageProgress]:
        """The bar of one stage's training."""
        bar = StageProgress(self, stage, epochs * steps_per_epoch, monitor, about)
        try:
            yield bar
        finally:
            bar.close()

    @contextmanager
    def work(self, title: str) -> Iterator[Callable[[int, int], None]]:
        """A bar for work that is counted; call it with what is done and of how much."""
        bar: TaskID | None = None

        def advance(done: int, total: int) -> None:
            nonlocal bar
            if self.bars is not None:
                bar = bar if bar is not None else self.bars.add_task(title, loss="", value="", rate="")
                self.bars.update(bar, completed=done, total=total)

        try:
            yield advance
        finally:
            if self.bars is not None and bar is not None:
                self.bars.remove_task(bar)

    def say(self, text: str) -> None:
        """One line for the reader; above the bars where there are bars."""
        if not self.quiet:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def event(self, point: dict[str, Any]) -> None:
        """Append one line to ``events.ndjson``."""
        if self.events is not None:
            with self.events.open("a", encoding="utf-8") as file:
                file.write(json.dumps(point) + "\n")

    @staticmethod
    def title(stage: str, about: dict[str, Any]) -> str:
        """What the reader sees before a stage's figures."""
        return f"seed {about['seed']}  round {about['round']}  {stage}"

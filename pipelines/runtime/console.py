"""What the person sees: numbered steps, progress with an ETA, tables at the end.

On a terminal the progress is a bar; in a log file it is one line every few seconds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

LOG_INTERVAL_S = 10.0


class Console:
    """The job's voice on standard output."""

    def __init__(self) -> None:
        terminal = sys.stdout.isatty()
        self.rich = RichConsole(
            width=None if terminal else 110, highlight=False, soft_wrap=not terminal
        )
        self._terminal = terminal
        self._step = 0
        self.steps = 0

    def say(self, text: str) -> None:
        """One line."""
        self.rich.print(text, markup=False)

    def headline(self, title: str) -> None:
        """Announce the next step."""
        self._step += 1
        total = f"/{self.steps}" if self.steps else ""
        self.rich.print(
            f"[bold][{self._step}{total}][/bold] {title}".replace("[[", "[").replace("]]", "]")
        )

    @contextmanager
    def progress(self, what: str) -> Iterator[Meter]:
        """A progress meter for the duration of a block."""
        if self._terminal:
            bar = Progress(
                TextColumn("    {task.description}"),
                BarColumn(bar_width=30),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self.rich,
                transient=True,
            )
            with bar:
                yield _BarMeter(bar, bar.add_task(what, total=None, note=""))
        else:
            yield _LineMeter(self, what)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """A table; every cell is shown with `str`."""
        table = Table(title=title, title_justify="left", title_style="bold", pad_edge=False)
        for name in columns:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*[str(cell) for cell in row])
        self.rich.print(table)


class Meter:
    """How far one step is."""

    def update(self, done: float, total: float, note: str = "") -> None:
        """Report `done` out of `total` units, with a short remark."""
        raise NotImplementedError


class _BarMeter(Meter):
    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar, self._task = bar, task

    def update(self, done: float, total: float, note: str = "") -> None:
        self._bar.update(self._task, completed=done, total=total, note=note)


class _LineMeter(Meter):
    def __init__(self, console: Console, what: str) -> None:
        self._console, self._what = console, what
        self._first: tuple[float, float] | None = None
        self._last = 0.0

    def update(self, done: float, total: float, note: str = "") -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done)
        if now - self._last < LOG_INTERVAL_S and done < total:
            return
        self._last = now
        start, begun = self._first
        eta = ""
        if done > begun and done < total:
            eta = f"  ETA {duration((now - start) / (done - begun) * (total - done))}"
        share = 100 * done / total if total else 0.0
        self._console.say(f"    {self._what}: {share:3.0f}%{eta}  {note}".rstrip())


def duration(seconds: float) -> str:
    """Seconds as people write them: 8 s, 3 min 20 s, 2 h 05 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"

"""Progress: a bar with an estimate of the time left on a terminal; elsewhere a plain line every ten seconds."""

from __future__ import annotations

import time
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column
from rich.theme import Theme

from rebasin_cli.report.text import printable

SECONDS_BETWEEN_LINES = 10.0
LOOK = Theme(
    {
        "bar.complete": "magenta",
        "bar.finished": "magenta",
        "bar.pulse": "magenta",
        "progress.elapsed": "none",
        "progress.remaining": "none",
    }
)
"""Rich's own yellow times cannot be read on white; these colours stand out from white and from black."""


class LineProgress:
    """Plain lines at changes of phase and during long ones, at most one each ten seconds."""

    def __init__(self, stream: TextIO) -> None:
        self.noted: set[str] = set()
        self._stream = stream
        self._phase, self._began = "", 0.0
        self._last = float("-inf")

    def phase(self, name: str) -> None:
        self._phase, self._began = name, time.monotonic()
        self._say(f"{name} …")

    def step(self, done: float, total: float | None, detail: str = "") -> None:
        share = f" {100 * done / total:.0f} %, {self._left(done, total)} left" if total and done else ""
        self._say(f"{self._phase}{share}{', ' + detail if detail else ''}")

    def _left(self, done: float, total: float) -> str:
        """What is left at the speed of the phase so far."""
        left = max(0.0, (time.monotonic() - self._began) * (total - done) / done)
        return f"about {left:.0f} s" if left < 90 else f"about {left / 60:.0f} min"

    def note(self, text: str) -> None:
        self.noted.add(text)
        print(f"note: {printable(text)}", file=self._stream, flush=True)

    def _say(self, line: str) -> None:
        now = time.monotonic()
        if now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            print(printable(line), file=self._stream, flush=True)


class BarProgress:
    """One bar for the present phase, removed when the work is done."""

    def __init__(self, console: Console) -> None:
        self.noted: set[str] = set()
        console.push_theme(LOOK)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[detail]}", markup=False, table_column=Column(overflow="fold", ratio=1)),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            expand=True,
        )
        self._task: TaskID | None = None
        self._bars.start()

    def phase(self, name: str) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(printable(name), total=None, detail="")

    def step(self, done: float, total: float | None, detail: str = "") -> None:
        if self._task is not None:
            self._bars.update(self._task, completed=done, total=total, detail=printable(detail))

    def note(self, text: str) -> None:
        self.noted.add(text)
        self._bars.console.print(f"note: {printable(text)}")

    def close(self) -> None:
        self._bars.stop()

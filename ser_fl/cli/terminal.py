"""The terminal: one console, and progress bars by name."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

console = Console()
"""On a terminal as wide as that; elsewhere every line is as long as it is."""
if not console.is_terminal and "COLUMNS" not in os.environ:
    console.width = 10_000
PLAIN_EVERY_S = 30.0
"""Elsewhere than on a terminal, a bar is a line of text every so many seconds."""


def say(line: str, on: Console = console, *, style: str = "") -> None:
    """A line as it is, without colours of its own and without a break."""
    on.print(line, highlight=False, markup=False, soft_wrap=True, style=style)


class Bars:
    """Progress bars by name; a bar appears with its first report."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        self._told = time.monotonic()

    def report(self, name: str, done: int, total: int, **fields: Any) -> None:
        """Show that ``done`` of ``total`` are done."""
        if self._progress.disable and time.monotonic() - self._told >= PLAIN_EVERY_S:
            say(f"{fields.get('description', name)}: {done} of {total}")
            self._told = time.monotonic()
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total)
        self._progress.update(self._tasks[name], completed=done, total=total, **fields)

    def attacks(self, name: str, done: int, total: int, seconds_left: float | None = None) -> None:
        """One bar for all attacks, named after the one that runs."""
        self.report("attacks", done, total, description=name, seconds_left=seconds_left)

    def features(self, done: int, total: int) -> None:
        self.report("features", done, total)


class TimeLeft(TimeRemainingColumn):
    """The time left as a bar's owner says it, or as it has gone so far."""

    def render(self, task: Task) -> Text:
        if (seconds := task.fields.get("seconds_left")) is None:
            return super().render(task)
        return Text(str(timedelta(seconds=round(seconds))), style="progress.remaining")


@contextmanager
def bars() -> Iterator[Bars]:
    """Live progress on a terminal, plain lines elsewhere."""
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeLeft())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Bars(progress)

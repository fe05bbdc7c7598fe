"""The terminal: one console, what is said on it and in ``log.txt``, and progress bars by name."""

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from ser_fl.runs.folder import RunFolder
from ser_fl.runs.redaction import public_text

_LOG = logging.getLogger(__name__)
console = Console()
"""On a terminal as wide as that; elsewhere every line is as long as it is."""
if not console.is_terminal and "COLUMNS" not in os.environ:
    console.width = 10_000
PLAIN_EVERY_S = 30.0
"""Elsewhere than on a terminal, a bar is a line of text every so many seconds."""


_is_quiet = False


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, notes and bars are not shown."""
    global _is_quiet
    _is_quiet = True
    try:
        yield
    finally:
        _is_quiet = False


def say(line: str, on: Console = console, *, style: str = "") -> None:
    """A line as it is, without colours of its own and without a break; in the journal too."""
    on.print(line, highlight=False, markup=False, soft_wrap=True, style=style)
    _LOG.info(line)


def note(line: str) -> None:
    """A line that is no result: ``--quiet`` keeps it to the journal."""
    if _is_quiet:
        _LOG.info(line)
    else:
        say(line)


class _Public(logging.Formatter):
    """Lines of a file that is shared with the run: no folders of this machine, no secrets."""

    def __init__(self, folders: Sequence[str | Path]) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")
        self._folders = folders

    def format(self, record: logging.LogRecord) -> str:
        return public_text(super().format(record), self._folders)


class _Journal(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk ends no run."""


@contextmanager
def journal(folders: Iterable[str] = ()) -> Iterator[Callable[[Path], None]]:
    """Inside, what is said and warned of goes to ``log.txt`` of the run folder that the function yielded is called
    with; what came before it too. ``folders`` are those of the data.
    """
    folders = tuple(folders)
    ours, before = logging.getLogger("ser_fl"), MemoryHandler(10_000, flushLevel=logging.CRITICAL + 1)
    handlers: list[logging.Handler] = [before]
    if not ours.hasHandlers() and logging.lastResort is not None:
        handlers.append(logging.lastResort)  # which shows warnings as long as there is no other
    level = ours.level
    for handler in handlers:
        ours.addHandler(handler)
    ours.setLevel(logging.INFO)

    def opened(root: Path) -> None:
        with suppress(OSError):
            file = _Journal(RunFolder(root).log, encoding="utf-8")
            file.setFormatter(_Public([*folders, root.absolute()]))
            before.setTarget(file)
            before.flush()
            ours.addHandler(file)
            handlers.append(file)
        ours.removeHandler(before)

    try:
        yield opened
    except BaseException as error:
        record = ours.makeRecord(ours.name, logging.ERROR, "", 0, f"{type(error).__name__}: {error}", (), None)
        for handler in handlers:
            if isinstance(handler, _Journal):
                handler.emit(record)
        raise
    finally:
        ours.setLevel(level)
        for handler in handlers:
            ours.removeHandler(handler)
            if isinstance(handler, _Journal):
                handler.close()


class Bars:
    """Progress bars by name; a bar appears with its first report."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        self._told = time.monotonic()

    def report(self, name: str, done: int, total: int, **fields: Any) -> None:
        """Show that ``done`` of ``total`` are done."""
        if self._progress.disable and time.monotonic() - self._told >= PLAIN_EVERY_S:
            note(f"{fields.get('description', name)}: {done} of {total}")
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
    with Progress(*columns, console=console, transient=True, disable=_is_quiet or not console.is_terminal) as progress:
        yield Bars(progress)

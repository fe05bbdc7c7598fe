"""What an executor is: tasks in, outcomes out, in the same order."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Protocol, Self

from ser_fl.federation.aggregation import Outcome
from ser_fl.federation.client import ClientTask
from ser_fl.runs.records import ClientUpdate


class Executor(Protocol):
    """Runs the clients of one round after the other; a context, at whose end nothing is left running."""

    def run(self, tasks: Iterable[ClientTask]) -> Iterator[tuple[str, Outcome]]:
        """Each client's id and outcome, in the order of the tasks, of which each client has one at most."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def attempt(update: Callable[[ClientTask], ClientUpdate], task: ClientTask) -> Outcome:
    """Whatever a client raises costs its round an update, not the run."""
    try:
        return update(task)
    except Exception:
        return traceback.format_exc()

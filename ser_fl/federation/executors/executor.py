"""What an executor is, tasks in, outcomes out, in the same order; and the simplest one."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator

from ser_fl.federation.client import Clients, ClientTask
from ser_fl.federation.client_results import Outcome
from ser_fl.runs.records import ClientUpdate


class Executor:
    """Runs the clients of one round after the other; a context, at whose end nothing is left running."""

    def run(self, tasks: Iterable[ClientTask]) -> Iterator[tuple[str, Outcome]]:
        """Each client's id and outcome, in the order of the tasks, of which each client has one at most."""
        raise NotImplementedError

    def close(self) -> None:
        """End what it has started: nothing is left running."""


class SerialExecutor(Executor):
    """The reference: clients one after the other, in this process."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients

    def run(self, tasks: Iterable[ClientTask]) -> Iterator[tuple[str, Outcome]]:
        """Each client's id and outcome; a client trains when its outcome is asked for."""
        for task in tasks:
            yield task.client_id, attempt(self._clients.update, task)


def attempt(update: Callable[[ClientTask], ClientUpdate], task: ClientTask) -> Outcome:
    """Whatever a client raises costs its round an update, not the run."""
    try:
        return update(task)
    except Exception:
        return traceback.format_exc()

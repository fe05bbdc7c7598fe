"""Clients one after the other, in this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

from ser_fl.federation.aggregation import Outcome
from ser_fl.federation.client import Clients, ClientTask
from ser_fl.federation.executors.executor import attempt


class SerialExecutor:
    """The reference: an `Executor` that starts nothing and leaves nothing."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients

    def run(self, tasks: Iterable[ClientTask]) -> Iterator[tuple[str, Outcome]]:
        """Each client's id and outcome; a client trains when its outcome is asked for."""
        for task in tasks:
            yield task.client_id, attempt(self._clients.update, task)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

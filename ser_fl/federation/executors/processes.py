"""Clients side by side in worker processes, their outcomes in the order of the cohort."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Self, cast

from ser_fl.devices import device_for, devices_of
from ser_fl.errors import UserError
from ser_fl.federation.aggregation import Outcome
from ser_fl.federation.client import Clients, ClientTask
from ser_fl.federation.executors.payload import pack
from ser_fl.federation.executors.shared_memory import Block
from ser_fl.federation.executors.worker import Ready
from ser_fl.federation.executors.worker_handle import SharedModel, WorkerHandle
from ser_fl.runs.records import State

_LOG = logging.getLogger(__name__)


class ProcessExecutor:
    """An `Executor` of long-lived worker processes, each with one client at a time.

    Workers start when there is a task for them, each on the next device in turn. Twice as many outcomes as there are
    workers are on their way or kept back until it is their turn, so that memory does not grow with the cohort. A worker
    that dies is replaced on its device, and its client is tried once more; a client whose worker dies twice has failed.
    """

    def __init__(self, clients: Clients, num_workers: int) -> None:
        self.num_workers = num_workers
        self.window = 2 * num_workers
        """Outcomes that are on their way or kept back, at most."""
        self._parcel = Block.holding(pack(clients))
        self._devices = devices_of(clients.config.executor.accelerator)
        self._one_for_all = clients.config.federation.name != "local_only"
        self._model: SharedModel | None = None
        """What all workers receive, where it is one model."""
        self._workers: list[WorkerHandle] = []
        self._has_started_any = False

    def run(self, tasks: Iterable[ClientTask]) -> Iterator[tuple[str, Outcome]]:
        """Each client's id and outcome, in the order of the tasks."""
        upcoming = iter(tasks)
        due: deque[str] = deque()
        outcomes: dict[str, Outcome] = {}
        deaths: dict[str, str] = {}
        try:
            while True:
                self._hand_out(upcoming, due)
                if not due:
                    return
                if due[0] in outcomes:
                    client_id = due.popleft()
                    yield client_id, outcomes.pop(client_id)
                else:
                    self._collect(outcomes, deaths)
        finally:
            self._dismiss(worker for worker in self._workers if worker.task is not None)

    def _hand_out(self, upcoming: Iterator[ClientTask], due: deque[str]) -> None:
        """Give work to whoever has none."""
        while len(due) < self.window and sum(worker.task is not None for worker in self._workers) < self.num_workers:
            task = next(upcoming, None)
            if task is None:
                return
            due.append(task.client_id)
            self._assign(task)

    def _assign(self, task: ClientTask) -> None:
        """To a worker without work, or a new one."""
        idle = [worker for worker in self._workers if worker.task is None]
        self._dismiss(worker for worker in idle if not worker.process.is_alive())
        worker = next((worker for worker in idle if worker in self._workers), None) or self._employ(task.state)
        worker.give(task)

    def _employ(self, state: State) -> WorkerHandle:
        """Start a worker that has room for models like this one."""
        model = self._model or SharedModel(state)
        if self._one_for_all:
            self._model = model
        number = min(set(range(self.num_workers)) - {worker.number for worker in self._workers})
        worker = WorkerHandle(self._parcel, model, number, device_for(number, self._devices))
        self._workers.append(worker)
        return worker

    def _collect(self, outcomes: dict[str, Outcome], deaths: dict[str, str]) -> None:
        """Wait until a worker says something or dies."""
        busy = {worker.connection: worker for worker in self._workers if worker.task is not None}
        for connection in wait(list(busy)):
            worker = busy[cast(Connection, connection)]
            assert worker.task is not None
            task, message = worker.task, worker.hear()
            if message is None:
                self._replace(worker, task, outcomes, deaths)
            elif isinstance(message, Ready):
                self._check_ready(message)
            else:
                outcomes[task.client_id] = message

    def _check_ready(self, message: Ready) -> None:
        if message.problem is not None:
            raise UserError(
                f"a worker process cannot build its clients ({message.problem}): define callbacks in a module that it "
                "can import, or use executor=serial"
            )
        self._has_started_any = True

    def _replace(
        self, worker: WorkerHandle, task: ClientTask, outcomes: dict[str, Outcome], deaths: dict[str, str]
    ) -> None:
        """Try the client of a worker that died on a new one, once."""
        end = worker.how_it_ended()
        self._dismiss([worker])
        if not self._has_started_any:
            raise UserError(
                f"a worker process ended before it was ready ({end}): a script that trains with executor=processes "
                "needs `if __name__ == '__main__':` around what it runs"
            )
        if task.client_id in deaths:
            outcomes[task.client_id] = f"its worker process died twice: {deaths[task.client_id]}, then {end}"
            return
        deaths[task.client_id] = end
        _LOG.warning("client %s is tried again: its worker process died (%s)", task.client_id, end)
        self._employ(task.state).give(task)

    def _dismiss(self, workers: Iterable[WorkerHandle]) -> None:
        """End workers at once, whatever they are doing."""
        for worker in list(workers):
            worker.end(patience_s=0)
            self._workers.remove(worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End every worker: those without work may end by themselves."""
        self._dismiss(worker for worker in self._workers if worker.task is not None)
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.end(patience_s=5)
        self._workers.clear()

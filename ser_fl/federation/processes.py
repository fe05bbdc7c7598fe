"""Clients side by side in worker processes, their outcomes in the order of the cohort.

The processes are our own: a pool of `concurrent.futures` or loky breaks as a whole when one of its processes dies, does
not say whose client it was, and takes seconds to start again. Their tensors go through pipes: for 133,000 parameters
that takes 1.4 ms of a core, of a client-round of 79 ms. Memory that is shared by hand takes 0.2 ms, and 200 lines more;
`torch.multiprocessing` takes /dev/shm, which containers keep small.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import cast

from ser_fl.config.federation import ExecutorConfig
from ser_fl.devices import CPU, device_for, devices_of
from ser_fl.errors import UserError
from ser_fl.federation.client import Clients, ClientTask, Executor, SerialExecutor
from ser_fl.federation.worker import Worker, pack
from ser_fl.runs.records import Outcome

_LOG = logging.getLogger(__name__)


class ProcessExecutor(Executor):
    """Long-lived worker processes, each with one client at a time.

    Workers start when there is a task for them, each on the next device in turn. Twice as many outcomes as there are
    workers are on their way or kept back until it is their turn, so that memory does not grow with the cohort. A worker
    that dies is replaced on its device, and its client is tried once more; a client whose worker dies twice has failed.
    """

    def __init__(self, clients: Clients, num_workers: int) -> None:
        self.num_workers = num_workers
        self.window = 2 * num_workers
        """Outcomes that are on their way or kept back, at most."""
        self._payload = pack(clients)
        self._devices = devices_of(clients.config.executor.accelerator)
        self._workers: list[Worker] = []
        self._was_any_ready = False

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
            idle = [worker for worker in self._workers if worker.task is None]
            self._dismiss(worker for worker in idle if not worker.process.is_alive())
            worker = next((worker for worker in idle if worker in self._workers), None) or self._start()
            worker.give(task)

    def _start(self) -> Worker:
        number = min(set(range(self.num_workers)) - {worker.number for worker in self._workers})
        self._workers.append(Worker(self._payload, number, device_for(number, self._devices)))
        return self._workers[-1]

    def _collect(self, outcomes: dict[str, Outcome], deaths: dict[str, str]) -> None:
        """Wait until a worker says something or dies. The client of one that died is tried on a new one, once."""
        busy = {worker.connection: worker for worker in self._workers if worker.task is not None}
        for connection in wait(list(busy)):
            worker = busy[cast(Connection, connection)]
            task = worker.task
            assert task is not None
            try:
                outcome = worker.hear()
            except EOFError:
                self._workers.remove(worker)
                end = worker.end(patience_s=60)  # its pipe is closed a moment before it is gone
                if not self._was_any_ready:
                    raise UserError(
                        f"a worker process ended before it was ready ({end}): a script that trains with "
                        "executor=processes needs `if __name__ == '__main__':` around what it runs"
                    ) from None
                if task.client_id in deaths:
                    outcomes[task.client_id] = f"its worker process died twice: {deaths[task.client_id]}, then {end}"
                    continue
                deaths[task.client_id] = end
                _LOG.warning("client %s is tried again: its worker process died (%s)", task.client_id, end)
                self._start().give(task)
                continue
            self._was_any_ready |= worker.is_ready
            if outcome is not None:
                outcomes[task.client_id] = outcome

    def _dismiss(self, workers: Iterable[Worker]) -> None:
        """End workers at once, whatever they are doing."""
        for worker in list(workers):
            worker.end(patience_s=0)
            self._workers.remove(worker)

    def close(self) -> None:
        """End every worker: those without work may end by themselves."""
        self._dismiss(worker for worker in self._workers if worker.task is not None)
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.end(patience_s=5)
        self._workers.clear()


def open_executor(clients: Clients, cohort_size: int) -> Executor:
    """The configured executor, for rounds of so many clients. Worker processes start with the first round.

    Raises:
        UserError: an object of the caller's own cannot be sent to a worker process.
    """
    config = clients.config.executor
    if config.name == "serial":
        return SerialExecutor(clients)
    return ProcessExecutor(clients, count_workers(config, cohort_size))


def count_workers(config: ExecutorConfig, cohort_size: int) -> int:
    """Worker processes for rounds of so many clients: as many as asked for, else one a GPU, or as have cores."""
    if config.workers != "auto":
        return min(config.workers, cohort_size)
    devices = devices_of(config.accelerator)
    wanted = len(devices)
    if devices == (CPU,):
        try:  # a cluster's job has often fewer cores than its machine
            wanted = len(os.sched_getaffinity(0)) // config.threads
        except AttributeError:  # not on every system
            wanted = (os.cpu_count() or 1) // config.threads
    return max(1, min(wanted, cohort_size))

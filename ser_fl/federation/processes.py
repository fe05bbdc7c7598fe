"""Clients side by side in worker processes, their outcomes in the order of the cohort.

The processes are our own: a pool of `concurrent.futures` or loky breaks as a whole when one of its processes dies, does
not say whose client it was, and takes seconds to start again. Tensors cross as safetensors, all else as pickles of our
own, through pipes: for 133,000 parameters that takes 1.4 ms of a core, of a client-round of 79 ms. Shared memory by
hand takes 0.2 ms, and 200 lines more; `torch.multiprocessing` takes /dev/shm, which containers keep small.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from threading import Thread
from typing import Any

import torch

from ser_fl.config.federation import ExecutorConfig
from ser_fl.devices import CPU, current, device_for, devices_of
from ser_fl.errors import UserError
from ser_fl.federation.client import Clients, ClientTask, Executor, attempt
from ser_fl.files import from_safetensors, to_safetensors
from ser_fl.runs.environment import keep_freed_memory
from ser_fl.runs.preemption import LEFT_TO_THE_PARENT
from ser_fl.runs.records import Outcome, State

_LOG = logging.getLogger(__name__)
_SPAWN = get_context("spawn")
_CUDNN = torch.backends.cudnn
_SWITCHES: tuple[tuple[Callable[[], Any], Callable[[Any], None]], ...] = (
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    *((partial(getattr, _CUDNN, name), partial(setattr, _CUDNN, name)) for name in ("enabled", "benchmark")),
    *((partial(getattr, _CUDNN, name), partial(setattr, _CUDNN, name)) for name in ("deterministic", "allow_tf32")),
)
"""How to read and set what a result's bits depend on in a process."""


class ProcessExecutor(Executor):
    """Long-lived worker processes, each with one client at a time.

    An object of the caller's own that cannot be sent is a `UserError`. Workers start when there is a task for them,
    each on the next device in turn. Outcomes for at most twice the workers are on their way or kept back for their
    turn, so that memory does not grow with the cohort. A worker that dies is replaced on its device, and its client
    tried once more; a client whose worker dies twice has failed.
    """

    def __init__(self, clients: Clients, num_workers: int) -> None:
        self.num_workers, self.window = num_workers, 2 * num_workers
        """Outcomes that are on their way or kept back, at most."""
        self._payload = pack(clients)
        self._devices = devices_of(clients.config.executor.accelerator)
        self._workers: list[Worker] = []
        self._was_any_ready = False

    def run(self, tasks: Iterable[ClientTask]) -> Iterator[tuple[str, Outcome]]:
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
        busy = [(worker, worker.task) for worker in self._workers if worker.task is not None]
        speaking = wait([worker.connection for worker, _ in busy])
        for worker, task in busy:
            if worker.connection not in speaking:
                continue
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
                else:
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
        self._dismiss(worker for worker in self._workers if worker.task is not None)
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.end(patience_s=5)
        self._workers.clear()


def count_workers(config: ExecutorConfig, cohort_size: int) -> int:
    """Worker processes for rounds of so many clients: as many as asked for, else one a GPU, or as have cores."""
    if config.workers != "auto":
        return min(config.workers, cohort_size)
    devices = devices_of(config.accelerator)
    # A cluster's job has often fewer cores than its machine; not every system says so.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores // config.threads if devices == (CPU,) else len(devices), cohort_size))


def pack(clients: Clients) -> bytes:
    """Clients, and how this process does its arithmetic, for worker processes; features stay in their file."""
    own = [("callback", callback) for callback in clients.callbacks]
    for what, thing in (*own, ("network", clients.own_network), ("objective", clients.objective)):
        try:
            pickle.dumps(thing)
        except Exception as error:
            name = getattr(thing, "__qualname__", type(thing).__name__)
            raise UserError(
                f"{what} {name} cannot be sent to a worker process ({error}): define it at the top of a module and let "
                "it hold nothing open, or use executor=serial"
            ) from None
    return pickle.dumps((clients, [read() for read, _ in _SWITCHES]))


class Worker:
    """A worker process as its parent sees it."""

    def __init__(self, payload: bytes, number: int, device: torch.device) -> None:
        self.number = number
        """Which of the executor's workers it is, from 0; one that replaces it has the same."""
        self.task: ClientTask | None = None
        """What it is doing, or will do as soon as it can."""
        self.is_ready = False
        self._payload: bytes | None = payload
        """Until it is sent."""
        self._held: State | None = None
        """The model that it received last."""
        self.connection, theirs = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=work, args=(theirs, device), name="ser_fl worker", daemon=True)
        # It sees no signal that is its parent's before it has decided to ignore it. The resource tracker comes with the
        # first worker, lets signals through in this process as it does so, and would die of SIGUSR1.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_THE_PARENT)
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_THE_PARENT)
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()  # so that its end is the end of the connection

    def give(self, task: ClientTask) -> None:
        """Let it train a client, as soon as it can."""
        self.task = task
        if self.is_ready:
            with suppress(OSError):  # that it died just now will be found where its answer is waited for
                is_new = task.state is not self._held
                self.connection.send((replace(task, state={}, optimiser_state={}), is_new))
                if is_new:
                    self.connection.send_bytes(to_safetensors(task.state))
                    self._held = task.state
                self.connection.send_bytes(to_safetensors(task.optimiser_state))

    def hear(self) -> Outcome | None:
        """The outcome of its task; None before that: it says first that it is there, then that it has its clients. A
        `UserError` where it cannot build them, an EOFError where it died.
        """
        assert self.task is not None
        try:
            said: Outcome | None = self.connection.recv()
            if self._payload is not None:
                self.connection.send_bytes(self._payload)
                self._payload = None
                return None
            if said is None:
                self.is_ready = True
                self.give(self.task)
                return None
            if not self.is_ready:
                raise UserError(
                    f"a worker process cannot build its clients ({said}): define what it is given in a module that it "
                    "can import, or use executor=serial"
                )
            if not isinstance(said, str):
                state, optimiser_state = (from_safetensors(self.connection.recv_bytes()) for _ in range(2))
                state = {name: state[name] for name in self.task.state}
                said = replace(said, state=state, optimiser_state=optimiser_state)
        except OSError:
            raise EOFError from None
        self.task = None
        return said

    def end(self, patience_s: float) -> str:
        """End it: by itself, when it has nothing to do, within ``patience_s``, else by force. Returns how it ended."""
        self.connection.close()
        self.process.join(patience_s)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        code = self.process.exitcode or 0
        self.process.close()
        if code >= 0:
            return f"exit code {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"killed by {name}" + (", perhaps for want of memory" if -code == signal.SIGKILL else "")


def work(connection: Connection, device: torch.device) -> None:
    """Life of a worker process, until its connection is closed or its parent is gone: tasks come, outcomes go."""
    for number in LEFT_TO_THE_PARENT:  # which ends its workers, or lets them finish the round
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LEFT_TO_THE_PARENT)
    Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()
    with suppress(EOFError, OSError):
        connection.send(None)
        payload = connection.recv_bytes()
        try:
            clients, settings = pickle.loads(payload)  # from our own parent, through a pipe that no other can reach
            for (_, adopt), setting in zip(_SWITCHES, settings, strict=True):
                adopt(setting)
        except Exception as error:
            connection.send(f"{type(error).__name__}: {error}")
            return
        connection.send(None)
        clients, state = replace(clients, device=device), State()
        with current(device):  # else pinned memory would belong to the first GPU, and take room there
            while True:
                task, is_new = connection.recv()
                if is_new:
                    state = from_safetensors(connection.recv_bytes())
                task = replace(task, state=state, optimiser_state=from_safetensors(connection.recv_bytes()))
                outcome = attempt(clients.update, task)
                if isinstance(outcome, str):
                    connection.send(outcome)
                    continue
                connection.send(replace(outcome, state={}, optimiser_state={}))
                connection.send_bytes(to_safetensors(outcome.state))
                connection.send_bytes(to_safetensors(outcome.optimiser_state))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # an orderly exit takes torch apart module by module, for seconds


def _end_with_parent() -> None:
    """End at once when the parent is gone, in the middle of a client too: nobody waits for its update any more."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

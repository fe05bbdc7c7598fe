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
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

import torch

from ser_fl.config.federation import ExecutorConfig
from ser_fl.data.splits import Part
from ser_fl.devices import CPU, device_for, devices_of
from ser_fl.errors import UserError
from ser_fl.federation.client import Clients, ClientTask, Executor, Scored, attempt
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
    """Long-lived worker processes, each with one client at a time, and a thread that waits for it.

    An object of the caller's own that cannot be sent is a `UserError`. Workers start when there is a task for them,
    each on the next device in turn. Outcomes for at most twice the workers are on their way or kept back for their
    turn, so that memory does not grow with the cohort. A worker that dies is replaced on its device, and its client
    tried once more; a client whose worker dies twice has failed.
    """

    def __init__(self, clients: Clients, num_workers: int) -> None:
        self.num_workers, self.window = num_workers, 2 * num_workers
        """Outcomes that are on their way or kept back, at most."""
        self._clients, self._payload = clients, pack(clients)
        self._devices = devices_of(clients.config.executor.accelerator)
        self._workers: list[Worker] = []
        self._idle: SimpleQueue[int] = SimpleQueue()
        """Places in that list."""
        self._lock = Lock()
        """Of whoever starts or ends a process: two who wait for one would take its exit code from each other."""
        self._was_any_ready = self._is_given_up = False

    def run(self, tasks: Iterable[ClientTask]) -> Iterator[tuple[str, Outcome]]:
        upcoming, due = iter(tasks), deque[tuple[str, Future[Outcome]]]()
        self._is_given_up = False
        with ThreadPoolExecutor(self.num_workers) as threads:
            try:
                while True:
                    for task in islice(upcoming, self.window - len(due)):
                        in_work = sum(not future.done() for _, future in due)
                        if in_work >= len(self._workers) < self.num_workers:
                            self._workers.append(self._start(len(self._workers)))
                            self._idle.put(len(self._workers) - 1)
                        due.append((task.client_id, threads.submit(self._train, task)))
                    if not due:
                        return
                    client_id, outcome = due.popleft()
                    yield client_id, outcome.result()
            finally:
                self._is_given_up = True
                threads.shutdown(wait=False, cancel_futures=True)
                with self._lock:
                    for worker in self._workers:
                        if worker.is_busy:
                            worker.process.kill()
                            worker.process.join()

    def score(self, models: Mapping[str, State], part: Part, *, attacked: bool = False) -> Scored:
        """In this process: it takes far less time than training does."""
        return self._clients.score(models, part, attacked=attacked)

    def confidences(self, models: Mapping[str, State], part: Part, temperature: float | None = None) -> Scored:
        return self._clients.confidences(models, part, temperature)

    def _start(self, number: int) -> Worker:
        with self._lock:
            return Worker(self._payload, device_for(number, self._devices))

    def _train(self, task: ClientTask) -> Outcome:
        """What the next worker that is free makes of a task. Where it dies, another one tries, once."""
        number, deaths = self._idle.get(), list[str]()
        try:
            while True:
                if not self._workers[number].process.is_alive():
                    self._workers[number] = self._start(number)
                worker = self._workers[number]
                try:
                    worker.is_busy = True  # from here on it is killed where the round is given up
                    return "the round was given up" if self._is_given_up else worker.train(task)
                except EOFError:
                    with self._lock:
                        deaths.append(worker.end(patience_s=60))  # its pipe is closed a moment before it is gone
                finally:
                    worker.is_busy = False
                    self._was_any_ready |= worker.is_ready
                if not self._was_any_ready:
                    raise UserError(
                        f"a worker process ended before it was ready ({deaths[0]}): a script that trains with "
                        "executor=processes needs `if __name__ == '__main__':` around what it runs"
                    )
                if len(deaths) == 2 or self._is_given_up:
                    return f"its worker process died twice: {', then '.join(deaths)}"
                _LOG.warning("client %s is tried again: its worker process died (%s)", task.client_id, deaths[0])
        finally:
            self._idle.put(number)

    def close(self) -> None:
        """End every worker: those without work end by themselves."""
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
    own = clients.own
    callbacks = [("callback", callback) for callback in own.callbacks]
    sendable = (("network", own.network), ("objective", own.objective), ("adversary", own.adversary))
    for what, thing in (*callbacks, *sendable):
        try:
            pickle.dumps(thing)
        except Exception as error:
            name = getattr(thing, "__qualname__", type(thing).__name__)
            raise UserError(
                f"{what} {name} cannot be sent to a worker process ({error}): define it at the top of a module and let "
                "it hold nothing open, or use executor=serial"
            ) from None
    sent = replace(own, aggregation=None, algorithm=None)  # which are the server's
    return pickle.dumps((clients.config, clients.data, sent, [read() for read, _ in _SWITCHES]))


class Worker:
    """A worker process as its parent sees it."""

    def __init__(self, payload: bytes, device: torch.device) -> None:
        self.is_ready = self.is_busy = False
        self._payload = payload
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

    def train(self, task: ClientTask) -> Outcome:
        """Its outcome of a task, which is waited for.

        Raises:
            UserError: it cannot build its clients.
            EOFError: it died instead.
        """
        connection = self.connection
        try:
            if not self.is_ready:
                connection.send_bytes(self._payload)
                if (problem := connection.recv()) is not None:
                    raise UserError(
                        f"a worker process cannot build its clients ({problem}): define what it is given in a module "
                        "that it can import, or use executor=serial"
                    )
                self.is_ready, self._payload = True, b""
            is_new = task.state is not self._held
            connection.send((replace(task, state={}, optimiser_state={}), is_new))
            if is_new:
                connection.send_bytes(to_safetensors(task.state))
                self._held = task.state
            connection.send_bytes(to_safetensors(task.optimiser_state))
            outcome: Outcome = connection.recv()
            if isinstance(outcome, str):
                return outcome
            state, optimiser_state = (from_safetensors(connection.recv_bytes()) for _ in range(2))
            return replace(outcome, state={name: state[name] for name in task.state}, optimiser_state=optimiser_state)
        except OSError:
            raise EOFError from None

    def end(self, patience_s: float) -> str:
        """End it: by itself, when it has nothing to do, within ``patience_s``, else by force. Returns how it ended."""
        self.connection.close()
        self.process.join(patience_s)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        code = self.process.exitcode or 0
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
        payload = connection.recv_bytes()
        try:
            # from our own parent, through a pipe that no other can reach
            *given, settings = pickle.loads(payload)
            for (_, adopt), setting in zip(_SWITCHES, settings, strict=True):
                adopt(setting)
            clients, state = Clients(*given, device=device), State()
        except Exception as error:
            connection.send(f"{type(error).__name__}: {error}")
            return
        connection.send(None)
        # Else pinned memory would belong to the first GPU, and take room there.
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
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

"""A worker process, from both ends of its pipe: it builds its clients once, then trains one after the other.

Tensors cross as safetensors, everything else as pickles of our own.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any

import torch

from ser_fl.devices import current
from ser_fl.errors import UserError
from ser_fl.federation.client import Clients, ClientTask, attempt
from ser_fl.files import from_safetensors, to_safetensors
from ser_fl.runs.environment import keep_freed_memory
from ser_fl.runs.preemption import LEFT_TO_THE_PARENT
from ser_fl.runs.records import Outcome, State

_SPAWN = get_context("spawn")
_SWITCHES: tuple[tuple[Callable[[], Any], Callable[[Any], None]], ...] = (
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    *(
        (partial(getattr, torch.backends.cudnn, name), partial(setattr, torch.backends.cudnn, name))
        for name in ("enabled", "benchmark", "deterministic", "allow_tf32")
    ),
)
"""How to read and set what a result's bits depend on in a process."""


def pack(clients: Clients) -> bytes:
    """Clients, and how this process does its arithmetic, for worker processes; features stay in their file.

    Raises:
        UserError: an object of the caller's own cannot be pickled; it is named.
    """
    own: list[tuple[str, object]] = [("callback", callback) for callback in clients.callbacks]
    own += [("network", clients.own_network), ("objective", clients.objective)]
    for what, thing in own:
        try:
            pickle.dumps(thing)
        except Exception as error:
            name = getattr(thing, "__qualname__", type(thing).__name__)
            raise UserError(
                f"{what} {name} cannot be sent to a worker process ({error}): define it at the top of a module and let "
                "it hold nothing open, or use executor=serial"
            ) from None
    return pickle.dumps((clients, [read() for read, _ in _SWITCHES]))


@dataclass(frozen=True, slots=True)
class Ready:
    """What a worker says before its first outcome: that it is there, then that its clients are built, or why not."""

    has_clients: bool
    problem: str | None = None


class Worker:
    """A worker process as its parent sees it."""

    def __init__(self, payload: bytes, number: int, device: torch.device) -> None:
        self.number = number
        """Which of the executor's workers it is, from 0; one that replaces it has the same."""
        self.task: ClientTask | None = None
        """What it is doing, or will do as soon as it can."""
        self.is_ready = False
        self._payload = payload
        self._held: State | None = None
        """The model that it received last."""
        self.connection, theirs = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=work, args=(theirs, device), name="ser_fl worker", daemon=True)
        with _signals_held_back():
            self.process.start()
        theirs.close()  # so that its end is the end of the connection

    def give(self, task: ClientTask) -> None:
        """Let it train a client."""
        self.task = task
        if self.is_ready:
            self._send(task)

    def _send(self, task: ClientTask) -> None:
        with suppress(OSError):  # that it died just now will be found where its answer is waited for
            is_new = task.state is not self._held
            self.connection.send((replace(task, state={}, optimiser_state={}), is_new))
            if is_new:
                self.connection.send_bytes(to_safetensors(task.state))
                self._held = task.state
            self.connection.send_bytes(to_safetensors(task.optimiser_state))

    def hear(self) -> Outcome | None:
        """The outcome of its task; None where it says before that how far it is.

        Raises:
            UserError: it cannot build its clients.
            EOFError: it died instead.
        """
        try:
            said: Ready | Outcome = self.connection.recv()
            if isinstance(said, Ready):
                if said.problem is not None:
                    raise UserError(
                        f"a worker process cannot build its clients ({said.problem}): define what it is given in a "
                        "module that it can import, or use executor=serial"
                    )
                if not said.has_clients:
                    self.connection.send_bytes(self._payload)
                    return None
                self.is_ready = True
                if self.task is not None:
                    self._send(self.task)
                return None
            assert self.task is not None
            if not isinstance(said, str):
                state, optimiser_state = (from_safetensors(self.connection.recv_bytes()) for _ in range(2))
                state = {name: state[name] for name in self.task.state}
                said = replace(said, state=state, optimiser_state=optimiser_state)
        except OSError:
            raise EOFError from None
        self.task = None
        return said

    def end(self, patience_s: float) -> str:
        """End it: by itself, when it has nothing to do, within ``patience_s``; else by force.

        Returns:
            How it ended, of a worker that died: its exit code, or the signal that killed it.
        """
        self.connection.close()
        self.process.join(patience_s)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        code = self.process.exitcode or 0
        self.process.close()
        if code >= 0:
            return f"exit code {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"killed by {name}" + (", perhaps for want of memory" if -code == signal.SIGKILL else "")


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Processes that are started inside see no signal that is their parent's before they have decided to ignore it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_THE_PARENT)
    # It comes with the first worker, lets signals through in this process as it does so, and would die of SIGUSR1.
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_THE_PARENT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def work(connection: Connection, device: torch.device) -> None:
    """Life of a worker process, until its connection is closed or its parent is gone.

    Args:
        connection: clients and tasks come, outcomes go.
        device: where its clients train.
    """
    for number in LEFT_TO_THE_PARENT:  # which ends its workers, or lets them finish the round
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LEFT_TO_THE_PARENT)
    Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()
    with suppress(EOFError, OSError):
        connection.send(Ready(has_clients=False))
        payload = connection.recv_bytes()
        try:
            clients, settings = pickle.loads(payload)  # from our own parent, through a pipe that no other can reach
            for (_, adopt), setting in zip(_SWITCHES, settings, strict=True):
                adopt(setting)
        except Exception as error:
            connection.send(Ready(has_clients=False, problem=f"{type(error).__name__}: {error}"))
            return
        connection.send(Ready(has_clients=True))
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

"""A worker process as its parent sees it: started, given a task, listened to, ended."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import get_context, resource_tracker

import torch

from ser_fl.federation.aggregation import Outcome
from ser_fl.federation.client import ClientTask
from ser_fl.federation.executors.shared_memory import Block, Layout, end_of, lay_out
from ser_fl.federation.executors.worker import Message, Order, Ready, Reply, work
from ser_fl.runs.preemption import LEFT_TO_THE_PARENT
from ser_fl.runs.records import ClientUpdate, State

_SPAWN = get_context("spawn")
_ROOM = 4
"""Sizes of a model that a mailbox has room for: an update, an optimiser's two moments of it, and some to spare."""


class SharedModel:
    """Memory for a model that clients receive, written where it is another one than before."""

    def __init__(self, state: State) -> None:
        self.block = Block(end_of(lay_out(state)))
        self._held: State | None = None
        self._layout: Layout = {}

    def put(self, state: State) -> Layout:
        """Where this state lies now."""
        if state is not self._held:
            self._layout, self._held = self.block.write(state), state
        return self._layout


class WorkerHandle:
    """A worker process, from its start on."""

    task: ClientTask | None = None
    """What it is doing."""

    def __init__(self, payload: Block, model: SharedModel, number: int, device: torch.device) -> None:
        self.number = number
        """Which of the executor's workers it is, from 0; one that replaces it has the same."""
        self._model = model
        self._mailbox = Block(_ROOM * model.block.size)
        self.connection, theirs = _SPAWN.Pipe()
        blocks = (payload, model.block, self._mailbox)
        self.process = _SPAWN.Process(target=work, args=(theirs, *blocks, device), name="ser_fl worker", daemon=True)
        with _signals_held_back():
            self.process.start()
        theirs.close()  # so that its end is the end of the connection

    def give(self, task: ClientTask) -> None:
        """Let it train a client; it may still be starting."""
        self.task = task
        order = Order(
            replace(task, state={}, optimiser_state={}),
            self._model.put(task.state),
            self._mailbox.write(task.optimiser_state),
        )
        with suppress(OSError):  # that it died just now will be found where its answer is waited for
            self.connection.send(order)

    def hear(self) -> Ready | Outcome | None:
        """What it says next; None where it died instead."""
        try:
            message: Message = self.connection.recv()
        except (EOFError, OSError):
            return None
        if isinstance(message, Ready):
            return message
        self.task = None
        return message if isinstance(message, str) else self._fetch(message)

    def _fetch(self, reply: Reply) -> ClientUpdate:
        """The update, copied out of the mailbox."""
        state, optimiser_state = (
            {name: tensor.clone() for name, tensor in self._mailbox.read(layout).items()}
            for layout in (reply.state, reply.optimiser_state)
        )
        return replace(reply.update, state=state, optimiser_state=optimiser_state)

    def how_it_ended(self) -> str:
        """Of a worker that died: its exit code, or the signal that killed it."""
        self.process.join()
        code = self.process.exitcode or 0
        if code >= 0:
            return f"exit code {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"killed by {name}" + (", perhaps for want of memory" if -code == signal.SIGKILL else "")

    def end(self, patience_s: float) -> None:
        """End it: by itself, when it has nothing to do, within ``patience_s``; else by force."""
        self.connection.close()
        self.process.join(patience_s)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()


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

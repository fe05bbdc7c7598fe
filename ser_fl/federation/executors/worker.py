"""A worker process: builds its clients once, then trains one after the other as it is told."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass, replace
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from threading import Thread

import torch

from ser_fl.devices import current
from ser_fl.federation.client import Clients, ClientTask
from ser_fl.federation.executors.executor import attempt
from ser_fl.federation.executors.payload import unpack
from ser_fl.federation.executors.shared_memory import Block, Layout, end_of
from ser_fl.runs.environment import keep_freed_memory
from ser_fl.runs.preemption import LEFT_TO_THE_PARENT
from ser_fl.runs.records import ClientUpdate


@dataclass(frozen=True, slots=True)
class Order:
    """A task whose tensors lie in shared memory."""

    task: ClientTask
    state: Layout
    """In the block of received models."""
    optimiser_state: Layout
    """In the worker's mailbox."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An update whose tensors lie in the worker's mailbox."""

    update: ClientUpdate
    state: Layout
    optimiser_state: Layout


@dataclass(frozen=True, slots=True)
class Ready:
    """The clients are built, or why they are not."""

    problem: str | None = None


Message = Ready | Reply | str
"""What a worker says: that it has started, then for each order a reply or why the client failed."""


def work(connection: Connection, payload: Block, models: Block, mailbox: Block, device: torch.device) -> None:
    """Life of a worker process, until its connection is closed or its parent is gone.

    Args:
        connection: orders come, messages go.
        payload: what `pack` made.
        models: where received models lie; not written here.
        mailbox: where an optimiser's state comes and an update goes.
        device: where its clients train.
    """
    for number in LEFT_TO_THE_PARENT:  # which ends its workers, or lets them finish the round
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LEFT_TO_THE_PARENT)
    Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()
    try:
        clients = replace(unpack(memoryview(payload.memory)), device=device)
    except Exception as error:
        connection.send(Ready(f"{type(error).__name__}: {error}"))
        return
    connection.send(Ready())
    with current(device):  # else pinned memory would belong to the first GPU, and take room there
        while True:
            try:
                order: Order = connection.recv()
            except EOFError:
                break
            connection.send(_train(clients, order, models, mailbox))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # an orderly exit takes torch apart module by module, for seconds


def _train(clients: Clients, order: Order, models: Block, mailbox: Block) -> Reply | str:
    state, optimiser_state = models.read(order.state), mailbox.read(order.optimiser_state)
    outcome = attempt(clients.update, replace(order.task, state=state, optimiser_state=optimiser_state))
    if isinstance(outcome, str):
        return outcome
    try:
        updated = mailbox.write(outcome.state)
        optimiser = mailbox.write(outcome.optimiser_state, start=end_of(updated))
    except ValueError as error:
        return f"its update cannot be handed over: {error}"
    return Reply(replace(outcome, state={}, optimiser_state={}), updated, optimiser)


def _end_with_parent() -> None:
    """End at once when the parent is gone, in the middle of a client too: nobody waits for its update any more."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

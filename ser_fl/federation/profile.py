"""Where the time of a run's rounds went: the server's stopwatch and the clients' together, round by round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import get_args

import torch

from ser_fl.config.schema import Config
from ser_fl.runs.records import ProfileRecord, TimeSpent
from ser_fl.stopwatch import UNWATCHED, ClientPart, Part, ServerPart, Stopwatch, Watch

OnProfile = Callable[[ProfileRecord], None]
"""Told where the time of a run's rounds went."""


def open_watch(config: Config, rest: Part) -> Watch:
    """A stopwatch where the run is profiled, else one that measures nothing.

    Work on an accelerator is only handed over when a call returns. For its time to count for the part that ordered it,
    the stopwatch waits for the device whenever a part begins or ends, which makes a profiled run slower.
    """
    if not config.profile:
        return UNWATCHED
    return Stopwatch(rest) if config.executor.accelerator == "cpu" else Stopwatch(rest, synchronise)


def synchronise() -> None:
    """Wait for the accelerator, where this process has one in use."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()


class RunProfile:
    """Adds up rounds, the first apart from all others."""

    def __init__(self, config: Config) -> None:
        self._executor = config.executor.name
        self.watch = open_watch(config, rest="other")
        """The server's."""
        self._first: _Sum | None = None
        self._later: _Sum | None = None

    def add(self, number: int, clients: Sequence[dict[str, int]]) -> None:
        """Take in a round, which `watch` has measured since its restart.

        Args:
            number: of the round.
            clients: nanoseconds by part of every client that sent an update.
        """
        server = self.watch.read()
        if not server:
            return
        wall = sum(server.values())
        if self._executor == "serial":  # nobody waits: clients train when they are asked for
            server["other"] += server.pop("waiting") - sum(sum(spent.values()) for spent in clients)
        if self._first is None:
            total = self._first = _Sum(number)
        else:
            total = self._later = self._later or _Sum(number)
        total.add(number, wall, server, clients)

    def record(self) -> ProfileRecord | None:
        """None where no round was measured."""
        if self._first is None:
            return None
        later = None if self._later is None else self._later.spent()
        return ProfileRecord(executor=self._executor, first=self._first.spent(), later=later)


@dataclass(slots=True)
class _Sum:
    """Nanoseconds of some rounds."""

    first_round: int
    last_round: int = 0
    client_rounds: int = 0
    wall: int = 0
    clients: Counter[str] = field(default_factory=Counter)
    server: Counter[str] = field(default_factory=Counter)

    def add(self, number: int, wall: int, server: dict[str, int], clients: Sequence[dict[str, int]]) -> None:
        self.last_round = number
        self.wall += wall
        self.client_rounds += len(clients)
        self.server.update(server)
        for spent in clients:
            self.clients.update(spent)

    def spent(self) -> TimeSpent:
        return TimeSpent(
            first_round=self.first_round,
            last_round=self.last_round,
            client_rounds=self.client_rounds,
            seconds=self.wall / 1e9,
            clients={part: self.clients[part] / 1e9 for part in get_args(ClientPart)},
            server={part: self.server[part] / 1e9 for part in get_args(ServerPart)},
        )

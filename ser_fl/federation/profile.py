"""Where the time of a run's rounds went: the server's stopwatch and the clients' together, round by round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, get_args

import torch

from ser_fl.config.schema import Config
from ser_fl.runs.records import ProfileRecord, TimeSpent
from ser_fl.stopwatch import UNWATCHED, ClientPart, Part, ServerPart, Stopwatch, Watch

OnProfile = Callable[[ProfileRecord], None]
"""Told where the time of a run's rounds went."""


def open_watch(config: Config, rest: Part) -> Watch:
    """A stopwatch where the run is profiled, else one that measures nothing. An accelerator's work is only handed over
    when a call returns: so that its time counts for the part that ordered it, the stopwatch waits for the device
    whenever a part begins or ends, which makes a profiled run slower.
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
    """Notes rounds, to tell of the first apart from all others."""

    def __init__(self, config: Config) -> None:
        self._executor = config.executor.name
        self.watch = open_watch(config, rest="other")
        self._rounds: list[_Round] = []

    def add(self, number: int, clients: Sequence[dict[str, int]]) -> None:
        """Take in a round, measured since `watch`'s restart, and nanoseconds by part of every client's update."""
        server = self.watch.read()
        if not server:
            return
        wall, spent = sum(server.values()), Counter[str]()
        for client in clients:
            spent.update(client)
        if self._executor == "serial":  # nobody waits: clients train when they are asked for
            server["other"] += server.pop("waiting") - spent.total()
        self._rounds.append(_Round(number, len(clients), wall, spent, server))

    def record(self) -> ProfileRecord | None:
        """None where no round was measured."""
        if not self._rounds:
            return None
        later = _sum(self._rounds[1:]) if self._rounds[1:] else None
        return ProfileRecord(executor=self._executor, first=_sum(self._rounds[:1]), later=later)


class _Round(NamedTuple):
    number: int
    num_clients: int
    wall: int
    clients: Mapping[str, int]
    server: Mapping[str, int]


def _sum(rounds: Sequence[_Round]) -> TimeSpent:
    clients, server = Counter[str](), Counter[str]()
    for each in rounds:
        clients.update(each.clients)
        server.update(each.server)
    return TimeSpent(
        first_round=rounds[0].number,
        last_round=rounds[-1].number,
        client_rounds=sum(each.num_clients for each in rounds),
        seconds=sum(each.wall for each in rounds) / 1e9,
        clients={part: clients[part] / 1e9 for part in get_args(ClientPart)},
        server={part: server[part] / 1e9 for part in get_args(ServerPart)},
    )

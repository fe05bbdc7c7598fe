"""Where the time of a run's rounds went: the server's stopwatch and the clients' together, round by round."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import get_args

import torch

from ser_fl.config.schema import Config
from ser_fl.runs.records import ProfileRecord, TimeSpent
from ser_fl.stopwatch import ClientPart, Part, ServerPart, Stopwatch

OnProfile = Callable[[ProfileRecord], None]
"""Told where the time of a run's rounds went."""


def open_stopwatch(config: Config, rest: Part) -> Stopwatch:
    """A stopwatch of a profiled run. An accelerator's work is only handed over when a call returns: so that its time
    counts for the part that ordered it, the stopwatch waits for the device whenever a part begins or ends, which makes
    a profiled run slower.
    """
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
        self.stopwatch = open_stopwatch(config, rest="other")
        self._rounds: list[TimeSpent] = []

    def add(self, number: int, clients: Sequence[dict[str, int]]) -> None:
        """Take in a round, measured since the stopwatch's restart, and nanoseconds by part of every client's update."""
        server, spent = Counter(self.stopwatch.read()), Counter[str]()
        wall = server.total()
        for client in clients:
            spent.update(client)
        if self._executor == "serial":  # nobody waits: clients train when they are asked for
            server["other"] += server.pop("waiting") - spent.total()
        self._rounds.append(
            TimeSpent(
                first_round=number,
                last_round=number,
                client_rounds=len(clients),
                seconds=wall / 1e9,
                clients={part: spent[part] / 1e9 for part in get_args(ClientPart)},
                server={part: server[part] / 1e9 for part in get_args(ServerPart)},
            )
        )

    def record(self) -> ProfileRecord | None:
        """None where no round was measured."""
        if not self._rounds:
            return None
        first, *others = self._rounds
        later = None
        if others:
            later = TimeSpent(
                first_round=others[0].first_round,
                last_round=others[-1].last_round,
                client_rounds=sum(each.client_rounds for each in others),
                seconds=sum(each.seconds for each in others),
                clients={part: sum(each.clients[part] for each in others) for part in first.clients},
                server={part: sum(each.server[part] for each in others) for part in first.server},
            )
        return ProfileRecord(executor=self._executor, first=first, later=later)

"""What the server makes of the updates of a round: the protocol."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from ser_fl.runs.records import ClientUpdate, State


class Aggregation(ABC):
    """Takes in the updates of one round, in the order of the cohort, and gives one state. Each round has a copy of the
    algorithm's object: it never needs to forget. One of your own needs `add` and `result` alone.
    """

    received: State
    """The model that the clients were sent."""
    round_number: int
    """From 1."""
    always: str | None = None
    """A client that is in every cohort, as its first."""
    known_hostile: int = 0
    """Clients that are missing since what they sent was refused: so many fewer of those here may be hostile."""
    _shares: Mapping[str, float] = {}

    def start(self, received: State, round_number: int) -> None:
        """Before the first update."""
        self.received, self.round_number = received, round_number

    @abstractmethod
    def add(self, update: ClientUpdate) -> None:
        """Take a client in. Its tensors have the names, shapes and types of the model's and are finite."""

    @abstractmethod
    def result(self) -> State:
        """What was added amounts to, with the names, shapes and types of the model; at least one was."""

    def shares(self) -> Mapping[str, float]:
        """After `result`, by client, how much of its update is in it: 0 for one that was dropped. They add up to 1 at
        most; the rest is the received model's. Empty where the aggregation does not say.
        """
        return self._shares

    def refusal(self, client_ids: Sequence[str]) -> str | None:
        """Why the updates of these clients alone cannot be aggregated, or None; asked of the cohort before the first
        round, and of those who came back in each.
        """
        return None

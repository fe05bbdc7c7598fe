"""The server's side of a round: what clients receive, and what becomes of their updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ser_fl.federation.aggregation import fedavg
from ser_fl.records import ClientUpdate, State

GLOBAL = "global"


@dataclass(slots=True)
class Server:
    """Models by owner: one that all share, or, for `federation=local_only`, one a client that nobody averages."""

    models: dict[str, State]
    optimiser_states: dict[str, State] = field(default_factory=dict)
    """Of clients that keep their optimiser between rounds."""

    @classmethod
    def start(cls, initial: State, client_ids: Sequence[str], *, local_only: bool) -> Server:
        """All begin from the same weights."""
        return cls(dict.fromkeys(client_ids, initial) if local_only else {GLOBAL: initial})

    def model_for(self, client_id: str) -> State:
        """What this client starts its local epochs from."""
        return self.models[GLOBAL] if GLOBAL in self.models else self.models[client_id]

    def absorb(self, updates: Sequence[ClientUpdate]) -> None:
        """FedAvg, or each client's own model by itself."""
        if GLOBAL in self.models:
            self.models[GLOBAL] = fedavg(updates)
        else:
            self.models |= {update.client_id: update.state for update in updates}
        self.optimiser_states |= {
            update.client_id: update.optimiser_state for update in updates if update.optimiser_state
        }

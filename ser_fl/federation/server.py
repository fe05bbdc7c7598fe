"""The server's side of a round: what clients receive, and what becomes of their updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from ser_fl.federation.aggregation import FedAvg, averaged_over_rounds
from ser_fl.federation.server_optimiser import AdamStep, with_adam, with_momentum
from ser_fl.runs.records import ClientUpdate, State

GLOBAL = "global"


@dataclass(slots=True)
class Gathered:
    """What the updates of a round amount to so far."""

    average: FedAvg | None
    """None where nobody averages."""
    models: dict[str, State] = field(default_factory=dict)
    """The clients' own, where nobody averages."""
    optimiser_states: dict[str, State] = field(default_factory=dict)
    """Of clients that keep their optimiser."""

    def add(self, update: ClientUpdate) -> None:
        """Take a client in, in the order of the cohort."""
        if self.average is None:
            self.models[update.client_id] = update.state
        else:
            self.average.add(update)
        if update.optimiser_state:
            self.optimiser_states[update.client_id] = update.optimiser_state


@dataclass(slots=True)
class Server:
    """Models by owner: one that all share, or, for `federation=local_only`, one a client that nobody averages."""

    models: dict[str, State]
    optimiser_states: dict[str, State] = field(default_factory=dict)
    """Of clients that keep their optimiser between rounds."""
    exp_avg: State = field(default_factory=dict)
    """What the shared model's parameters carry on from round to round; empty where the average is the model."""
    momentum: float = 0.0
    """Of FedAvgM; Adam's comes with each step."""
    exp_avg_sq: State = field(default_factory=dict)
    """Mean squares of the shared model's updates; empty without Adam at the server."""
    average: State = field(default_factory=dict)
    """Of the shared model over rounds; empty without one."""
    num_averaged: int = 0
    """Rounds that it is of."""
    decay: float = 0.0

    @classmethod
    def start(
        cls,
        initial: nn.Module,
        client_ids: Sequence[str],
        *,
        local_only: bool,
        momentum: float,
        adam: bool = False,
        decay: float = 0.0,
    ) -> Server:
        """All begin from the same weights, and from rest."""
        state = initial.state_dict()
        if local_only:
            return cls(dict.fromkeys(client_ids, state))
        rest = {name: torch.zeros_like(parameter) for name, parameter in initial.named_parameters()}
        return cls(
            {GLOBAL: state},
            exp_avg=rest if momentum or adam else {},
            momentum=0.0 if adam else momentum,
            exp_avg_sq=dict(rest) if adam else {},
            decay=decay,
        )

    @property
    def judged(self) -> dict[str, State]:
        """The models that are validated, selected and kept: the average over rounds where there is one."""
        return {GLOBAL: self.average} if self.average else self.models

    def model_for(self, client_id: str) -> State:
        """What this client starts its local epochs from."""
        return self.models[GLOBAL] if GLOBAL in self.models else self.models[client_id]

    def gather(self) -> Gathered:
        """Where the updates of a round go until `absorb`: a round that fails leaves the server as it was."""
        return Gathered(FedAvg() if GLOBAL in self.models else None)

    def absorb(self, gathered: Gathered, step: AdamStep | None = None) -> None:
        """FedAvg, and from there the server's momentum or its Adam step; or each client's own model by itself."""
        if gathered.average is not None:
            received, average = self.models[GLOBAL], gathered.average.result()
            if step is not None:
                moved, self.exp_avg, self.exp_avg_sq = with_adam(received, average, self.exp_avg, self.exp_avg_sq, step)
            else:
                moved, self.exp_avg = with_momentum(received, average, self.exp_avg, self.momentum)
            self.models[GLOBAL] = moved
            if self.decay:
                self.average = averaged_over_rounds(self.average, moved, self.num_averaged, self.decay)
                self.num_averaged += 1
        self.models |= gathered.models
        self.optimiser_states |= gathered.optimiser_states

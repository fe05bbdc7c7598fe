"""An aggregation and a server's algorithm of your own: a trimmed mean, and a server that goes part of the way to it."""

from __future__ import annotations

import torch

import ser_fl
from ser_fl.federation.aggregation import Aggregation
from ser_fl.federation.algorithm import Algorithm
from ser_fl.runs.records import ClientUpdate, State


class TrimmedMean(Aggregation):
    """Mean of each cell over clients without the largest and the smallest (Yin et al., arXiv 1803.01498)."""

    def __init__(self, trimmed: int = 1) -> None:
        self.trimmed = trimmed
        self.states: list[State] = []

    def add(self, update: ClientUpdate) -> None:
        """Keep it: cells are compared over all clients."""
        self.states.append(update.state)

    def result(self) -> State:
        """Of fewer than three clients nothing is trimmed."""
        trimmed = self.trimmed if len(self.states) > 2 * self.trimmed else 0
        mean: State = {}
        for name, first in self.states[0].items():
            sorted_cells = torch.stack([state[name] for state in self.states]).sort(dim=0).values
            kept = sorted_cells[trimmed : len(self.states) - trimmed]
            mean[name] = kept.double().mean(dim=0).to(first.dtype)
        return mean


class SlowServer(Algorithm):
    """Goes a share of the way from the model that clients received to what became of their updates."""

    def __init__(self, share: float = 0.5) -> None:
        self.share = share

    def step(self, received: State, average: State, round_number: int) -> State:
        """Counters are the average's."""
        return {
            name: received[name] + self.share * (tensor - received[name]) if tensor.is_floating_point() else tensor
            for name, tensor in average.items()
        }


def main() -> None:
    """Two rounds of four clients."""
    config = ser_fl.compose(["experiment=debug", "clients.by=iid", "clients.num_clients=4"])
    run = ser_fl.train(config, aggregation=TrimmedMean(), algorithm=SlowServer())
    print(f"test UAR {run.metrics().uar:.3f}")


if __name__ == "__main__":
    main()

"""Clients that stand out along the direction in which the updates differ most are dropped."""

import torch
from torch import Tensor

from ser_fl.federation.aggregation.robust import Gathered
from ser_fl.randomness import generator
from ser_fl.runs.records import State


class DivideAndConquer(Gathered):
    """Plain mean of those who are never among the c * f furthest along the top right singular vector of the centred
    changes, in a number of draws of b cells (DnC: Shejwalkar and Houmansadr, NDSS 2021, algorithm 2); f = 0 is the
    plain mean.

    Deviations: where every client was dropped by some draw, those who were dropped least often are averaged; singular
    vectors are taken from the N x N inner products. It needs n >= 2f + 1, keeps all updates, and weighs all clients
    alike.

    Args:
        removed: c, clients that a draw drops for each hostile one.
        draws: of cells, by (seed, round).
        cells: b, of a draw; all where there are fewer.
        seed: of the draws.
    """

    name = "dnc"

    def __init__(
        self, hostile_share: float = 0.2, removed: float = 1.0, draws: int = 1, cells: int = 10_000, seed: int = 0
    ) -> None:
        super().__init__(hostile_share)
        self.removed, self.draws, self.cells, self.seed = removed, draws, cells, seed

    def combined(self) -> State:
        count = len(self.states)
        dropped, times_N = min(round(self.removed * self.f), count - 1), torch.zeros(count)
        stream = generator(self.seed, "aggregation", self.round_number)
        for _ in range(self.draws if dropped else 0):
            drawn_NB = self.draw(stream)
            centred_NB = drawn_NB - drawn_NB.mean(0)
            values, vectors_NN = torch.linalg.eigh(centred_NB @ centred_NB.T)
            scores_N = values[-1] * vectors_NN[:, -1].square()  # (change - mean) . v, squared
            times_N[scores_N.argsort(stable=True, descending=True)[:dropped]] += 1
        return self.mixture((times_N == times_N.min()).double().tolist())

    def draw(self, stream: torch.Generator) -> Tensor:
        """(N, B): changes of drawn cells."""
        sizes = [self.received[name].numel() for name in self.names]
        drawn = torch.randperm(sum(sizes), generator=stream)[: self.cells].sort().values
        parts, first = [], 0
        for name, size in zip(self.names, sizes, strict=True):
            inside = drawn[(drawn >= first) & (drawn < first + size)] - first
            parts.append(torch.stack([self.change(state, name)[inside] for state in self.states]))
            first += size
        return torch.cat(parts, 1)

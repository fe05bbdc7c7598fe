"""A trimmed mean of those that Krum would take."""

import torch
from torch import Tensor

from ser_fl.federation.aggregation.krum import Krum, krum_scores
from ser_fl.runs.records import State


class Bulyan(Krum):
    """Of each cell, the mean of the n - 4f values that are closest to the median, among n - 2f clients that Krum takes
    one after the other, each time without those it took before (El Mhamdi et al., arXiv 1802.07927, section 4); f = 0
    is the plain mean.

    Of equal scores, which two that are each other's only neighbour have, the first of the cohort is taken.

    Deviation: of models after local epochs in place of gradients. It needs n >= 4f + 3, keeps all updates, and weighs
    all clients alike.
    """

    name = "bulyan"
    per_hostile = 4

    def __init__(self, hostile_share: float = 0.1) -> None:
        super().__init__(hostile_share)

    def combined(self) -> State:
        left, chosen = list(range(len(self.states))), list[int]()
        wanted = len(left) - 2 * self.f
        while len(chosen) < wanted:
            among = torch.tensor(left)
            scores = krum_scores(self.distances[among][:, among], len(left) - self.f - 2)
            chosen.append(left.pop(int(scores.argmin())))
        kept = wanted - 2 * self.f

        def close(values_NB: Tensor) -> Tensor:
            sorted_NB = values_NB.sort(0).values
            median_B = (sorted_NB[(wanted - 1) // 2] + sorted_NB[wanted // 2]) / 2
            order_NB = (values_NB - median_B).abs().argsort(dim=0, stable=True)
            return torch.zeros_like(values_NB, dtype=torch.bool).scatter_(0, order_NB[:kept], True)

        return self.by_cell(close, sorted(chosen))

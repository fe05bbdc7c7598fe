"""The point with the smallest sum of distances to all updates."""

import torch

from ser_fl.federation.aggregation.robust import Gathered
from ser_fl.runs.records import State


class GeometricMedian(Gathered):
    """The point with the smallest sum of L2 distances to all updates, by smoothed Weiszfeld steps from their mean (RFA:
    Pillutla et al., arXiv 1912.13445, algorithm 2): weights 1 / max(smoothing, distance), over their sum.

    Deviations: clients weigh alike, there by utterances; 100 steps in place of 3, since with inner products a step
    costs nothing and 3 leave a share of an update that is a million times too large. It needs n >= 2f + 1 and keeps all
    updates.

    Args:
        steps: of Weiszfeld; 0 is the plain mean.
        smoothing: nu, the least distance, above 0.
    """

    name = "geometric_median"

    def __init__(self, hostile_share: float = 0.2, steps: int = 100, smoothing: float = 1e-6) -> None:
        super().__init__(hostile_share)
        self.steps, self.smoothing = steps, smoothing

    def combined(self) -> State:
        count = len(self.states)
        weights_N = torch.full((count,), 1 / count, dtype=torch.float64)
        for _ in range(self.steps):
            inverse_N = 1 / self.distances_from(weights_N).clamp(min=self.smoothing)
            weights_N = inverse_N / inverse_N.sum()
        return self.mixture((weights_N if self.steps else torch.ones(count)).tolist())

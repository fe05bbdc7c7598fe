"""A mean of updates that are clipped around a centre."""

import torch
from torch import Tensor

from ser_fl.federation.aggregation.robust import Gathered
from ser_fl.federation.aggregation.weighted_mean import RunningMean
from ser_fl.runs.records import ClientUpdate, State


class CentredClipping(Gathered):
    """v + mean over clients of (x - v) min(1, radius / |x - v|), so often as there are iterations, each from the last
    one's v (Karimireddy et al., arXiv 2012.10333, algorithm 2 and equation 8); radius = inf is the plain mean.

    Deviations: the first v is the received model, there the momentum of the rounds before; clients have no momentum of
    their own. It needs n >= 2f + 1 and weighs all clients alike. One iteration of a given radius keeps no update.

    Args:
        radius: tau, of the whole change in L2; None: in each iteration the median of the clients' distances.
        iterations: of clipping.
    """

    name = "centred_clipping"

    def __init__(self, hostile_share: float = 0.2, radius: float | None = None, iterations: int = 1) -> None:
        super().__init__(hostile_share)
        self.radius, self.iterations = radius, iterations
        self._mean, self._clipped = RunningMean(), dict[str, float]()

    def add(self, update: ClientUpdate) -> None:
        if self.radius is None or self.iterations > 1:
            super().add(update)
            return
        norm = self.norm(update.state)
        share = self.radius / norm if norm > self.radius else 1.0
        self._clipped[update.client_id] = share
        self._mean.add(update.state, share)

    def combined(self) -> State:
        if self._clipped:
            count = len(self._clipped)
            if self._mean.weight != count:
                self._mean.add(self.received, count - self._mean.weight)
            self._shares = {client_id: share / count for client_id, share in self._clipped.items()}
            return self._mean.result()
        weights_N, count = torch.zeros(len(self.states), dtype=torch.float64), len(self.states)
        for _ in range(self.iterations):  # with v = received + the sum of weights * changes
            clipped_N = clip_factors(self.distances_from(weights_N), self.radius)
            weights_N = weights_N * (1 - clipped_N.mean()) + clipped_N / count
        return self.mixture((weights_N * count).tolist(), of=count)


def clip_factors(norms_N: Tensor, radius: float | None) -> Tensor:
    """min(1, radius / norm); without a radius it is the median norm, the mean of the two middle ones."""
    bound = norms_N.quantile(0.5) if radius is None else torch.tensor(radius, dtype=torch.float64)
    return torch.where(norms_N > bound, bound / norms_N, 1.0)

"""The update that lies closest to others, and the mean of several such."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ser_fl.federation.aggregation.robust import Gathered
from ser_fl.runs.records import State


def krum_scores(distances_NN: Tensor, neighbours: int) -> Tensor:
    """(N,): sum of each one's squared distances to its nearest ones, of which there are ``neighbours``, one at least
    (Blanchard et al. 2017, section 4).
    """
    others_NN = distances_NN.clone()
    others_NN.fill_diagonal_(torch.inf)
    return others_NN.sort(1).values[:, : max(1, neighbours)].sum(1)


class Krum(Gathered):
    """The client whose update has the smallest sum of squared distances to its n - f - 2 nearest ones (Blanchard et
    al., arXiv 1703.02757, section 4); of equal ones the first of the cohort.

    Deviation: of models after local epochs in place of gradients. It needs n >= 2f + 3, keeps all updates, and asks
    nobody for his utterances. The model of a round is one client's: clients that differ lose much.
    """

    name = "krum"
    beside = 3

    def best(self) -> Sequence[int]:
        """Indices of all clients, those of the smallest scores first."""
        order: list[int] = krum_scores(self.distances, len(self.states) - self.f - 2).argsort(stable=True).tolist()
        return order

    def combined(self) -> State:
        return self.of_the_best(1)

    def of_the_best(self, kept: int) -> State:
        """Plain mean of so many of those with the smallest scores."""
        chosen = set(self.best()[:kept]) if len(self.states) > 1 else {0}
        return self.mixture([float(index in chosen) for index in range(len(self.states))])


class MultiKrum(Krum):
    """Plain mean of the m updates with the smallest scores of `Krum` (Blanchard et al., arXiv 1703.02757, section 4);
    m = 1 is Krum, m = n the mean.

    Deviation: of models after local epochs in place of gradients. It needs n >= 2f + 3, keeps all updates, and weighs
    those it takes alike.

    Args:
        kept: m; None: n - f.
    """

    name = "multi_krum"

    def __init__(self, hostile_share: float = 0.2, kept: int | None = None) -> None:
        super().__init__(hostile_share)
        self.kept = kept

    def refusal(self, client_ids: Sequence[str]) -> str | None:
        honest = len(client_ids) - self.hostile(len(client_ids))
        if self.kept is None or self.kept <= honest:
            return super().refusal(client_ids)
        return f"federation.aggregation.kept must be at most n - f = {honest} of {len(client_ids)}, got {self.kept}"

    def combined(self) -> State:
        return self.of_the_best(self.kept or len(self.states) - self.f)

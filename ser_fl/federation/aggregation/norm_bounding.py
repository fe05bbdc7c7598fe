"""A mean of updates none of which is larger than a bound, and noise."""

from ser_fl.federation.aggregation.centred_clipping import CentredClipping
from ser_fl.federation.aggregation.robust import with_noise
from ser_fl.runs.records import State


class NormBounding(CentredClipping):
    """Mean of changes, each cut down to a largest norm, and Gaussian noise on it (Sun et al., arXiv 1911.07963, section
    4: norm thresholding and weak differential privacy); radius = inf without noise is the plain mean.

    Deviation: clients weigh alike, there by utterances. It needs no majority, since it drops nobody: f hostile clients
    move the model by f / n of the bound at most. Of a given radius it keeps no update.

    Args:
        radius: M, of the whole change in L2; None: the median of the round's norms, which needs an honest majority.
        noise: standard deviation of what is added to every cell but counters.
        seed: of the noise, with the round.
    """

    name = "norm_bounding"
    per_hostile = 0

    def __init__(self, radius: float | None = None, noise: float = 0.0, seed: int = 0) -> None:
        super().__init__(0.0, radius)
        self.noise, self.seed = noise, seed

    def combined(self) -> State:
        return with_noise(self, super().combined(), self.noise, self.seed)

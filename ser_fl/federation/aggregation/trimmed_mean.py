"""The mean of each cell without its extremes."""

from functools import partial

from ser_fl.federation.aggregation.robust import Gathered, middle
from ser_fl.runs.records import State


class TrimmedMean(Gathered):
    """Mean of each cell over clients without the f smallest and the f largest (Yin et al., arXiv 1803.01498, definition
    2 and algorithm 1, option II, with beta = `hostile_share`); f = 0 is the plain mean.

    Deviation: of models after local epochs in place of gradients. It needs n >= 2f + 1, keeps all updates, and weighs
    all clients alike.
    """

    name = "trimmed_mean"

    def combined(self) -> State:
        return self.by_cell(partial(middle, dropped=self.f))

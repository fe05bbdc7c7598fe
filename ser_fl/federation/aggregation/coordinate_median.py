"""The median of each cell."""

from functools import partial

from ser_fl.federation.aggregation.robust import Gathered, middle
from ser_fl.runs.records import State


class CoordinateMedian(Gathered):
    """Median of each cell over clients, the mean of the two middle ones of an even number (Yin et al., arXiv
    1803.01498, definition 1 and algorithm 1, option I).

    Deviation: of models after local epochs in place of gradients; the two differ by the received model alone. It needs
    n >= 2f + 1, keeps all updates, and weighs all clients alike.
    """

    name = "median"

    def combined(self) -> State:
        return self.by_cell(partial(middle, dropped=(len(self.states) - 1) // 2))

"""The mean of what clients send, where all are trusted."""

import torch

from ser_fl.federation.aggregation.base import Aggregation
from ser_fl.runs.records import ClientUpdate, State


class RunningMean:
    """A weighted mean of states as a running sum, so that none is kept.

    In float64 and in the order of the cohort, so that the bits do not depend on who finished first. Counters (integers
    such as batch norm's ``num_batches_tracked``) take the largest value.
    """

    def __init__(self) -> None:
        self._sums: State = {}
        self._types: dict[str, torch.dtype] = {}
        self.weight: float = 0

    def add(self, state: State, weight: float) -> None:
        self.weight += weight
        for name, tensor in ((name, tensor.detach()) for name, tensor in state.items()):
            if not tensor.is_floating_point():
                self._sums[name] = torch.maximum(self._sums.get(name, tensor), tensor)
                continue
            if name not in self._sums:
                self._sums[name] = torch.zeros_like(tensor, dtype=torch.float64)
            self._sums[name] += tensor.double() * weight
            self._types[name] = tensor.dtype

    def result(self) -> State:
        return {
            name: (tensor / self.weight).to(self._types[name]) if name in self._types else tensor
            for name, tensor in self._sums.items()
        }


class WeightedMean(Aggregation):
    """Mean of full states, weighted by utterances (FedAvg: McMahan et al., arXiv 1602.05629, algorithm 1).

    Parameters and running statistics (else it would be FedBN) are averaged. It trusts every client, and what it says of
    its utterances: one of them can make the mean anything. No update is kept.
    """

    def __init__(self) -> None:
        self._mean = RunningMean()
        self._counts: dict[str, int] = {}

    def add(self, update: ClientUpdate) -> None:
        self._mean.add(update.state, update.num_examples)
        self._counts[update.client_id] = update.num_examples

    def result(self) -> State:
        self._shares = {client_id: count / self._mean.weight for client_id, count in self._counts.items()}
        return self._mean.result()

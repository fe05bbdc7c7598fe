"""How the updates of a round become one model state."""

from abc import ABC, abstractmethod

import torch

from ser_fl.runs.records import ClientUpdate, State


class Aggregation(ABC):
    """Takes in the updates of one round, in the order of the cohort, and gives one state. Each round has a copy of the
    algorithm's object: it never needs to forget.
    """

    @abstractmethod
    def add(self, update: ClientUpdate) -> None:
        """Take a client in. Its tensors have the names, shapes and types of the model's and are finite."""

    @abstractmethod
    def result(self) -> State:
        """What was added amounts to, with the names, shapes and types of the model; at least one was."""


class WeightedMean(Aggregation):
    """Mean of full states, weighted by utterances (FedAvg: McMahan et al., arXiv 1602.05629, algorithm 1).

    A running sum, so that no update is kept. Parameters and running statistics (else it would be FedBN) are averaged,
    in float64 and in the order of the cohort, so that the bits do not depend on who finished first. Counters (integers
    such as batch norm's ``num_batches_tracked``) take the largest value.
    """

    def __init__(self) -> None:
        self._sums: State = {}
        self._types: dict[str, torch.dtype] = {}
        self._num_examples = 0

    def add(self, update: ClientUpdate) -> None:
        self._num_examples += update.num_examples
        for name, tensor in ((name, tensor.detach()) for name, tensor in update.state.items()):
            if not tensor.is_floating_point():
                self._sums[name] = torch.maximum(self._sums.get(name, tensor), tensor)
                continue
            if name not in self._sums:
                self._sums[name] = torch.zeros_like(tensor, dtype=torch.float64)
            self._sums[name] += tensor.double() * update.num_examples
            self._types[name] = tensor.dtype

    def result(self) -> State:
        return {
            name: (tensor / self._num_examples).to(self._types[name]) if name in self._types else tensor
            for name, tensor in self._sums.items()
        }

"""How updates become one model: which can be averaged, and how they are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ser_fl.records import ClientRecord, ClientUpdate, State

Outcome = ClientUpdate | str
"""An update, or why there is none: the traceback of the client that raised, or how its process ended."""


def find_problem(update: ClientUpdate, reference: State) -> str | None:
    """Why an update cannot be averaged, or None.

    Other names, shapes or types than the model's, anything that is not finite, or no utterance. An optimiser state that
    is not finite is a reason too: it would come back with every later round.
    """
    if update.state.keys() != reference.keys():
        return f"its state has other entries: {sorted(update.state.keys() ^ reference.keys())[:3]}"
    for name, tensor in update.state.items():
        if tensor.shape != reference[name].shape:
            return f"{name} has shape {tuple(tensor.shape)}, expected {tuple(reference[name].shape)}"
        if tensor.dtype != reference[name].dtype:
            return f"{name} is of type {tensor.dtype}, expected {reference[name].dtype}"
        if not torch.isfinite(tensor).all():
            return f"{name} is not finite"
    for name, tensor in update.optimiser_state.items():
        if not torch.isfinite(tensor).all():
            return f"its optimiser's {name} is not finite"
    if not (math.isfinite(update.train_loss) and math.isfinite(update.update_norm)):
        return f"its training loss is {update.train_loss:g}, its update's norm {update.update_norm:g}: not finite"
    if update.num_examples < 1:
        return "it trained on no utterance"
    return None


class FedAvg:
    """Average of full states, weighted by utterances (FedAvg: McMahan et al., arXiv 1602.05629, algorithm 1).

    A running sum, so that no update is kept. Parameters and running statistics are averaged (without the statistics it
    would be FedBN), in float64 and in the order in which updates are added, so that the bits do not depend on who
    finished first. Counters (integer entries such as batch norm's ``num_batches_tracked``) take the largest value.
    """

    def __init__(self) -> None:
        self._sums: State = {}
        self._types: dict[str, torch.dtype] = {}
        self._num_examples = 0

    def add(self, update: ClientUpdate) -> None:
        """Take a client in; all that are added have the same entries and shapes."""
        self._num_examples += update.num_examples
        for name, tensor in update.state.items():
            if not tensor.is_floating_point():
                self._sums[name] = torch.maximum(self._sums.get(name, tensor), tensor)
                continue
            if name not in self._sums:
                self._sums[name] = torch.zeros_like(tensor, dtype=torch.float64)
            self._sums[name] += tensor.double() * update.num_examples
            self._types[name] = tensor.dtype

    def result(self) -> State:
        """The average of what was added, in the types of the updates; at least one was."""
        return {
            name: (tensor / self._num_examples).to(self._types[name]) if name in self._types else tensor
            for name, tensor in self._sums.items()
        }


def with_momentum(received: State, average: State, velocity: State, momentum: float) -> tuple[State, State]:
    """One step of the server with momentum (FedAvgM: Hsu et al., arXiv 1909.06335, section 4.2).

    v' = momentum * v + (average - received), model = received + v'. momentum = 0 would be FedAvg.

    Args:
        received: the model that the clients started from.
        average: what `FedAvg` made of their updates.
        velocity: v, for the parameters alone; what it does not name (running statistics, counters) is taken from
            ``average`` as it is. Empty for plain FedAvg.
        momentum: share of the last velocity that is carried on, 0 <= momentum < 1.

    Returns:
        The new model and v'.
    """
    onward = {name: momentum * before + (average[name] - received[name]) for name, before in velocity.items()}
    return average | {name: received[name] + step for name, step in onward.items()}, onward


def averaged_over_rounds(average: State, model: State, num_averaged: int, decay: float) -> State:
    """One round more in the average of a model over rounds (weight averaging: Izmailov et al., arXiv 1803.05407).

    a' = a + (model - a) * max(1 - decay, 1 / (n + 1)): the plain mean at first, an exponential one later, so that
    the first rounds are forgotten. Averages have flatter minima than any of their models, and overfit adversarial
    training less (Gowal et al., arXiv 2010.03593, section 4.4).

    Args:
        average: a, of n models; empty for n = 0.
        model: the next one; its counters are taken as they are, its running statistics averaged like parameters.
        num_averaged: n.
        decay: share of a that stays in the long run, 0 < decay < 1.
    """
    share = max(1 - decay, 1 / (num_averaged + 1))
    return {
        name: average[name] + (tensor - average[name]) * share
        if share < 1 and tensor.is_floating_point()
        else tensor.clone()  # a checkpoint refuses tensors that share memory
        for name, tensor in model.items()
    }


def weighted_loss(clients: Sequence[ClientRecord]) -> float:
    """Training loss over the round's utterances."""
    total = sum(client.num_examples for client in clients)
    return sum(client.train_loss * client.num_examples for client in clients) / total

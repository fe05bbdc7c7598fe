"""How updates become one model: which can be averaged, and how they are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ser_fl.errors import LONGEST_VALUE, one_line, shown
from ser_fl.runs.records import ClientRecord, ClientUpdate, State

Outcome = ClientUpdate | str
"""An update, or why there is none: the traceback of the client that raised, or how its process ended."""


MOST_EXAMPLES = 2**31
"""Utterances that one client can claim: with more, its weight and no data of others would make the average."""


def find_problem(update: ClientUpdate, reference: State) -> str | None:
    """Why an update cannot be averaged, or None; whatever a client sends, this is one line.

    Other names, shapes, types or layouts than the model's, anything that is not finite, a figure that is no number, or
    no utterance. An optimiser state that is not finite is a reason too: it would come back with every later round.
    """
    return (
        _problem_of_state(update.state, reference)
        or _problem_of_optimiser(update.optimiser_state)
        or _problem_of_figures(update)
    )


def _problem_of_state(state: object, reference: State) -> str | None:
    if not isinstance(state, dict):
        return f"its state is of type {type(state).__name__}, expected tensors by name"
    if state.keys() != reference.keys():
        return f"its state has other entries: {shown(sorted(state.keys() ^ reference.keys(), key=str)[:3])}"
    for name, expected in reference.items():
        tensor = state[name]
        if (problem := _problem_of_tensor(tensor)) is not None:
            return f"{name} {problem}"
        if tensor.shape != expected.shape:
            return f"{name} has shape {tuple(tensor.shape)}, expected {tuple(expected.shape)}"
        if tensor.dtype != expected.dtype:
            return f"{name} is of type {tensor.dtype}, expected {expected.dtype}"
    return None


def _problem_of_optimiser(state: object) -> str | None:
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        return f"its optimiser's state is of type {type(state).__name__}, expected tensors by name"
    for name, tensor in state.items():
        if (problem := _problem_of_tensor(tensor)) is not None:
            return f"its optimiser's {one_line(name, LONGEST_VALUE)} {problem}"
    return None


def _problem_of_tensor(tensor: object) -> str | None:
    """Why it is no plain tensor of finite numbers, or None."""
    if not isinstance(tensor, torch.Tensor):
        return f"is of type {type(tensor).__name__}, expected a tensor"
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        return f"is a {'meta' if tensor.is_meta else 'quantised' if tensor.is_quantized else tensor.layout} tensor"
    return None if torch.isfinite(tensor).all() else "is not finite"


def _problem_of_figures(update: ClientUpdate) -> str | None:
    figures = {
        "training loss": update.train_loss,
        "update's norm": update.update_norm,
        "time in seconds": update.seconds,
    }
    for name, figure in figures.items():
        if type(figure) is not float or not math.isfinite(figure):
            return f"its {name} is {shown(figure)}: {'not finite' if type(figure) is float else 'not a number'}"
    if type(update.num_examples) is not int or update.num_examples > MOST_EXAMPLES:
        return f"its num_examples is {shown(update.num_examples)}, expected a whole number up to {MOST_EXAMPLES}"
    if update.num_examples < 1:
        return f"it trained on no utterance (num_examples={shown(update.num_examples)})"
    if not _is_times(update.nanoseconds):
        return f"its nanoseconds are {shown(update.nanoseconds)}, expected whole numbers by part"
    return None


def _is_times(given: object) -> bool:
    return isinstance(given, dict) and all(type(name) is str and type(time) is int for name, time in given.items())


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
        for name, tensor in ((name, tensor.detach()) for name, tensor in update.state.items()):
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

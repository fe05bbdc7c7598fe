"""How updates become one model: which are admitted, and how they are averaged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch

from ser_fl.records import ClientFailure, ClientUpdate, State

Outcome = ClientUpdate | str
"""An update, or why there is none: the traceback of the client that raised, or how its process ended."""


def admit(outcomes: Iterable[tuple[str, Outcome]], reference: State) -> tuple[list[ClientUpdate], list[ClientFailure]]:
    """Sort clients' outcomes into updates that can be averaged, and failures, each with its reason."""
    updates: list[ClientUpdate] = []
    failures: list[ClientFailure] = []
    for client_id, outcome in outcomes:
        problem = outcome if isinstance(outcome, str) else find_problem(outcome, reference)
        if isinstance(outcome, ClientUpdate) and problem is None:
            updates.append(outcome)
        else:
            failures.append(ClientFailure(client_id=client_id, error=str(problem)))
    return updates, failures


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


def fedavg(updates: Sequence[ClientUpdate]) -> State:
    """Average of full states, weighted by utterances (FedAvg: McMahan et al., arXiv 1602.05629, algorithm 1).

    Parameters and running statistics are averaged (without the statistics it would be FedBN), in float64 and in the
    order of ``updates``, so that the bits do not depend on who finished first. Counters (integer entries such as batch
    norm's ``num_batches_tracked``) take the largest value.

    Args:
        updates: at least one; all with the same entries and shapes.
    """
    total = sum(update.num_examples for update in updates)
    average: State = {}
    for name, first in updates[0].state.items():
        if not first.is_floating_point():
            average[name] = torch.stack([update.state[name] for update in updates]).amax(0)
            continue
        running = torch.zeros_like(first, dtype=torch.float64)
        for update in updates:
            running += update.state[name].double() * update.num_examples
        average[name] = (running / total).to(first.dtype)
    return average


def with_momentum(received: State, average: State, velocity: State, momentum: float) -> tuple[State, State]:
    """One step of the server with momentum (FedAvgM: Hsu et al., arXiv 1909.06335, section 4.2).

    v' = momentum * v + (average - received), model = received + v'. momentum = 0 would be FedAvg.

    Args:
        received: the model that the clients started from.
        average: what `fedavg` made of their updates.
        velocity: v, for the parameters alone; what it does not name (running statistics, counters) is taken from
            ``average`` as it is. Empty for plain FedAvg.
        momentum: share of the last velocity that is carried on, 0 <= momentum < 1.

    Returns:
        The new model and v'.
    """
    onward = {name: momentum * before + (average[name] - received[name]) for name, before in velocity.items()}
    return average | {name: received[name] + step for name, step in onward.items()}, onward


def weighted_loss(updates: Sequence[ClientUpdate]) -> float:
    """Training loss over the round's utterances."""
    total = sum(update.num_examples for update in updates)
    return sum(update.train_loss * update.num_examples for update in updates) / total

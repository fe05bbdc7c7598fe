"""What comes back from the clients of a round, one after the other, and which of it can be averaged."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ser_fl.errors import LONGEST_VALUE, one_line, shown
from ser_fl.federation.server import Server
from ser_fl.runs.records import ClientFailure, ClientRecord, ClientUpdate, State
from ser_fl.runs.redaction import public_text

Outcome = ClientUpdate | str
"""An update, or why there is none: the traceback of the client that raised, or how its process ended."""
MOST_EXAMPLES = 2**31
"""Utterances that one client can claim: with more, its weight and no data of others would make the average."""


@dataclass(slots=True, kw_only=True)
class ClientResults:
    """Who came back with what. Of an update only its figures stay: its tensors are the server's to add up."""

    round: int
    reference: State
    """The model that clients received: what updates must look like."""
    server: Server
    folders: tuple[str, ...] = ()
    """Of the data and the run: what clients say names them by their last names alone."""
    records: list[ClientRecord] = field(default_factory=list)
    failures: list[ClientFailure] = field(default_factory=list)
    nanoseconds: list[dict[str, int]] = field(default_factory=list)
    """By part, of every client whose update is averaged."""

    def take(self, client_id: str, outcome: Outcome) -> None:
        """Hand an update on to the server, or note why there is none that can be averaged."""
        problem = outcome if isinstance(outcome, str) else find_problem(outcome, self.reference)
        if isinstance(outcome, str) or problem is not None:
            self.failures.append(ClientFailure(client_id=client_id, error=public_text(str(problem), self.folders)))
            return
        self.nanoseconds.append(outcome.nanoseconds)
        self.server.add(outcome)
        size = sum(tensor.nbytes for tensor in outcome.state.values())
        self.records.append(
            ClientRecord(round=self.round, client_id=client_id, bytes_down=size, bytes_up=size, **outcome.figures())
        )

    @property
    def train_loss(self) -> float:
        """Over the round's utterances."""
        total = sum(client.num_examples for client in self.records)
        return sum(client.train_loss * client.num_examples for client in self.records) / total


def find_problem(update: ClientUpdate, reference: State) -> str | None:
    """Why an update cannot be averaged, or None; whatever a client sends, this is one line.

    Other names, shapes, types or layouts than the model's, anything that is not finite, a figure that is no number, or
    no utterance. An optimiser state that is not finite is a reason too: it would come back with every later round.
    """
    return next(_problems(update, reference), None)


def _problems(update: ClientUpdate, reference: State) -> Iterator[str]:
    state: Any = update.state  # whatever a client sent
    optimiser: Any = update.optimiser_state
    times, figures = update.nanoseconds, update.figures()
    if not isinstance(state, dict):
        yield f"its state is of type {type(state).__name__}, expected tensors by name"
        return
    if state.keys() != reference.keys():
        yield f"its state has other entries: {shown(sorted(state.keys() ^ reference.keys(), key=str)[:3])}"
        return
    for name, expected in reference.items():
        yield from _problems_of_tensor(name, state[name])
        if state[name].shape != expected.shape:
            yield f"{name} has shape {tuple(state[name].shape)}, expected {tuple(expected.shape)}"
        if state[name].dtype != expected.dtype:
            yield f"{name} is of type {state[name].dtype}, expected {expected.dtype}"
    if not isinstance(optimiser, dict) or not all(isinstance(name, str) for name in optimiser):
        yield f"its optimiser's state is of type {type(optimiser).__name__}, expected tensors by name"
        return
    for name, tensor in optimiser.items():
        yield from _problems_of_tensor(f"its optimiser's {one_line(name, LONGEST_VALUE)}", tensor)
    count = figures.pop("num_examples")
    for name, figure in figures.items():
        if type(figure) is not float or not math.isfinite(figure):
            yield f"its {name} is {shown(figure)}: {'not finite' if type(figure) is float else 'not a number'}"
    if type(count) is not int or count > MOST_EXAMPLES:
        yield f"its num_examples is {shown(count)}, expected a whole number up to {MOST_EXAMPLES}"
    elif count < 1:
        yield f"it trained on no utterance (num_examples={shown(count)})"
    if not isinstance(times, dict) or not all(type(n) is str and type(t) is int for n, t in times.items()):
        yield f"its nanoseconds are {shown(times)}, expected whole numbers by part"


def _problems_of_tensor(name: str, tensor: object) -> Iterator[str]:
    """Why it is no plain tensor of finite numbers."""
    if not isinstance(tensor, torch.Tensor):
        yield f"{name} is of type {type(tensor).__name__}, expected a tensor"
    elif tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = "meta" if tensor.is_meta else "quantised" if tensor.is_quantized else tensor.layout
        yield f"{name} is a {kind} tensor"
    elif not torch.isfinite(tensor).all():
        yield f"{name} is not finite"

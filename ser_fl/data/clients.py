"""Who holds which training utterances: the clients of a federation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from heapq import heapify, heapreplace

import torch
from torch import Generator, Tensor

from ser_fl.config.data import ClientsConfig
from ser_fl.data.splits import BrokenPromise, Indices
from ser_fl.data.utterance import Utterance
from ser_fl.errors import UserError
from ser_fl.randomness import generator

EVERYBODY = "all"
"""Id of a client that holds everything."""


def assign_clients(
    utterances: Sequence[Utterance], train: Indices, config: ClientsConfig, *, seed: int
) -> dict[str, Indices]:
    """Spread the training utterances over clients: client id to its utterances, each in exactly one client.

    Raises:
        UserError: more clients than utterances, speakers or sessions, or sessions asked of a corpus without any.
        BrokenPromise: an utterance would be in two clients, in none, or would not be of the training part.
    """
    if config.by in ("iid", "dirichlet"):
        clients = _drawn_clients(utterances, train, config, seed)
    else:
        clients = natural_clients(utterances, train, config)
    _check_assigned(clients, train, utterances)
    if config.by in ("iid", "dirichlet"):
        return clients
    return {name: clients[name] for name in capped(sorted(clients), config)}


def natural_clients(utterances: Sequence[Utterance], train: Indices, config: ClientsConfig) -> dict[str, Indices]:
    """A client for each speaker or session, however many there are.

    Raises:
        UserError: an utterance is of no session.
    """
    grouped: dict[str, list[int]] = {}
    for index in train:
        key = utterances[index].session if config.by == "session" else utterances[index].speaker
        if key is None:
            raise UserError(f"clients.by=session: utterance {utterances[index].utterance_id!r} has no session")
        grouped.setdefault(key, []).append(index)
    return {name: tuple(grouped[name]) for name in sorted(grouped)}


def capped(names: Sequence[str], config: ClientsConfig) -> tuple[str, ...]:
    """The first ``clients.num_clients`` of the speakers or sessions; all of them where it is null.

    Raises:
        UserError: there are fewer.
    """
    if config.num_clients is not None and config.num_clients > len(names):
        raise UserError(
            f"clients.num_clients must be at most {len(names)} (one a {config.by}), got {config.num_clients}"
        )
    return tuple(names[: config.num_clients])


def _drawn_clients(
    utterances: Sequence[Utterance], train: Indices, config: ClientsConfig, seed: int
) -> dict[str, Indices]:
    """iid: shuffled and dealt out. dirichlet: each emotion's utterances in proportions drawn from Dirichlet(alpha).

    A client that the Dirichlet draw leaves empty gets one utterance of the largest client.
    """
    num_clients = config.num_clients or len({utterances[index].speaker for index in train})
    if num_clients > len(train):
        raise UserError(f"clients.num_clients must be at most the {len(train)} training utterances, got {num_clients}")
    stream = generator("clients", seed, config.by, num_clients)
    shuffled = [train[i] for i in torch.randperm(len(train), generator=stream).tolist()]
    if config.by == "iid":
        dealt = [shuffled[k::num_clients] for k in range(num_clients)]
    else:
        dealt = [[] for _ in range(num_clients)]
        for emotion in sorted({utterances[index].emotion for index in train}):
            of_emotion = [index for index in shuffled if utterances[index].emotion == emotion]
            shares = _dirichlet(num_clients, config.dirichlet_alpha, stream)
            bounds = (shares.cumsum(0) * len(of_emotion)).round().long().tolist()
            for client, (start, stop) in enumerate(zip([0, *bounds[:-1]], bounds, strict=True)):
                dealt[client] += of_emotion[start:stop]
        _fill_empty(dealt)
    if num_clients == 1:
        return {EVERYBODY: tuple(sorted(dealt[0]))}
    width = len(str(num_clients - 1))
    return {f"client{k:0{width}d}": tuple(sorted(part)) for k, part in enumerate(dealt)}


def _fill_empty(dealt: list[list[int]]) -> None:
    """Give every empty part one utterance of the part that is the largest by then, of several the first."""
    by_size = [(-len(part), client) for client, part in enumerate(dealt)]
    heapify(by_size)
    for part in [part for part in dealt if not part]:
        negative_size, largest = by_size[0]
        part.append(dealt[largest].pop())
        heapreplace(by_size, (negative_size + 1, largest))


def _dirichlet(size: int, alpha: float, stream: Generator) -> Tensor:
    """Shares from a symmetric Dirichlet, float64.

    By logarithms of Gamma draws, which underflow for a small alpha: log Gamma(a) = log Gamma(a + 1) + log(U) / a.
    """
    draws = torch._standard_gamma(torch.full((size,), alpha + 1, dtype=torch.float64), generator=stream)
    uniform = torch.rand(size, dtype=torch.float64, generator=stream)
    return torch.softmax(draws.log() + uniform.log() / alpha, dim=0)


def _check_assigned(clients: Mapping[str, Indices], train: Indices, utterances: Sequence[Utterance]) -> None:
    """Every training utterance in one client, and no other utterance in any."""
    assigned = Counter(index for indices in clients.values() for index in indices)
    wanted = set(train)
    for index in sorted({*assigned, *wanted}):
        name = utterances[index].utterance_id
        if index not in wanted:
            raise BrokenPromise(f"{name} is in a client and not in the training part")
        if assigned[index] > 1:
            raise BrokenPromise(f"{name} is in {assigned[index]} clients")
        if not assigned[index]:
            raise BrokenPromise(f"{name} is of the training part and in no client")

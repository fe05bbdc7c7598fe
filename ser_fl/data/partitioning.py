"""How the training utterances of a corpus are spread over clients."""

from collections import Counter
from collections.abc import Sequence
from heapq import heapify, heapreplace

import torch

from ser_fl.config.data import ClientsConfig
from ser_fl.data.splits import BrokenPromise, Indices, holders
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
    is_drawn = config.by in ("iid", "dirichlet")
    if is_drawn:
        clients = _drawn_clients(utterances, train, config, seed)
    else:
        clients = natural_clients(utterances, train, config)
    assigned, wanted = Counter(index for indices in clients.values() for index in indices), set(train)
    for index in sorted({*assigned, *wanted}):
        name = utterances[index].utterance_id
        if index not in wanted:
            raise BrokenPromise(f"{name} is in a client and not in the training part")
        if assigned[index] > 1:
            raise BrokenPromise(f"{name} is in {assigned[index]} clients")
        if not assigned[index]:
            raise BrokenPromise(f"{name} is of the training part and in no client")
    return clients if is_drawn else {name: clients[name] for name in capped(sorted(clients), config)}


def natural_clients(utterances: Sequence[Utterance], train: Indices, config: ClientsConfig) -> dict[str, Indices]:
    """A client for each speaker or session, however many; a `UserError` where an utterance is of no session."""
    if config.by != "session":
        return holders(utterances, train)
    for index in train:
        if utterances[index].session is None:
            raise UserError(f"clients.by=session: utterance {utterances[index].utterance_id!r} has no session")
    return holders(utterances, train, "session")


def capped(names: Sequence[str], config: ClientsConfig) -> tuple[str, ...]:
    """The first ``clients.num_clients`` speakers or sessions; all where it is null; a `UserError` for too many."""
    if config.num_clients is not None and config.num_clients > len(names):
        raise UserError(
            f"clients.num_clients must be at most {len(names)} (one a {config.by}), got {config.num_clients}"
        )
    return tuple(names[: config.num_clients])


def _drawn_clients(
    utterances: Sequence[Utterance], train: Indices, config: ClientsConfig, seed: int
) -> dict[str, Indices]:
    """iid: shuffled and dealt out. dirichlet: each emotion's utterances in proportions drawn from Dirichlet(alpha).

    Shares are softmax of logarithms of Gamma draws, in float64, since the draws themselves underflow for a small alpha:
    log Gamma(a) = log Gamma(a + 1) + log(U) / a. A client that stays empty gets one utterance of the largest client.
    """
    num_clients, alpha = (
        config.num_clients or len({utterances[index].speaker for index in train}),
        config.dirichlet_alpha,
    )
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
            draws = torch._standard_gamma(torch.full((num_clients,), alpha + 1, dtype=torch.float64), generator=stream)
            uniform = torch.rand(num_clients, dtype=torch.float64, generator=stream)
            shares = torch.softmax(draws.log() + uniform.log() / alpha, dim=0)
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

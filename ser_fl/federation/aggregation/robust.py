"""What rules that withstand hostile clients share: how many they withstand, and how far updates lie from each other.

None of them weighs by utterances, since a hostile client claims as many as it likes. Distances, norms and angles are of
all entries but counters, as changes of the received model: a rule that looked at parameters alone would let poisoned
running statistics pass. Statistics come in other units than weights, so a running mean counts in deviations, and a
running variance in variances, of the received layer (the mean over its channels); the papers have no batch norm.
"""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import count

import torch
from torch import Tensor, split

from ser_fl.federation.aggregation.base import Aggregation
from ser_fl.federation.aggregation.weighted_mean import RunningMean
from ser_fl.randomness import generator
from ser_fl.runs.records import ClientUpdate, State

_MOST_CELLS = 1 << 22
"""Cells that are looked at over all clients at once."""
_VARIANCE = "running_var"


class Robust(Aggregation):
    """A rule against hostile clients, f = `hostile_share` * n of n, rounded up, less those that are known and out
    already. It needs n >= `per_hostile` * f + `beside`.
    """

    name: str
    """In `federation.aggregation`."""
    per_hostile = 2
    beside = 1

    def __init__(self, hostile_share: float = 0.2) -> None:
        if not 0 <= hostile_share < (most := 1 / max(self.per_hostile, 1)):
            raise ValueError(f"hostile_share must be at least 0 and below {most:g}, got {hostile_share}")
        self.hostile_share = hostile_share

    def hostile(self, num_clients: int) -> int:
        """f, of so many clients."""
        of_all = math.ceil(self.hostile_share * (num_clients + self.known_hostile) - 1e-9)
        return max(0, of_all - self.known_hostile)

    def needs(self, num_clients: int) -> int:
        """Clients that it takes to withstand f of so many."""
        return self.per_hostile * self.hostile(num_clients) + self.beside

    def refusal(self, client_ids: Sequence[str]) -> str | None:
        if (given := len(client_ids)) >= self.needs(given):
            return None
        least = next(more for more in count(given) if more >= self.needs(more))
        return (
            f"federation.aggregation={self.name} needs n >= {self.per_hostile}f + {self.beside} clients a round, where "
            f"f = {self.hostile(given)} of n = {given} may be hostile (hostile_share={self.hostile_share:g}): have "
            f"{least} clients, or a smaller federation.aggregation.hostile_share"
        )

    def start(self, received: State, round_number: int) -> None:
        super().start(received, round_number)
        self.names = [name for name, tensor in received.items() if tensor.is_floating_point()]
        self.units = dict.fromkeys(self.names, 1.0)
        for name in self.names:
            if name.endswith(_VARIANCE) and (variance := float(received[name].double().mean())) > 0:
                mean = name.removesuffix(_VARIANCE) + "running_mean"
                self.units |= {name: variance} | ({mean: math.sqrt(variance)} if mean in received else {})

    def change(self, state: State, name: str) -> Tensor:
        """Of an entry, flat, in float64 and in its unit."""
        return ((state[name].detach().double() - self.received[name].double()) / self.units[name]).flatten()

    def norm(self, state: State) -> float:
        """L2, of the whole change."""
        return math.sqrt(sum(float(self.change(state, name).square().sum()) for name in self.names))

    def result(self) -> State:
        """A mean that leaves the hull of what was averaged may have a variance below 0, which is raised to that."""
        state = self.combined()
        low = [name for name, tensor in state.items() if name.endswith(_VARIANCE) and tensor.min() < 0]
        return state | {name: state[name].clamp(min=0) for name in low}

    def combined(self) -> State:
        """The result; `_shares` are known afterwards."""
        raise NotImplementedError


class Gathered(Robust):
    """A rule that looks at all updates at once: it keeps them."""

    def __init__(self, hostile_share: float = 0.2) -> None:
        super().__init__(hostile_share)
        self.states: list[State] = []
        self.client_ids: list[str] = []

    def add(self, update: ClientUpdate) -> None:
        self.states.append(update.state)
        self.client_ids.append(update.client_id)

    @property
    def f(self) -> int:
        return self.hostile(len(self.states))

    @cached_property
    def products(self) -> Tensor:
        """(N, N): inner products of the clients' changes, which hold all norms, distances and angles."""
        products = torch.zeros(len(self.states), len(self.states), dtype=torch.float64)
        for name in self.names:
            step = max(1, _MOST_CELLS // len(self.states))
            for blocks in zip(*(split(self.change(state, name), step) for state in self.states), strict=True):
                change_NB = torch.stack(blocks)
                products += change_NB @ change_NB.T
        return (products + products.T) / 2

    @property
    def norms(self) -> Tensor:
        """(N,): L2 norms of the changes."""
        return self.products.diagonal().sqrt()

    @cached_property
    def distances(self) -> Tensor:
        """(N, N): squared L2 distances between the updates."""
        squares_N = self.products.diagonal()
        return (squares_N[:, None] + squares_N - 2 * self.products).clamp(min=0)

    def distances_from(self, weights_N: Tensor) -> Tensor:
        """(N,): L2 distances of the updates from the received model and these multiples of their changes."""
        squares_N = self.products.diagonal() - 2 * self.products @ weights_N + weights_N @ self.products @ weights_N
        return squares_N.clamp(min=0).sqrt()

    def mixture(self, weights: Sequence[float], *, of: float | None = None) -> State:
        """Mean of the clients with these weights, and of the received model, where they do not add up to ``of``."""
        mean, whole = RunningMean(), sum(weights) if of is None else of
        for state, weight in zip(self.states, weights, strict=True):
            if weight:
                mean.add(state, weight)
        if mean.weight != whole:
            mean.add(self.received, whole - mean.weight)
        self._shares = {name: weight / whole for name, weight in zip(self.client_ids, weights, strict=True)}
        return mean.result()

    def by_cell(self, keep: Callable[[Tensor], Tensor], among: Sequence[int] | None = None) -> State:
        """Mean of each cell over the clients that ``keep``, (N, B) to booleans (N, B), says; of some clients alone, or
        of all. Counters take the largest value. A client's share is that of the cells.
        """
        chosen = range(len(self.states)) if among is None else among
        states, result, cells = [self.states[index] for index in chosen], State(), 0
        shares = torch.zeros(len(chosen), dtype=torch.float64)
        for name, received in self.received.items():
            if name not in self.names:
                result[name] = torch.stack([state[name] for state in states]).amax(0)
                continue
            means, step = [], max(1, _MOST_CELLS // len(states))
            for blocks in zip(*(split(state[name].detach().flatten(), step) for state in states), strict=True):
                values_NB = torch.stack(blocks).double()
                kept_NB = keep(values_NB)
                total_B = torch.zeros(values_NB.shape[1], dtype=torch.float64)
                for value_B, kept_B in zip(values_NB, kept_NB, strict=True):  # in the order of the cohort
                    total_B += value_B * kept_B
                means.append(total_B / kept_NB.sum(0))
                shares = shares + (kept_NB.double() / kept_NB.sum(0)).sum(1)
            result[name], cells = torch.cat(means).view(received.shape).to(received.dtype), cells + received.numel()
        found = {self.client_ids[index]: float(share) / cells for index, share in zip(chosen, shares, strict=True)}
        self._shares = dict.fromkeys(self.client_ids, 0.0) | found
        return result


def middle(values_NB: Tensor, dropped: int) -> Tensor:
    """Which values of a cell are neither among the smallest nor among the largest ``dropped``."""
    order_NB = values_NB.argsort(dim=0, stable=True)
    kept_NB = torch.zeros_like(values_NB, dtype=torch.bool)
    return kept_NB.scatter_(0, order_NB[dropped : len(order_NB) - dropped], True)


def with_noise(rule: Robust, state: State, deviation: float, seed: int) -> State:
    """Gaussian noise on every cell but counters, in the unit of its entry, drawn by (seed, round)."""
    if not deviation:
        return state
    stream, noisy = generator(seed, "aggregation", rule.round_number), dict(state)
    for name in rule.names:
        drawn = torch.randn(state[name].shape, generator=stream, dtype=torch.float64)
        noisy[name] = (state[name].double() + drawn * deviation * rule.units[name]).to(state[name].dtype)
    return noisy

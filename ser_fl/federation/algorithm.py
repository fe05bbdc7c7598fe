"""The server's algorithm: what clients receive, how their updates are put together, where the model goes from there.

FedSGD is no class of its own: `federation.local_batches=1` makes it of `FedAvg` or `FedAdam`.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ser_fl.config.schema import Config
from ser_fl.config.training import OptimiserConfig
from ser_fl.errors import UserError
from ser_fl.federation.aggregation import Aggregation, WeightedMean
from ser_fl.files import check_same_form, flattened
from ser_fl.runs.records import ClientUpdate, State

GLOBAL = "global"
"""Owner of the model that all clients share."""


class Algorithm:
    """The server's side of all rounds: FedAvg, unless `step` goes elsewhere. What is carried from round to round
    belongs into `carried`, which is saved with every round and set up in `start`; anything else into `state_dict` and
    `load_state_dict`.
    """

    carries: tuple[str, ...] = ()
    """Names of what is carried, zeros at the start."""
    aggregation: Aggregation = WeightedMean()
    """A copy of it takes in the updates of each round."""
    models: dict[str, State]
    """By owner: one that all share, or one of each client."""
    carried: dict[str, State]
    """By name, such as "exp_avg": one tensor of each parameter."""
    shares: Mapping[str, float] = {}
    """By client, in the last round (`Aggregation.shares`)."""
    _gathered: Aggregation | None = None
    _round = 0

    def start(self, network: nn.Module, client_ids: Sequence[str]) -> None:
        """Before the first round: everybody begins from these weights."""
        self.models = {GLOBAL: dict(network.state_dict())}
        parameters = dict(network.named_parameters())
        self.carried = {
            kind: {name: torch.zeros_like(parameter) for name, parameter in parameters.items()} for kind in self.carries
        }
        self._gathered = None

    def model_for(self, client_id: str) -> State:
        return self.models[GLOBAL]

    def begin(self, round_number: int) -> None:
        """Before the first update of a round."""
        self._gathered, self._round = None, round_number

    def add(self, update: ClientUpdate) -> None:
        """Take in an update of this round, in the order of the cohort; nothing changes before `finish`."""
        if self._gathered is None:
            self._gathered = copy.deepcopy(self.aggregation)
            self._gathered.start(self.models[GLOBAL], self._round)
        self._gathered.add(update)

    def refusal(self, client_ids: Sequence[str], known_hostile: int) -> str | None:
        """Why the updates of these clients, which were added, cannot be aggregated, or None. So many others are known
        to be hostile.
        """
        if self._gathered is None:
            return None
        self._gathered.known_hostile = known_hostile
        return self._gathered.refusal(client_ids)

    def finish(self, round_number: int) -> None:
        """The round's model, from what was added, once at least. A `UserError` says that it has other entries than
        before, or of other shapes or types.
        """
        assert self._gathered is not None
        received, average = self.models[GLOBAL], self._gathered.result()
        self.shares, self._gathered = self._gathered.shares(), None
        self.models[GLOBAL] = self.step(received, average, round_number)
        try:
            check_same_form(self.models[GLOBAL], received)
        except ValueError as error:
            names = f"{type(self).__name__} with {type(self.aggregation).__name__}"
            raise UserError(f"{names} gives another model than clients were given: {error}") from None

    def step(self, received: State, average: State, round_number: int) -> State:
        """The next model: from ``received``, which the clients started from, and ``average``, what the aggregation made
        of their updates, with running statistics and counters.
        """
        return average

    def learning_rate(self, round_number: int) -> float | None:
        """The server's own in a round, of which `optimiser.schedule` then is; None where it has none. Where it has one,
        clients keep their full rate: it takes a client's rate out of the updates again.
        """
        return None

    def state_dict(self) -> State:
        """All that the next round depends on."""
        return flattened({"model": self.models, "carried": self.carried})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from there, after `start`; a `ValueError` names what differs: algorithm, clients or network."""
        check_same_form(state, self.state_dict())
        for kind, states in (("model", self.models), ("carried", self.carried)):
            for owner in states:
                states[owner] = {name: state[f"{kind}/{owner}/{name}"] for name in states[owner]}


class FedAvg(Algorithm):
    """The average is the model (McMahan et al., arXiv 1602.05629, algorithm 1)."""


class FedAvgM(Algorithm):
    """One step of the server with momentum a round (Hsu et al., arXiv 1909.06335, section 4.2).

    v' = momentum * v + (average - received), model = received + v'; 0 <= momentum < 1, and 0 would be FedAvg.
    Parameters alone have a v; running statistics and counters are the average's.
    """

    carries = ("exp_avg",)

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum

    def step(self, received: State, average: State, round_number: int) -> State:
        carried = self.carried["exp_avg"]
        for name, before in carried.items():
            carried[name] = self.momentum * before + (average[name] - received[name])
        return average | {name: received[name] + onward for name, onward in carried.items()}


class FedAdam(Algorithm):
    """One step of the server by Adam a round (FedAdam: Reddi et al., arXiv 2003.00295, algorithm 2).

    With D = average - received: m' = momentum * m + (1 - momentum) * D, v' = second_momentum * v +
    (1 - second_momentum) * D^2, model = received + learning_rate * m^ / (sqrt(v^) + tau). Deviation: v begins at 0 and
    m^ and v^ are m' / (1 - momentum^n) and v' / (1 - second_momentum^n) in round n, as in Adam (Kingma and Ba, arXiv
    1412.6980, algorithm 1); there v begins at tau^2 or above and nothing is corrected. So with FedSGD, where D is the
    weighted mean of the clients' gradients, a round is a step of Adam in one place. Parameters alone have an m and a v.

    Args:
        learning_rate: of a round.
        momentum: share of the mean update that is carried on, 0 <= momentum < 1 (beta 1).
        second_momentum: share of the mean squared update that is carried on, 0 <= second_momentum < 1 (beta 2).
        tau: added to the root of the mean squared update, above 0: the smaller, the more all parameters move alike.
        schedule: share of the learning rate by the number of the round.
    """

    carries = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        learning_rate: float,
        *,
        momentum: float = 0.9,
        second_momentum: float = 0.99,
        tau: float = 1e-3,
        schedule: Callable[[int], float] | None = None,
    ) -> None:
        self.full_learning_rate, self.schedule = learning_rate, schedule
        self.momentum, self.second_momentum, self.tau = momentum, second_momentum, tau

    def learning_rate(self, round_number: int) -> float:
        return self.full_learning_rate * (1.0 if self.schedule is None else self.schedule(round_number))

    def step(self, received: State, average: State, round_number: int) -> State:
        rate, model = self.learning_rate(round_number), dict(average)
        momentum, second = self.momentum, self.second_momentum
        exp_avg, exp_avg_sq = self.carried["exp_avg"], self.carried["exp_avg_sq"]
        for name in exp_avg:
            change = average[name] - received[name]
            mean = momentum * exp_avg[name] + (1 - momentum) * change
            square = second * exp_avg_sq[name] + (1 - second) * change.square()
            root = (square / (1 - second**round_number)).sqrt()
            direction = mean / (1 - momentum**round_number) / (root + self.tau)
            model[name] = received[name] + rate * direction
            exp_avg[name], exp_avg_sq[name] = mean, square
        return model


class LocalOnly(Algorithm):
    """Every client goes on from its own model, at first of the same weights: nothing is averaged."""

    def start(self, network: nn.Module, client_ids: Sequence[str]) -> None:
        self.models, self.carried = {client_id: dict(network.state_dict()) for client_id in client_ids}, {}
        self._updated: dict[str, State] = {}

    def model_for(self, client_id: str) -> State:
        return self.models[client_id]

    def add(self, update: ClientUpdate) -> None:
        self._updated[update.client_id] = update.state

    def finish(self, round_number: int) -> None:
        self.models |= self._updated
        self._updated = {}


def make_algorithm(config: Config) -> Algorithm:
    """The configured algorithm."""
    settings = config.federation
    if settings.name == "local_only":
        return LocalOnly()
    if settings.server_optimiser == "adam":
        rate, second, tau = settings.server_learning_rate, settings.server_second_momentum, settings.server_tau
        assert rate is not None and second is not None and tau is not None, "checked with the configuration"
        schedule = partial(scheduled_share, config.optimiser)
        return FedAdam(rate, momentum=settings.server_momentum, second_momentum=second, tau=tau, schedule=schedule)
    return FedAvgM(settings.server_momentum) if settings.server_momentum else FedAvg()


def scheduled_share(optimiser: OptimiserConfig, number: int) -> float:
    """Share of a learning rate in a round: constant, or a cosine from 1 to its final fraction at `decay_rounds`."""
    if optimiser.schedule == "constant":
        return 1.0
    done = min((number - 1) / optimiser.decay_rounds, 1.0)
    cosine = (1 + math.cos(math.pi * done)) / 2
    return optimiser.final_fraction + (1 - optimiser.final_fraction) * cosine

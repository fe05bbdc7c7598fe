"""What a server holds between rounds: its algorithm, the average over rounds, and what clients asked it to keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ser_fl.federation.algorithm import GLOBAL, Algorithm
from ser_fl.files import check_same_form
from ser_fl.runs.records import ClientUpdate, State


@dataclass(slots=True)
class RoundAverage:
    """An average of the shared model over rounds (weight averaging: Izmailov et al., arXiv 1803.05407).

    a' = a + (model - a) * max(1 - decay, 1 / (n + 1)): the plain mean at first, an exponential one later, so that
    the first rounds are forgotten. Averages have flatter minima than any of their models, and overfit adversarial
    training less (Gowal et al., arXiv 2010.03593, section 4.4).
    """

    decay: float
    """Share of a that stays in the long run, 0 < decay < 1."""
    model: State
    """a; before the first round, any state of the same form."""
    num_rounds: int = 0
    """n."""

    def add(self, model: State) -> None:
        """A round more; counters are taken as they are, running statistics averaged like parameters."""
        share = max(1 - self.decay, 1 / (self.num_rounds + 1))
        self.model = {
            name: self.model[name] + (tensor - self.model[name]) * share
            if share < 1 and tensor.is_floating_point()
            else tensor.clone()
            for name, tensor in model.items()
        }
        self.num_rounds += 1

    def state_dict(self) -> State:
        """A and n."""
        return {"average/num_rounds": torch.tensor(self.num_rounds)} | {
            f"average/model/{name}": tensor for name, tensor in self.model.items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from there; what else is in the state is left aside.

        Raises:
            ValueError: it is of another network; what differs is named.
        """
        own = self.state_dict()
        check_same_form({name: state[name] for name in state if name.startswith("average/")}, own)
        self.model = {name: state[f"average/model/{name}"] for name in self.model}
        self.num_rounds = int(state["average/num_rounds"])


@dataclass(slots=True)
class Server:
    """The server of a run."""

    algorithm: Algorithm
    average: RoundAverage | None = None
    """Of the shared model over rounds, where there is to be one."""
    optimiser_states: dict[str, State] = field(default_factory=dict)
    """Of clients that keep their optimiser between rounds."""

    @property
    def judged(self) -> dict[str, State]:
        """The models that are validated, selected and kept: the average over rounds where there is one."""
        return {GLOBAL: self.average.model} if self.average and self.average.num_rounds else self.algorithm.models

    def add(self, update: ClientUpdate) -> None:
        """Take in an update of this round, in the order of the cohort."""
        self.algorithm.add(update)
        if update.optimiser_state:
            self.optimiser_states[update.client_id] = update.optimiser_state

    def finish(self, round_number: int) -> None:
        """The round's models, from what was added."""
        self.algorithm.finish(round_number)
        if self.average is not None:
            self.average.add(self.algorithm.models[GLOBAL])

    def state_dict(self) -> State:
        """All that the next round depends on; a client's id holds no slash."""
        state = {f"algorithm/{name}": tensor for name, tensor in self.algorithm.state_dict().items()}
        for client_id, optimiser in self.optimiser_states.items():
            state |= {f"optimiser/{client_id}/{name}": tensor for name, tensor in optimiser.items()}
        return state | ({} if self.average is None else self.average.state_dict())

    def load_state_dict(self, state: Mapping[str, Tensor], client_ids: tuple[str, ...]) -> None:
        """Go on from there; the algorithm is at its start.

        Raises:
            ValueError: it is of another algorithm, other clients or another network; what differs is named.
        """
        kept = {name.split("/")[1] for name in state if name.startswith("optimiser/")}
        if unknown := kept - set(client_ids):
            raise ValueError(f"it has the optimiser of an unknown client {min(unknown)!r}")
        self.optimiser_states = {client_id: below(state, f"optimiser/{client_id}/") for client_id in sorted(kept)}
        self.algorithm.load_state_dict(below(state, "algorithm/"))
        if self.average is not None:
            self.average.load_state_dict(state)


def below(state: Mapping[str, Tensor], prefix: str) -> State:
    """The tensors whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}

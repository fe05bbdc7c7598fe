"""What a server holds between rounds, and what it takes in from the clients of one."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from ser_fl.config.schema import Config
from ser_fl.config.values import ObjectConfig
from ser_fl.data.prepared import ClientManifest
from ser_fl.errors import LONGEST_VALUE, UserError, one_line, shown
from ser_fl.federation.aggregation import make_aggregation
from ser_fl.federation.algorithm import GLOBAL, Algorithm, make_algorithm
from ser_fl.federation.own_objects import NOTHING, OwnObjects, qualified_name
from ser_fl.federation.screening import (
    MOST_TIMES,
    MOST_TIMES_OF_BATCHES,
    REMEMBERED,
    Magnitude,
    find_excess,
    norm_of_change,
    sketch_of,
    statistics_of,
    usual_norms,
)
from ser_fl.files import below, check_same_form, flattened
from ser_fl.models.networks import build_network
from ser_fl.runs.parties import LeftOut
from ser_fl.runs.records import FIGURES, ClientFailure, ClientRecord, ClientUpdate, Offence, Outcome, State
from ser_fl.runs.redaction import public_text

MOST_EXAMPLES = 2**31
"""Utterances that one client can claim: with more, its weight and no data of others would make the average."""


@dataclass(slots=True)
class RoundAverage:
    """An average of the shared model over rounds (weight averaging: Izmailov et al., arXiv 1803.05407).

    a' = a + (model - a) * max(1 - decay, 1 / (n + 1)): the plain mean at first, an exponential one later, so that the
    first rounds are forgotten. Averages have flatter minima, and overfit adversarial training less (Gowal et al., arXiv
    2010.03593, section 4.4).
    """

    decay: float
    """Share of a that stays in the long run, 0 < decay < 1."""
    model: State
    """a; before the first round, any state of the same form."""
    num_rounds: int = 0

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
        return flattened({"num_rounds": torch.tensor(self.num_rounds), "model": self.model})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from there, if the form is the same, else a `ValueError`."""
        check_same_form(state, self.state_dict())
        self.model = {name: state[f"model/{name}"] for name in self.model}
        self.num_rounds = int(state["num_rounds"])


@dataclass(slots=True, kw_only=True)
class Committed:
    """How far a run has come, as ``latest.json`` of its checkpoint says it."""

    round: Annotated[int, Field(ge=0)] = 0
    best_round: Annotated[int, Field(ge=0)] = 0
    best_score: float = -1.0
    data_digest: str = ""
    """Of the data that the run is trained on (`ClientManifest.digest`)."""
    lengths: dict[str, Annotated[int, Field(ge=0)]] = field(default_factory=dict)
    """Bytes of each ``.jsonl`` file at the commit."""
    tracking: dict[str, Any] = field(default_factory=dict)
    """What the tracker needs to go on in the same W&B run."""
    digests: dict[str, str] = field(default_factory=dict)
    """`ClientManifest.digests`"""
    strikes: dict[str, int] = field(default_factory=dict)
    """By client or speaker: rounds in which what came of it could not be an honest one's."""
    left_out: list[LeftOut] = field(default_factory=list)
    """Who has had too many of them."""
    magnitudes: list[Magnitude] = field(default_factory=list)
    """Of the last updates (`ser_fl.federation.screening`)."""
    usual: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """`ser_fl.federation.screening.usual_norms`"""


@dataclass(slots=True, kw_only=True)
class Server(Committed):
    """The server of a run: its algorithm, the average over rounds, what clients asked it to keep, the best models."""

    algorithm: Algorithm = field(kw_only=False)
    average: RoundAverage | None = None
    """Of the shared model over rounds, where there is to be one."""
    optimiser_states: dict[str, State] = field(default_factory=dict)
    """Of clients that keep their optimiser between rounds; a client's id holds no slash."""
    best: dict[str, State] = field(default_factory=dict)
    """The judged models of the selected round."""
    parameters: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Strides of the model's parameters, in its order."""
    most_times: float = math.inf
    """How many times the median of those before an update may be; infinite: it may be of any size."""

    def strike(self, parties: Collection[tuple[str, ...]], asked: int, most: int) -> list[tuple[str, ...]]:
        """Count an offence of a round against parties, each of clients and speakers that answer together, and give
        those that now have as many as they may (0: any number). Where more than half of all offend it is the model's
        fault, and nobody's.
        """
        if 2 * len(parties) > asked:
            return []
        for name in {name for party in parties for name in party}:
            self.strikes[name] = self.strikes.get(name, 0) + 1
        return [party for party in sorted(parties) if 0 < most <= max(self.strikes[name] for name in party)]

    @property
    def names_out(self) -> set[str]:
        """Clients and speakers who are left out."""
        return {name for left in self.left_out for name in left.names}

    @property
    def judged(self) -> dict[str, State]:
        """The models that are validated, selected and kept: the average over rounds where there is one."""
        return {GLOBAL: self.average.model} if self.average and self.average.num_rounds else self.algorithm.models

    def select(self, score: float | None, *, is_last: bool = False) -> None:
        """Keep this round's models where they score above the best; unscored (None) only until one is scored. The last
        ones are kept whatever they score.
        """
        if is_last or (self.best_score < 0 if score is None else score > self.best_score):
            self.best, self.best_round = dict(self.judged), self.round
            self.best_score = -1.0 if score is None else score

    def state_dict(self) -> State:
        states: dict[str, Any] = {"algorithm": self.algorithm.state_dict(), "optimiser": self.optimiser_states}
        return flattened(states | ({} if self.average is None else {"average": self.average.state_dict()}))

    def load_state_dict(self, state: Mapping[str, Tensor], client_ids: tuple[str, ...]) -> None:
        """Go on from there; the algorithm is at its start. A `ValueError` names what differs."""
        kept = {name.split("/")[1] for name in state if name.startswith("optimiser/")}
        if unknown := kept - set(client_ids):
            raise ValueError(f"it has the optimiser of an unknown client {min(unknown)!r}")
        self.optimiser_states = {client_id: below(state, f"optimiser/{client_id}/") for client_id in sorted(kept)}
        self.algorithm.load_state_dict(below(state, "algorithm/"))
        if self.average is not None:
            self.average.load_state_dict(below(state, "average/"))


def new_server(
    config: Config, client_manifest: ClientManifest, own: OwnObjects = NOTHING, initial: State | None = None
) -> Server:
    """Before the first round: initial weights as given, or drawn from the seed."""
    num_classes = len(client_manifest.classes)
    network = build_network(config.model, num_classes, seed=config.seed, own=own.network, frontend=config.frontend)
    if initial is not None:
        network.load_state_dict(initial)
    algorithm = own.algorithm or make_algorithm(config)
    named = config.federation.aggregation
    if own.aggregation is not None:
        algorithm.aggregation = own.aggregation
    elif named is not None and not isinstance(named, ObjectConfig):
        algorithm.aggregation = make_aggregation(named, config.seed)
    algorithm.start(network, client_manifest.client_ids)
    settings = config.federation
    decay, times = settings.weight_average, MOST_TIMES if settings.local_batches is None else MOST_TIMES_OF_BATCHES
    if decay and GLOBAL not in algorithm.models:
        raise UserError(f"federation.weight_average averages a shared model, {qualified_name(algorithm)} has none")
    average = RoundAverage(decay, dict(network.state_dict())) if decay else None
    return Server(
        algorithm,
        average=average,
        best=dict(algorithm.models),
        data_digest=client_manifest.digest,
        digests=dict(client_manifest.digests),
        parameters={name: parameter.stride() for name, parameter in network.named_parameters()},
        most_times=times if settings.strikes and GLOBAL in algorithm.models else math.inf,
    )


@dataclass(slots=True, kw_only=True)
class ClientResults:
    """Who came back with what in a round. Of an update only its figures stay: the server adds up its tensors."""

    round: int
    reference: State
    """The model that clients received: what updates must look like."""
    server: Server
    num_examples: Mapping[str, int] = field(default_factory=dict)
    """Training utterances of each client, where they are known: as many count at most."""
    folders: tuple[str, ...] = ()
    """Of the data and the run: what clients say names them by their last names alone."""
    records: list[ClientRecord] = field(default_factory=list)
    failures: list[ClientFailure] = field(default_factory=list)
    averaged: list[Magnitude] = field(default_factory=list)
    nanoseconds: list[dict[str, int]] = field(default_factory=list)
    """By part, of every client whose update is averaged."""
    sketches: list[Tensor] = field(default_factory=list)
    """Of these updates, where all start from one model."""

    def take(self, client_id: str, outcome: Outcome) -> None:
        """Hand an update on to the server's algorithm, or note why there is none that can be averaged. How far it went
        is measured here, whatever the client says of it.
        """
        problem = outcome if isinstance(outcome, str) else self._problem(client_id, outcome)
        if isinstance(outcome, str) or problem is not None:
            error, is_offence = public_text(str(problem), self.folders), isinstance(problem, Offence)
            self.failures.append(ClientFailure(client_id=client_id, error=error, offence=is_offence))
            return
        self.nanoseconds.append(outcome.nanoseconds)
        self.server.algorithm.add(outcome)
        if outcome.optimiser_state:
            self.server.optimiser_states[outcome.client_id] = outcome.optimiser_state
        size = sum(tensor.nbytes for tensor in outcome.state.values())
        figures = {name: getattr(outcome, name) for name in FIGURES}
        figures["update_norm"] = self.server.magnitudes[-1][0]
        self.averaged.append(self.server.magnitudes[-1])
        if math.isfinite(self.server.most_times):
            received = self.server.algorithm.model_for(client_id)
            self.sketches.append(sketch_of(outcome.state, received, self.server.parameters))
        self.records.append(
            ClientRecord(round=self.round, client_id=client_id, bytes_down=size, bytes_up=size, **figures)
        )

    def note_lengths_and_directions(self) -> None:
        """Once all are here: how far updates go, and each one where those of the others go, whatever their lengths."""
        self.server.usual = usual_norms(self.averaged, self.server.usual)
        if len(self.sketches) > 1:
            own = torch.nn.functional.normalize(torch.stack(self.sketches))  # else one that is long is "the others"
            cosines = torch.cosine_similarity(own, own.sum(0) - own).tolist()
            pairs = zip(self.records, cosines, strict=True)
            self.records = [replace(record, cosine=round(cosine, 3)) for record, cosine in pairs]

    def _problem(self, client_id: str, update: ClientUpdate) -> Offence | None:
        most = self.num_examples.get(client_id, MOST_EXAMPLES)
        if (problem := find_problem(update, self.reference, most)) is not None:
            return Offence(problem)
        server = self.server
        received, names = server.algorithm.model_for(client_id), server.parameters
        moved = norm_of_change(update.state, received, names)
        shifted = norm_of_change(update.state, received, statistics_of(received, names))
        new = moved, shifted, update.num_examples
        before = [*server.magnitudes]
        server.magnitudes = [*before, new][-REMEMBERED:]
        if math.isinf(server.most_times):
            return None
        problem = find_excess(new, before, server.usual, received, names, server.most_times)
        return None if problem is None else Offence(problem)


def find_problem(update: ClientUpdate, reference: State, most: int = MOST_EXAMPLES) -> str | None:
    """Why an update cannot be averaged, or None; whatever a client sends, this is one line. Other names, shapes, types
    or layouts than the model's, anything not finite, a variance below 0, a figure that is no number, no utterance, or
    more than ``most``. So for an optimiser state that is not finite, which would come back with every later round.
    """
    state: Any = update.state  # whatever a client sent
    optimiser: Any = update.optimiser_state
    times, figures = update.nanoseconds, {name: getattr(update, name) for name in FIGURES}
    if not isinstance(state, dict):
        return f"its state is of type {type(state).__name__}, expected tensors by name"
    if state.keys() != reference.keys():
        return f"its state has other entries: {shown(sorted(state.keys() ^ reference.keys(), key=str)[:3])}"
    if not isinstance(optimiser, dict) or not all(isinstance(name, str) for name in optimiser):
        return f"its optimiser's state is of type {type(optimiser).__name__}, expected tensors by name"
    tensors = [(name, state[name]) for name in reference]
    tensors += [(f"its optimiser's {one_line(name, LONGEST_VALUE)}", moment) for name, moment in optimiser.items()]
    for name, tensor in tensors:
        if not isinstance(tensor, torch.Tensor):
            return f"{name} is of type {type(tensor).__name__}, expected a tensor"
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            kind = "meta" if tensor.is_meta else "quantised" if tensor.is_quantized else tensor.layout
            return f"{name} is a {kind} tensor"
        if not torch.isfinite(tensor).all():
            return f"{name} is not finite"
        expected = reference.get(name, tensor)
        if tensor.shape != expected.shape:
            return f"{name} has shape {tuple(tensor.shape)}, expected {tuple(expected.shape)}"
        if tensor.dtype != expected.dtype:
            return f"{name} is of type {tensor.dtype}, expected {expected.dtype}"
        if name.endswith("running_var") and (tensor < 0).any():
            return f"{name} is a variance below 0: {float(tensor.min()):.3g}"
        if name.endswith("num_batches_tracked") and ((tensor < expected) | (tensor - expected > MOST_EXAMPLES)).any():
            return f"{name} counts batches, and is {shown(tensor.tolist())} after {shown(expected.tolist())}"
    count = figures.pop("num_examples")
    for name, figure in figures.items():
        if type(figure) is not float or not math.isfinite(figure):
            return f"its {name} is {shown(figure)}: {'not finite' if type(figure) is float else 'not a number'}"
    if type(count) is not int or count > MOST_EXAMPLES:
        return f"its num_examples is {shown(count)}, expected a whole number up to {MOST_EXAMPLES}"
    if count < 1:
        return f"it trained on no utterance (num_examples={shown(count)})"
    if count > most:
        return f"it says that it trained on {count} utterances, of {most}"
    if not isinstance(times, dict) or not all(type(n) is str and type(t) is int for n, t in times.items()):
        return f"its nanoseconds are {shown(times)}, expected whole numbers by part"
    return None

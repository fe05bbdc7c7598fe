"""What a run is made of: clients, scorer, server, from a configuration, its data and objects of the caller's own."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Self

import lightning.pytorch as pl
import torch
from torch import nn

from ser_fl.attacks.threat_model import Box
from ser_fl.config.schema import Config
from ser_fl.data.client_manifest import ClientManifest
from ser_fl.data.frontend import Standardisation
from ser_fl.data.prepared import Prepared
from ser_fl.data.splits import holders
from ser_fl.devices import devices_of
from ser_fl.errors import UserError, one_line
from ser_fl.federation.aggregation import Aggregation
from ser_fl.federation.algorithm import GLOBAL, Algorithm, make_algorithm
from ser_fl.federation.checkpoint import Checkpoint, Progress
from ser_fl.federation.client import Clients
from ser_fl.federation.executors.executor import Executor, SerialExecutor
from ser_fl.federation.executors.processes import ProcessExecutor, count_workers
from ser_fl.federation.profile import open_watch
from ser_fl.federation.rounds import cohort_size
from ser_fl.federation.scoring import LocalScorer
from ser_fl.federation.server import RoundAverage, Server
from ser_fl.models.registry import NetworkSource, build_network
from ser_fl.robustness.evaluator import Evaluator
from ser_fl.runs.folder import RunFolder
from ser_fl.stopwatch import UNWATCHED
from ser_fl.training.objectives import OBJECTIVES, Objective


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnObjects:
    """What takes the place of what the configuration names; None leaves that."""

    network: NetworkSource | None = None
    objective: Objective | None = None
    aggregation: Aggregation | None = None
    algorithm: Algorithm | None = None
    callbacks: tuple[pl.Callback, ...] = ()
    """Beside the configured training, of which they change nothing that they do not reach into."""

    @classmethod
    def of(cls, *, network: Any = None, callbacks: Iterable[pl.Callback] = (), **given: Any) -> Self:
        """From objects; a class stands for an object that is made without arguments, but for a network's.

        Raises:
            UserError: one is of another kind.
        """
        kinds = {"objective": Objective, "aggregation": Aggregation, "algorithm": Algorithm}
        for name, kind in kinds.items():
            one = given.get(name)
            made = one() if isinstance(one, type) else one
            if made is not None and not isinstance(made, kind):
                raise UserError(f"{name} must be a {kind.__module__}.{kind.__name__}, got {qualified_name(made)}")
            given[name] = made
        if network is not None and not callable(network):
            raise UserError(f"network must be a module, or make one for a number of classes, got {network!r}")
        return cls(network=network, callbacks=tuple(callbacks), **given)

    def recorded_in(self, config: Config) -> Config:
        """The configuration with these objects named in it, but for callbacks, on which no result depends.

        Raises:
            UserError: it names others, or they do not go with it.
        """
        given = {name: getattr(self, name) for name in ("network", "objective", "aggregation", "algorithm")}
        names = {name: qualified_name(value) for name, value in given.items() if value is not None}
        for name, wanted in config.objects.items():
            if names.get(name) != wanted:
                raise UserError(f"this configuration is of a run with {name}={wanted}: give it to ser_fl.train")
        federation, executor = config.federation.name, config.executor
        for name in ("aggregation", "algorithm"):
            if name in names and federation == "local_only":
                raise UserError(f"federation=local_only averages nothing, got {name}={names[name]}")
        for name in names if executor.name == "flower" else ():
            if name in ("network", "objective") or executor.superlink is not None:
                raise UserError(
                    f"executor=flower sends no code to other hosts, got {name}={names[name]}: use executor=serial or "
                    "executor=processes"
                )
        return replace(config, objects=names)


NOTHING = OwnObjects()


def qualified_name(value: object) -> str:
    """Of a class or function, or of an object's class: ``module.Class``."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def make_clients(config: Config, prepared: Prepared, own: OwnObjects = NOTHING) -> Clients:
    """The clients of an experiment, on this machine."""
    return Clients(
        config=config,
        store=prepared.store,
        indices=prepared.clients,
        standardisation=prepared.standardisation,
        objective=own.objective or OBJECTIVES[config.stock_objective.name](config.stock_objective),
        box=box_of(prepared.standardisation),
        device=devices_of(config.executor.accelerator)[0],
        own_network=own.network,
        callbacks=own.callbacks,
        watch=open_watch(config, rest="client") if config.profile else UNWATCHED,
    )


def open_executor(clients: Clients, cohort_size: int) -> Executor:
    """The configured executor. Worker processes start with the first round.

    Raises:
        UserError: an object of the caller's own cannot be sent to a worker process.
    """
    config = clients.config.executor
    if config.name == "serial":
        return SerialExecutor(clients)
    return ProcessExecutor(clients, count_workers(config, cohort_size))


def local_scorer(config: Config, prepared: Prepared, own: OwnObjects = NOTHING) -> LocalScorer:
    """Of all data on this machine."""
    utterances, split = prepared.store.utterances, prepared.split
    return LocalScorer(
        config,
        Evaluator(prepared.store, prepared.standardisation),
        box_of(prepared.standardisation),
        {"validation": holders(utterances, split.validation), "test": holders(utterances, split.test)},
        own.network,
    )


def box_of(standardisation: Standardisation) -> Box:
    """Where features and attacks on them stay."""
    return Box.of(standardisation.lower_F1, standardisation.upper_F1)


def first_progress(config: Config, client_manifest: ClientManifest, own: OwnObjects = NOTHING) -> Progress:
    """Before the first round: initial weights drawn from the seed.

    Raises:
        UserError: an algorithm of the caller's own shares no model, and one is to be averaged over rounds.
    """
    network = build_network(config.model, len(client_manifest.classes), seed=config.seed, own=own.network)
    algorithm = own.algorithm or make_algorithm(config)
    if own.aggregation is not None:
        algorithm.aggregation = own.aggregation
    algorithm.start(network, client_manifest.client_ids)
    decay = config.federation.weight_average
    if decay and GLOBAL not in algorithm.models:
        raise UserError(f"federation.weight_average averages a shared model, {qualified_name(algorithm)} has none")
    return Progress(
        round=0,
        server=Server(algorithm, RoundAverage(decay, dict(network.state_dict())) if decay else None),
        best=dict(algorithm.models),
        best_round=0,
        best_score=-1.0,
        data_digest=client_manifest.digest,
    )


def check_network(config: Config, num_classes: int, own: OwnObjects) -> None:
    """Refuse a network of the caller's own that is no classifier of these features, before anything is written.

    Raises:
        UserError: what it gives for two utterances of zeros is not (2, C), or it raises, or it has nothing to train.
    """
    network: object = build_network(config.model, num_classes, seed=config.seed, own=own.network)
    name, shape = qualified_name(network), (2, config.frontend.num_mels, config.frontend.num_frames)
    if not isinstance(network, nn.Module):
        raise UserError(f"network must make a torch.nn.Module, got {name}")
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UserError(f"network {name} has no parameter to train")
    if odd := [key for key, value in network.state_dict().items() if not isinstance(value, torch.Tensor)]:
        raise UserError(f"network {name} keeps {odd[0]} in its state, which is no tensor: clients could not send it")
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            logits_BC = copy.deepcopy(network).eval()(torch.zeros(shape))
    except Exception as error:
        reason = one_line(f"{type(error).__name__}: {error}")
        raise UserError(f"network {name} cannot take features of shape {shape}: {reason}") from None
    if not isinstance(logits_BC, torch.Tensor) or logits_BC.shape != (2, num_classes):
        given = tuple(logits_BC.shape) if isinstance(logits_BC, torch.Tensor) else type(logits_BC).__name__
        raise UserError(f"network {name} must give logits of shape {(2, num_classes)} for {shape}, got {given}")


def check_client_manifest(
    config: Config, run: RunFolder, client_manifest: ClientManifest, checkpoint: Checkpoint | None
) -> int:
    """Clients of a round; what no round could put right is refused before anything is written.

    Raises:
        UserError: `federation.min_clients` is above the clients of a round, or a resumed run's data have changed.
    """
    settings = config.federation
    size = cohort_size(len(client_manifest.client_ids), settings.fraction_train)
    if settings.min_clients > size:
        raise UserError(
            f"federation.min_clients must be at most {size}, the clients of a round (federation.fraction_train="
            f"{settings.fraction_train:g} of {len(client_manifest.client_ids)}), got {settings.min_clients}"
        )
    if checkpoint is not None and checkpoint.committed.data_digest != client_manifest.digest:
        raise UserError(f"{run.root} was trained on other data than {config.data.name} holds now: start a new run")
    return size

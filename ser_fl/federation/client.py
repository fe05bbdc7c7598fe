"""What a server asks of whoever holds the data: clients train the model that they receive, and holders score models.

Here they do it in this process; `processes` has worker processes. Executors differ in time alone: an update depends on
its task and the seed, and outcomes come in the order of the cohort, so that all give the same bits.

Legend: B batch, F mel bins, L frames.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn

from ser_fl.attacks.pgd import own_starts, pgd
from ser_fl.attacks.step_size import default_step_size
from ser_fl.attacks.threat_model import Box
from ser_fl.config.schema import Config
from ser_fl.data.datamodule import ClientDataModule, ShuffledBatches
from ser_fl.data.features import FeatureStore, load_examples
from ser_fl.data.frontend import Standardisation
from ser_fl.data.prepared import Prepared
from ser_fl.data.splits import Indices, Part, Split, holders
from ser_fl.devices import devices_of, seeded_streams
from ser_fl.federation.own_objects import NOTHING, OwnObjects
from ser_fl.federation.profile import open_watch
from ser_fl.metrics import Confusion
from ser_fl.models.networks import NetworkSource, build_network
from ser_fl.randomness import derive_seed, generator
from ser_fl.robustness.evaluator import Perturb, confusions_of
from ser_fl.runs.records import ClientFailure, ClientUpdate, Outcome, State
from ser_fl.stopwatch import UNWATCHED, Watch
from ser_fl.training.objectives import OBJECTIVES, ClientRound, Objective, balanced_weights
from ser_fl.training.trainer import ClientClassifier, Trainers, fit_in_loop, has_installed_callbacks


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTask:
    round: int
    client_id: str
    state: State
    learning_rate: float
    optimiser_state: State = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Clients:
    """Everything that clients need to train: what each holds, and the experiment they share."""

    config: Config
    store: FeatureStore
    indices: dict[str, Indices]
    standardisation: Standardisation
    objective: Objective
    device: torch.device
    """Where they train, one after the other."""
    own_network: NetworkSource | None = None
    """A user's own, in place of the configured one."""
    callbacks: Sequence[pl.Callback] = ()
    """A user's own: called for every batch of every client."""
    watch: Watch = UNWATCHED
    box: Box = field(init=False)
    trainers: Trainers = field(init=False)
    _reused: nn.Module | None = field(init=False, default=None)
    """The network that clients take in turns, once there is one."""

    def __post_init__(self) -> None:
        self.box = Box.of(self.standardisation.lower_F1, self.standardisation.upper_F1)
        self.trainers = Trainers(self.config, self.callbacks, self.device, self.watch)

    @torch.inference_mode(False)
    @torch.enable_grad()  # whatever the caller has switched off
    def update(self, task: ClientTask) -> ClientUpdate:
        """One client's local epochs. The result depends on the task and the seed alone."""
        started, settings, watch = time.perf_counter(), self.config.federation, self.watch
        watch.restart()
        keys = (self.config.seed, "round", task.round, "client", task.client_id)
        stream, bf16 = generator(*keys), self.config.precision == "bf16-mixed"
        network = self._network()
        network.load_state_dict(task.state)
        with watch.part("data"):
            examples = load_examples(self.store, self.indices[task.client_id], self.standardisation)
            weights_C = balanced_weights(examples.labels_N, len(self.store.classes)).to(self.device)
            given = ClientRound(
                number=task.round,
                network=network,
                examples=examples,
                stream=stream,
                augmentation=self.config.augmentation,
                box=self.box.to(self.device),
                low_precision=bf16,
                watch=watch,
                class_weights_C=weights_C if self.config.class_balance == "loss" else None,
            )
            plan = self.objective.start_round(given)
        classifier = ClientClassifier(
            self.config,
            len(self.store.classes),
            given,
            plan,
            learning_rate=task.learning_rate,
            optimiser_state=task.optimiser_state,
        )
        batches = ShuffledBatches(
            plan.examples,
            settings.batch_size,
            stream,
            most=settings.local_batches,
            replays=plan.replays,
            balanced=self.config.class_balance == "sampling",
        )
        data = ClientDataModule(batches, client_id=task.client_id, round=task.round)
        with seeded_streams(derive_seed(*keys), self.device), watch.part("trainer"):  # dropout draws from them
            if self.config.executor.engine == "trainer":
                optimiser = self.trainers.fit(classifier, data)
            else:
                epochs = settings.local_epochs
                optimiser = fit_in_loop(classifier, data, epochs=epochs, device=self.device, bf16=bf16)
        state = {name: tensor.detach().to("cpu", copy=True) for name, tensor in network.state_dict().items()}
        squares = [(state[name] - task.state[name]).double().square().sum() for name, _ in network.named_parameters()]
        carried = optimiser.state_dict()["state"] if settings.keep_optimiser else {}
        return ClientUpdate(
            client_id=task.client_id,
            state=state,
            num_examples=plan.num_examples,
            train_loss=float(classifier.train_figures["loss"]),
            seconds=time.perf_counter() - started,
            update_norm=float(torch.stack(squares).sum().sqrt()),
            optimiser_state={
                f"{index}.{name}": torch.as_tensor(value).detach().cpu().clone()
                for index, entries in carried.items()
                for name, value in entries.items()
                if value is not None
            },
            nanoseconds=watch.read(),
        )

    def _network(self) -> nn.Module:
        """In training mode, on the device, with any weights; a new one where callbacks may hook into it or keep it."""
        is_watched = bool(self.callbacks) or has_installed_callbacks()
        if self._reused is not None and not is_watched:
            self._reused.zero_grad()
            return self._reused.train()
        num_classes, seed = len(self.store.classes), self.config.seed
        network = build_network(self.config.model, num_classes, seed=seed, own=self.own_network).to(self.device).train()
        self._reused = None if is_watched else network
        return network


def make_clients(config: Config, prepared: Prepared, own: OwnObjects = NOTHING) -> Clients:
    """The clients of an experiment, on this machine."""
    return Clients(
        config=config,
        store=prepared.store,
        indices=prepared.clients,
        standardisation=prepared.standardisation,
        objective=own.objective or OBJECTIVES[config.stock_objective.name](config.stock_objective),
        device=devices_of(config.executor.accelerator)[0],
        own_network=own.network,
        callbacks=own.callbacks,
        watch=open_watch(config, rest="client") if config.profile else UNWATCHED,
    )


class Executor:
    """Runs the clients of one round after the other; a context, at whose end nothing is left running."""

    def run(self, tasks: Iterable[ClientTask]) -> Iterator[tuple[str, Outcome]]:
        raise NotImplementedError

    def close(self) -> None:
        """End what it has started."""


@dataclass(slots=True)
class SerialExecutor(Executor):
    """The reference: clients one after the other, in this process."""

    clients: Clients

    def run(self, tasks: Iterable[ClientTask]) -> Iterator[tuple[str, Outcome]]:
        """A client trains when its outcome is asked for."""
        for task in tasks:
            yield task.client_id, attempt(self.clients.update, task)


def attempt(update: Callable[[ClientTask], ClientUpdate], task: ClientTask) -> Outcome:
    """Whatever a client raises costs its round an update, not the run."""
    try:
        return update(task)
    except Exception:
        return traceback.format_exc()


@dataclass(frozen=True, slots=True)
class Scored:
    """Confusion matrices of the holders of a part."""

    by_holder: dict[str, Confusion]
    """By speaker; summed over models where clients keep their own."""
    failures: tuple[ClientFailure, ...] = ()
    """Holders that gave none. Without them figures are of other utterances, not to be compared with other rounds'."""

    @property
    def total(self) -> Confusion:
        """Sum of the holders' matrices."""
        return np.asarray(np.sum(list(self.by_holder.values()), axis=0), dtype=np.float64)


class Scorer(Protocol):
    """Asks the holders of a part how well a server's models do."""

    def score(self, models: Mapping[str, State], part: Part, *, attacked: bool = False) -> Scored:
        """Score the models on a part, under the selection attack where asked for. A client's own model
        (`federation=local_only`) is scored on its own speaker's utterances where this part has some, else on
        everybody's.
        """
        ...


@dataclass(frozen=True, slots=True)
class LocalScorer:
    """A `Scorer` for all data that are on this machine."""

    config: Config
    store: FeatureStore
    standardisation: Standardisation
    split: Split
    own_network: NetworkSource | None = None
    """A user's own, in place of the configured one."""

    def score(self, models: Mapping[str, State], part: Part, *, attacked: bool = False) -> Scored:
        num_classes, held = len(self.store.classes), holders(self.store.utterances, getattr(self.split, part))
        perturb: Perturb | None = self.selection_attack if attacked else None
        summed = {holder: np.zeros((num_classes, num_classes)) for holder in held}
        network = build_network(self.config.model, num_classes, seed=self.config.seed, own=self.own_network)
        network = network.to(devices_of(self.config.executor.accelerator)[0])
        for owner, state in models.items():
            network.load_state_dict(state)
            scored = {owner: held[owner]} if owner in held else held
            confusions = confusions_of(network, self.store, self.standardisation, scored, perturb)
            for holder, confusion in confusions.items():
                summed[holder] += confusion
        return Scored(summed)

    def selection_attack(
        self, network: nn.Module, features_BFL: Tensor, labels_B: Tensor, ids: tuple[str, ...]
    ) -> Tensor:
        """PGD from a random start keyed by (seed, utterance), so that it is the same in every round and batch."""
        selection = self.config.selection
        streams = (generator(self.config.seed, "selection", utterance_id) for utterance_id in ids)
        return pgd(
            network,
            features_BFL,
            labels_B,
            epsilon=selection.epsilon,
            step_size=default_step_size(selection.epsilon),
            steps=selection.steps,
            box=Box.of(self.standardisation.lower_F1, self.standardisation.upper_F1),
            start_BFL=own_starts(features_BFL, selection.epsilon, streams),
        )

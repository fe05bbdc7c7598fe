"""What a client does in a round: receive the model, train it on its own utterances, send an update."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import lightning.pytorch as pl
import torch
from torch import nn

from ser_fl.attacks.threat_model import Box
from ser_fl.config.schema import Config
from ser_fl.data.datamodule import ClientDataModule
from ser_fl.data.examples import load_examples
from ser_fl.data.features import FeatureStore
from ser_fl.data.frontend import Standardisation
from ser_fl.data.splits import Indices
from ser_fl.devices import seeded_streams
from ser_fl.models.registry import NetworkSource, build_network
from ser_fl.randomness import derive_seed, generator
from ser_fl.runs.records import ClientUpdate, State
from ser_fl.stopwatch import UNWATCHED, Watch
from ser_fl.training.client_classifier import ClientClassifier, LocalTraining
from ser_fl.training.fit_profiler import FitProfiler
from ser_fl.training.loop import fit_in_loop
from ser_fl.training.objectives import ClientRound, Objective
from ser_fl.training.trainer import Trainers, has_installed_callbacks


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTask:
    """What the server sends to a client for one round."""

    round: int
    client_id: str
    state: State
    learning_rate: float
    optimiser_state: State = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clients:
    """Everything that clients need to train: what each holds, and the experiment they share."""

    config: Config
    store: FeatureStore
    indices: dict[str, Indices]
    standardisation: Standardisation
    objective: Objective
    box: Box
    """Where features, and attacks on them, stay."""
    device: torch.device
    """Where they train, one after the other."""
    own_network: NetworkSource | None = None
    """A user's own, in place of the configured one."""
    callbacks: Sequence[pl.Callback] = ()
    """A user's own: called for every batch of every client."""
    watch: Watch = UNWATCHED
    trainers: Trainers = field(init=False)
    _networks: list[nn.Module] = field(init=False, default_factory=list)
    """The one that clients take in turns, once there is one."""

    def __post_init__(self) -> None:
        assert self.config.precision != "auto", "resolve_precision comes first"
        profiler = FitProfiler.of(self.watch)
        object.__setattr__(self, "trainers", Trainers(self.config, self.callbacks, self.device, profiler))

    def update(self, task: ClientTask) -> ClientUpdate:
        """One client's local epochs. The result depends on the task and the seed alone."""
        with torch.inference_mode(False), torch.enable_grad():  # whatever the caller has switched off
            return self._update(task)

    def _update(self, task: ClientTask) -> ClientUpdate:
        started = time.perf_counter()
        self.watch.restart()
        keys = (self.config.seed, "round", task.round, "client", task.client_id)
        stream = generator(*keys)
        network = self.network()
        network.load_state_dict(task.state)
        with self.watch.part("data"):
            examples = load_examples(self.store, self.indices[task.client_id], self.standardisation)
            training = self.objective.start_round(
                ClientRound(
                    number=task.round,
                    network=network,
                    examples=examples,
                    stream=stream,
                    augmentation=self.config.augmentation,
                    box=self.box.to(self.device),
                    low_precision=self.config.precision == "bf16-mixed",
                    watch=self.watch,
                )
            )
        local = LocalTraining(
            learning_rate=task.learning_rate,
            stream=stream,
            plan=training,
            freeze_norm=0 < self.config.federation.freeze_norm_from <= task.round,
            optimiser_state=_unflatten(task.optimiser_state),
            has_own_network=self.own_network is not None,
        )
        classifier = ClientClassifier(self.config, len(self.store.classes), network, local, self.watch)
        batches = ClientDataModule(
            training.examples,
            batch_size=self.config.federation.batch_size,
            stream=stream,
            client_id=task.client_id,
            round=task.round,
            most=self.config.federation.local_batches,
            replays=training.replays,
        )
        with seeded_streams(derive_seed(*keys), self.device), self.watch.part("trainer"):  # dropout draws from them
            optimiser = self.fit(classifier, batches)
        state = {name: tensor.detach().to("cpu", copy=True) for name, tensor in network.state_dict().items()}
        return ClientUpdate(
            client_id=task.client_id,
            state=state,
            num_examples=training.num_examples,
            train_loss=float(classifier.train_figures["loss"]),
            seconds=time.perf_counter() - started,
            update_norm=_distance({name: state[name] for name, _ in network.named_parameters()}, task.state),
            optimiser_state=_flatten(optimiser) if self.config.federation.keep_optimiser else {},
            nanoseconds=self.watch.read(),
        )

    def network(self) -> nn.Module:
        """In training mode, on the device, with any weights; a new one where callbacks may hook into it."""
        if self._networks and not self.is_watched:
            self._networks[0].zero_grad()
            return self._networks[0].train()
        num_classes, seed = len(self.store.classes), self.config.seed
        network = build_network(self.config.model, num_classes, seed=seed, own=self.own_network).to(self.device).train()
        self._networks[:] = [] if self.is_watched else [network]
        return network

    @property
    def is_watched(self) -> bool:
        """Whether callbacks see each client's network, and may keep or change it."""
        return bool(self.callbacks) or has_installed_callbacks()

    def fit(self, classifier: ClientClassifier, batches: ClientDataModule) -> torch.optim.Optimizer:
        """Train it, by a Trainer or in the loop that does the same, and return the optimiser that did."""
        if self.uses_trainer:
            return self.trainers.fit(classifier, batches)
        epochs, bf16 = self.config.federation.local_epochs, self.config.precision == "bf16-mixed"
        return fit_in_loop(classifier, batches, epochs=epochs, device=self.device, bf16=bf16)

    @property
    def uses_trainer(self) -> bool:
        """Whether a Trainer runs the steps."""
        return self.config.executor.engine == "trainer"


def _distance(parameters: State, received: State) -> float:
    squares = [(parameter - received[name]).double().square().sum() for name, parameter in parameters.items()]
    return float(torch.stack(squares).sum().sqrt())


def _flatten(optimiser: torch.optim.Optimizer) -> State:
    """Optimiser state as tensors by name, ``"<parameter index>.<entry>"``: what safetensors can hold."""
    return {
        f"{index}.{name}": torch.as_tensor(value).detach().cpu().clone()
        for index, entries in optimiser.state_dict()["state"].items()
        for name, value in entries.items()
        if value is not None
    }


def _unflatten(state: State) -> dict[int, dict[str, torch.Tensor]] | None:
    if not state:
        return None
    nested: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in state.items():
        index, name = key.split(".", 1)
        nested.setdefault(int(index), {})[name] = tensor.clone()
    return nested

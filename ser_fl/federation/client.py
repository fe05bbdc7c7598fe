"""What a server asks of whoever holds the data: clients train the model that they receive, and holders score models.

Here they do it in this process; `processes` has worker processes, `flower` other machines. Executors differ in time
alone: an update depends on its task and the seed, and outcomes come in the order of the cohort, so that all give the
same bits.

Legend: B batch, F mel bins, L frames.
"""

import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ser_fl.attacks.pgd import own_starts, pgd
from ser_fl.attacks.step_size import default_step_size
from ser_fl.attacks.threat_model import Box
from ser_fl.attacks.waveform_domain import Waveform
from ser_fl.calibration import confidence_sums
from ser_fl.config.schema import Config
from ser_fl.data.datamodule import ClientDataModule, ShuffledBatches
from ser_fl.data.features import load_examples
from ser_fl.data.prepared import Prepared
from ser_fl.data.splits import Part, holders
from ser_fl.devices import devices_of, seeded_streams
from ser_fl.errors import one_line
from ser_fl.federation.adversaries import LocalRound
from ser_fl.federation.own_objects import NOTHING, OwnObjects, adversary_of
from ser_fl.federation.profile import open_stopwatch
from ser_fl.federation.recordings import recordings_of
from ser_fl.metrics import Floats, confusion_matrix, recording_products
from ser_fl.models.networks import build_network
from ser_fl.models.own_classes import OwnClasses
from ser_fl.randomness import derive_seed, generator
from ser_fl.robustness.evaluator import Perturb, confidences_of, predictions_of
from ser_fl.runs.parties import LeftOut
from ser_fl.runs.records import ClientFailure, ClientUpdate, Outcome, State
from ser_fl.stopwatch import UNWATCHED
from ser_fl.training.objectives import OBJECTIVES, ClientRound, HeldRecordings, balanced_weights
from ser_fl.training.trainer import ClientClassifier, Trainers, fit_in_loop, has_installed_callbacks


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTask:
    round: int
    client_id: str
    state: State
    learning_rate: float
    optimiser_state: State = field(default_factory=dict)
    hostile: bool = False
    """Whether the client does in this round what `adversaries` says."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Confusion matrices of the holders of a part, or other sums over their utterances."""

    by_holder: dict[str, Floats]
    """By speaker; summed over models where clients keep their own."""
    failures: tuple[ClientFailure, ...] = ()
    """Holders that gave none. Without them figures are of other utterances, not to be compared with other rounds'."""
    products: Floats | None = None
    """`ser_fl.metrics.recording_products` of the one model that is tested, where recordings are cut or hold several
    utterances; None also of holders on other machines."""

    @property
    def total(self) -> Floats:
        """Sum of the holders' matrices."""
        return np.asarray(np.sum(list(self.by_holder.values()), axis=0), dtype=np.float64)


class Executor:
    """Asks all clients and holders of data."""

    def party_of(self, name: str) -> tuple[str, ...]:
        """The clients and speakers that answer with one: those at a node are to blame for one another."""
        return (name,)

    def leave_out(self, names: tuple[str, ...], reason: str) -> LeftOut:
        """Ask these clients and speakers nothing more, and tell who they are."""
        return LeftOut(names=names, node=None, reason=one_line(reason))

    def run(self, tasks: Iterable[ClientTask]) -> Iterator[tuple[str, Outcome]]:
        """Run the clients of one round after the other; each one's id and outcome, in the order of the tasks."""
        raise NotImplementedError

    def score(self, models: Mapping[str, State], part: Part, *, attacked: bool = False) -> Scored:
        """Score the models on a part, under the selection attack where asked for. A client's own model
        (`federation=local_only`) is scored on its own speaker's utterances where this part has some, else on
        everybody's.
        """
        raise NotImplementedError

    def confidences(self, models: Mapping[str, State], part: Part, temperature: float | None = None) -> Scored:
        """How sure the models are of a part: `ser_fl.calibration.confidence_sums` of each holder, of the utterances
        that `score` takes. A holder for whom a model gives no finite output has failed.
        """
        raise NotImplementedError

    def findings(self, selected: Mapping[str, State], last: Mapping[str, State], round_number: int) -> dict[str, Any]:
        """What it has to add to a summary, of the selected models, of the last ones, and the number of their round."""
        return {}


class Clients(Executor):
    """The reference: everybody's data are on this machine, and clients train one after the other in this process. On
    ``device``, by default the first that the configuration asks for.
    """

    def __init__(
        self, config: Config, data: Prepared, own: OwnObjects = NOTHING, *, device: torch.device | None = None
    ) -> None:
        self.config, self.data, self.own = config, data, own
        self.objective = own.objective or OBJECTIVES[config.stock_objective.name](config.stock_objective)
        self.adversary = adversary_of(config, own)
        self.device = device or devices_of(config.executor.accelerator)[0]
        self.stopwatch = open_stopwatch(config, rest="client") if config.profile else None
        sides = (data.standardisation.lower_F1, data.standardisation.upper_F1)
        self.box = Box.of(*(side_F1.to(self.device) for side_F1 in sides))
        self.trainers = Trainers(config, own.callbacks, self.device, self.stopwatch)
        self._reused: nn.Module | None = None
        """The network that clients take in turns, once there is one."""

    @torch.inference_mode(False)
    @torch.enable_grad()  # whatever the caller has switched off
    def update(self, task: ClientTask) -> ClientUpdate:
        """One client's local epochs. The result depends on the task and the seed alone."""
        started, settings, data, watch = time.perf_counter(), self.config.federation, self.data, UNWATCHED
        if self.stopwatch is not None:
            self.stopwatch.restart()
            watch = self.stopwatch.part
        keys = (self.config.seed, "round", task.round, "client", task.client_id)
        stream, bf16 = generator(*keys), self.config.precision == "bf16-mixed"
        network = self._network()
        network.load_state_dict(task.state)
        trained, num_classes = network, len(data.store.classes)
        with watch("data"):
            held = data.clients[task.client_id]
            examples = load_examples(data.store, held, data.standardisation, stream=stream)
            if own := data.store.own_classes.get(data.store.utterances[held[0]].corpus):
                trained, num_classes = OwnClasses(network, own), len(own)
                examples = replace(examples, labels_N=torch.searchsorted(torch.tensor(own), examples.labels_N))
            objective = self.objective
            if task.hostile:
                hostile = LocalRound(
                    examples=examples,
                    ids=tuple(data.store.utterances[row].utterance_id for row in held),
                    classes=tuple(data.store.classes[label] for label in own or range(num_classes)),
                    recordings=lambda: self.recordings,
                    stream=generator(self.config.seed, "adversaries", task.client_id),
                )
                examples, objective = self.adversary.examples(hostile), self.adversary.objective(objective)
            weights_C = None
            if self.config.class_balance == "loss":
                weights_C = balanced_weights(examples.labels_N, num_classes).to(self.device)
            given = ClientRound(
                number=task.round,
                network=trained,
                examples=examples,
                speakers=tuple(data.store.utterances[row].speaker for row in held),
                stream=stream,
                augmentation=self.config.augmentation,
                box=self.box,
                low_precision=bf16,
                watch=watch,
                class_weights_C=weights_C,
                recordings=self._held_recordings(task),
            )
            plan = objective.start_round(given)
        classifier = ClientClassifier(
            self.config,
            num_classes,
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
        module = ClientDataModule(batches, client_id=task.client_id, round=task.round)
        with seeded_streams(derive_seed(*keys), self.device), watch("trainer"):  # dropout draws from them
            if self.config.executor.engine == "trainer":
                optimiser = self.trainers.fit(classifier, module)
            else:
                epochs = settings.local_epochs
                optimiser = fit_in_loop(classifier, module, epochs=epochs, device=self.device, bf16=bf16)
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
            nanoseconds=self.stopwatch.read() if self.stopwatch else {},
        )

    @cached_property
    def recordings(self) -> Waveform:
        """As what attacks move."""
        return recordings_of(self.config, self.data, self.device)

    def _held_recordings(self, task: ClientTask) -> HeldRecordings | None:
        if getattr(self.config.objective, "snr_db", None) is None or self.own.objective is not None:
            return None
        return HeldRecordings(
            domain=self.recordings,
            ids=tuple(self.data.store.utterances[row].utterance_id for row in self.data.clients[task.client_id]),
            num_classes=len(self.data.store.classes),
            seed=derive_seed(self.config.seed, "recordings", task.round),
        )

    def _network(self) -> nn.Module:
        """In training mode, on the device, with any weights; a new one where callbacks may hook into it or keep it."""
        is_watched = bool(self.own.callbacks) or has_installed_callbacks()
        if self._reused is not None and not is_watched:
            self._reused.zero_grad()
            return self._reused.train()
        network = self._new_network().train()
        self._reused = None if is_watched else network
        return network

    def _new_network(self) -> nn.Module:
        config, num_classes = self.config, len(self.data.store.classes)
        network = build_network(
            config.model, num_classes, seed=config.seed, own=self.own.network, frontend=config.frontend
        )
        return network.to(self.device)

    def run(self, tasks: Iterable[ClientTask]) -> Iterator[tuple[str, Outcome]]:
        """A client trains when its outcome is asked for."""
        for task in tasks:
            yield task.client_id, attempt(self.update, task)

    def score(self, models: Mapping[str, State], part: Part, *, attacked: bool = False) -> Scored:
        data, num_classes = self.data, len(self.data.store.classes)
        held = holders(data.store.utterances, getattr(data.split, part))
        perturb: Perturb | None = self.selection_attack if attacked else None
        summed = {holder: np.zeros((num_classes, num_classes)) for holder in held}
        for owner, network in self.loaded(models):
            scored = {owner: held[owner]} if owner in held else held
            predicted = predictions_of(network, data.store, data.standardisation, scored.values(), perturb)
            said = iter(predicted)
            for holder, rows in scored.items():
                labels = data.store.labels_N[list(rows)].tolist()
                summed[holder] += confusion_matrix(labels, list(islice(said, len(rows))), num_classes)
        everybody = list(chain(*held.values()))
        recordings = [data.store.utterances[row].recording for row in everybody]
        is_cut = self.config.data.segment_s is not None or len(set(recordings)) < len(recordings)
        if part != "test" or len(models) > 1 or not is_cut:
            return Scored(summed)
        labels = data.store.labels_N[everybody].tolist()
        recognised_N = np.equal(labels, predicted).astype(np.float64)
        return Scored(summed, products=recording_products(recognised_N, labels, recordings, num_classes))

    def confidences(self, models: Mapping[str, State], part: Part, temperature: float | None = None) -> Scored:
        data = self.data
        held = holders(data.store.utterances, getattr(data.split, part))
        nothing = confidence_sums(np.empty((0, len(data.store.classes))), (), temperature)
        summed = {holder: nothing.copy() for holder in held}
        for owner, network in self.loaded(models):
            asked = {owner: held[owner]} if owner in held else held
            for holder, sums in confidences_of(network, data.store, data.standardisation, asked, temperature).items():
                summed[holder] += sums
        lost = [holder for holder, sums in summed.items() if not np.isfinite(sums).all()]
        reason = "the model gives no finite output for its utterances"
        return Scored(
            {holder: sums for holder, sums in summed.items() if holder not in lost},
            tuple(ClientFailure(client_id=holder, error=reason, stage="validation") for holder in lost),
        )

    def loaded(self, models: Mapping[str, State]) -> Iterator[tuple[str, nn.Module]]:
        """The models one after the other, in one network on the device."""
        network = self._new_network()
        for owner, state in models.items():
            network.load_state_dict(state)
            yield owner, network

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
            box=self.box,
            start_BFL=own_starts(features_BFL, selection.epsilon, streams),
        )


def attempt(update: Callable[[ClientTask], ClientUpdate], task: ClientTask) -> Outcome:
    """Whatever a client raises costs its round an update, not the run."""
    try:
        return update(task)
    except Exception:
        return traceback.format_exc()

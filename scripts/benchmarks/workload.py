"""What the suites train: a small CRNN on drawn features, through the code that `ser-fl train` runs.

Legend: N utterances, F mel bins, L frames.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from ser_fl.config.compose import compose
from ser_fl.config.schema import Config
from ser_fl.data.features import Examples, load_examples, open_store
from ser_fl.data.frontend import FeatureStatistics, Standardisation
from ser_fl.data.prepared import Prepared
from ser_fl.data.splits import Split
from ser_fl.data.utterance import EMOTIONS, Utterance
from ser_fl.devices import threads_limited_to
from ser_fl.federation.client import Clients, ClientTask, Executor
from ser_fl.federation.cohort import cohort_size, sample_cohort
from ser_fl.federation.processes import ProcessExecutor, count_workers
from ser_fl.federation.rounds import Federation
from ser_fl.federation.server import Server, new_server
from ser_fl.runs.folder import RunFolder
from ser_fl.training.precision import resolve_precision

SMALL = ("model=crnn", "model.hidden=40")
"""132,743 parameters: the default CRNN with 40 in place of 64 hidden units."""
TINY = ("model=crnn_tiny",)
"""So small that next to nothing of a client-round is arithmetic."""
PGD5 = (
    "objective=pgd",
    "objective.recipe=per_step",
    "objective.from_round=1",
    "objective.steps=5",
    "objective.fraction=0.5",
)
"""Half of every batch replaced by its PGD-5 version."""
CLASSES = EMOTIONS[:6]
_PLAIN = (
    "tracking=none",
    "augmentation=none",
    "optimiser=adam",
    "federation.local_epochs=1",
    "federation.server_momentum=0",
    "federation.freeze_norm_from=0",
    "executor.engine=loop",
)
"""Nothing but what a loop written by hand does too; the Trainer's cost is a figure of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of drawn data: clients of equally many utterances, all of one length."""

    num_clients: int = 16
    clips: int = 56
    """Utterances of a client."""
    num_mels: int = 64
    num_frames: int = 100
    batch_size: int = 8

    @property
    def settings(self) -> tuple[str, ...]:
        """The overrides that fit them."""
        num_samples = (self.num_frames - 1) * 256 + 512
        return (
            f"frontend.num_mels={self.num_mels}",
            f"frontend.duration_s={num_samples / 16000}",
            f"federation.batch_size={self.batch_size}",
        )


@dataclass(frozen=True, kw_only=True)
class Workload:
    """An experiment on drawn features; the same shape gives the same ones."""

    config: Config
    prepared: Prepared
    shape: Shape

    @cached_property
    def clients(self) -> Clients:
        """As `ser-fl train` makes them."""
        return Clients(self.config, self.prepared)

    @cached_property
    def tasks(self) -> list[ClientTask]:
        """Of a first round: what every client receives."""
        algorithm = self.server().algorithm
        rate = self.config.optimiser.learning_rate
        with self.federation(self.clients) as federation:
            cohort = cohort_of(federation, 1)
        return [
            ClientTask(round=1, client_id=one, state=algorithm.model_for(one), learning_rate=rate) for one in cohort
        ]

    @property
    def cohort_size(self) -> int:
        """Clients of a round."""
        return cohort_size(len(self.prepared.clients), self.config.federation.fraction_train)

    def server(self) -> Server:
        """Before the first round."""
        return new_server(self.config, self.prepared.client_manifest())

    def examples(self) -> dict[str, Examples]:
        """Standardised features and labels by client, in memory: what a loop written by hand starts from."""
        store, standardisation = self.prepared.store, self.prepared.standardisation
        return {client: load_examples(store, held, standardisation) for client, held in self.prepared.clients.items()}

    def update_all(self) -> None:
        """A client-round of every client, one after the other in this process."""
        for task in self.tasks:
            self.clients.update(task)

    @contextmanager
    def federation(self, executor: Executor) -> Iterator[Federation]:
        """The round loop's own object, for its training; its run folder stays empty."""
        with tempfile.TemporaryDirectory() as folder:
            run, data = RunFolder(Path(folder)), self.prepared
            yield Federation(
                config=self.config,
                run=run,
                client_manifest=data.client_manifest(),
                executor=executor,
            )

    @contextmanager
    def rounds(self) -> Iterator[Rounds]:
        """Rounds with the configured executor, whose workers have trained a round already when this is entered."""
        with ExitStack() as stack:
            executor: Executor = self.clients
            if self.config.executor.name == "processes":
                workers = ProcessExecutor(self.clients, count_workers(self.config.executor, self.cohort_size))
                executor = stack.enter_context(closing(workers))
            rounds = Rounds(stack.enter_context(self.federation(executor)), self.server())
            rounds.play()
            yield rounds


@dataclass(slots=True)
class Rounds:
    """Rounds as in `ser-fl train`, without scores, records and checkpoints."""

    federation: Federation
    server: Server
    number: int = field(default=0)

    def play(self) -> None:
        """One round: broadcast, client updates, aggregation."""
        self.number += 1
        cohort, rate = cohort_of(self.federation, self.number), self.federation.config.optimiser.learning_rate
        results = self.federation.train(self.server, cohort, self.number, rate)
        if results.failures:
            raise RuntimeError(results.failures[0].error)


def cohort_of(federation: Federation, number: int) -> tuple[str, ...]:
    """The clients of a round."""
    fraction, seed = federation.config.federation.fraction_train, federation.config.seed
    return sample_cohort(federation.client_manifest.client_ids, fraction, seed, number)


@contextmanager
def drawn(shape: Shape) -> Iterator[Prepared]:
    """Seeded log-mel-like features in a memory-mapped file, as the feature cache leaves them, held by clients."""
    with tempfile.TemporaryDirectory() as folder:
        yield draw(Path(folder), shape)


def draw(folder: Path, shape: Shape) -> Prepared:
    """The data of `drawn`, in a folder of one's own."""
    file = folder / f"{shape.num_clients}x{shape.clips}x{shape.num_mels}x{shape.num_frames}.npy"
    total = shape.num_clients * shape.clips
    random = np.random.default_rng(0)
    rows = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(total, shape.num_mels, shape.num_frames))
    for row in rows:
        row[:] = random.standard_normal(row.shape, dtype=np.float32) * 2 - 6
    rows.flush()
    labels_N = torch.from_numpy(random.integers(len(CLASSES), size=total))
    clients = {f"c{i:02d}": tuple(range(i * shape.clips, (i + 1) * shape.clips)) for i in range(shape.num_clients)}
    utterances = tuple(
        Utterance(utterance_id=f"{client}/{index}", emotion=CLASSES[labels_N[index]], speaker=client)
        for client, held in clients.items()
        for index in held
    )
    store = open_store(file, labels_N, utterances, CLASSES)
    sums = [FeatureStatistics.of(store.features_NFL[torch.tensor(held)]) for held in clients.values()]
    frontend = compose([*_PLAIN, *shape.settings]).frontend
    return Prepared(
        store=store,
        split=Split(tuple(range(total)), (), ()),
        clients=clients,
        standardisation=Standardisation.from_statistics(sums, frontend),
    )


def workload(prepared: Prepared, shape: Shape, *overrides: str) -> Workload:
    """An experiment on data drawn in that shape; where nothing else is said, one thread a client, fp32 and `SMALL`."""
    model = SMALL if not any(override.startswith("model=") for override in overrides) else ()
    return Workload(
        config=compose(["precision=32-true", *_PLAIN, *shape.settings, *model, *overrides]),
        prepared=prepared,
        shape=shape,
    )


def default_precision() -> str:
    """What `precision=auto` comes to on this machine, for the workload."""
    with threads_limited_to(1):
        return resolve_precision(compose((*SMALL, *_PLAIN, *Shape().settings)), len(CLASSES)).precision

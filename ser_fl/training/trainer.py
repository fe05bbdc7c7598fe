"""Lightning Trainers for clients: every client and round has a new one, copied from one that was set up once."""

from __future__ import annotations

import functools
import logging
import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import entry_points
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Checkpoint, DeviceStatsMonitor, EarlyStopping, LearningRateMonitor, ProgressBar
from lightning.pytorch.profilers import PassThroughProfiler, Profiler

from ser_fl.config.schema import Config
from ser_fl.data.datamodule import ClientDataModule
from ser_fl.devices import CPU
from ser_fl.errors import UserError
from ser_fl.training.client_classifier import ClientClassifier
from ser_fl.training.lightning_internals import copy_of, leave_signals_alone, let_go

# Lightning makes torch look for GPUs through NVML, so that processes may be forked afterwards. Adam looks in every
# step, and loading NVML takes a tenth of a millisecond each time. Nothing is forked here.
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"

_NO_PLACE: tuple[tuple[type[pl.Callback], str], ...] = (
    (Checkpoint, "a client's Trainer writes no files; the run folder has the checkpoint of every round"),
    (
        LearningRateMonitor,
        "a client's Trainer has no logger; rounds.jsonl and the tracker have the rate of every round",
    ),
    (DeviceStatsMonitor, "a client's Trainer has no logger; profile=true measures where the time goes"),
    (ProgressBar, "many clients train in every round, maybe side by side; on_round tells of each round"),
)
"""Lightning's own callbacks that need what a client does not have."""


def check_callbacks(config: Config, callbacks: Sequence[pl.Callback]) -> None:
    """Refuse callbacks that could not do their work.

    Raises:
        UserError: one of Lightning's own needs a logger, files or a terminal, or the engine runs no callbacks.
    """
    if config.executor.engine == "loop" and (callbacks or has_installed_callbacks()):
        raise UserError("executor.engine=loop runs no callbacks, got some: use executor.engine=trainer")
    for callback in callbacks:
        for kind, reason in _NO_PLACE:
            if isinstance(callback, kind):
                raise UserError(f"{type(callback).__name__} cannot watch a client: {reason}")


@functools.cache
def has_installed_callbacks() -> bool:
    """Whether an installed package gives every Trainer callbacks of its own, by Lightning's entry point for that."""
    return bool(entry_points(group="lightning.pytorch.callbacks_factory"))


class Trainers:
    """Makes the Trainers of a process. Callbacks and the profiler are the same for all clients.

    `EarlyStopping` begins anew with each client, as with any fit. A callback of the user's own keeps what it gathers.
    """

    def __init__(
        self,
        config: Config,
        callbacks: Sequence[pl.Callback],
        device: torch.device = CPU,
        profiler: Profiler | None = None,
    ) -> None:
        self._made_of = config, callbacks, device, profiler
        self._unused: pl.Trainer | None = None
        self._fresh = [
            (callback, callback.state_dict()) for callback in callbacks if isinstance(callback, EarlyStopping)
        ]

    def fit(self, classifier: ClientClassifier, batches: ClientDataModule) -> torch.optim.Optimizer:
        """Train it, and return the optimiser that did."""
        with self.trainer() as trainer, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lightning's advice on workers and log intervals, every time
            _fit(trainer, classifier, batches)
            assert trainer.global_step > 0, "the Trainer took no step"
            return trainer.optimizers[0]

    @contextmanager
    def trainer(self) -> Iterator[pl.Trainer]:
        """A Trainer for one client and round, which lets go at the end of what it was given.

        Its flag for deterministic kernels holds for the process until then.
        """
        were = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        wanted = self._made_of[0].trainer.deterministic
        trainer = self._new()
        try:
            torch.use_deterministic_algorithms(bool(wanted) or were[0], warn_only=wanted == "warn" or were[1])
            yield trainer
        finally:
            torch.use_deterministic_algorithms(were[0], warn_only=were[1])
            let_go(trainer)

    def _new(self) -> pl.Trainer:
        if self._unused is None:
            self._unused = quiet_trainer(*self._made_of)
        for callback, state in self._fresh:
            callback.load_state_dict(state)
        return copy_of(self._unused)

    def __reduce__(self) -> tuple[Any, ...]:
        return Trainers, self._made_of


class _NoProfiler(PassThroughProfiler):
    """Lightning's own makes a generator for each of some thirty actions a batch."""

    _NOTHING = nullcontext()

    def profile(self, action_name: str) -> Any:
        return self._NOTHING


def quiet_trainer(
    config: Config, callbacks: Sequence[pl.Callback], device: torch.device = CPU, profiler: Profiler | None = None
) -> pl.Trainer:
    """A Lightning Trainer for one client and round: no files, no bars, one device, no cluster detection."""
    assert config.precision != "auto"
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    trainer = pl.Trainer(
        **config.trainer.changed,
        max_epochs=config.federation.local_epochs,
        accelerator=device.type,
        devices=[device.index or 0] if device.type == "cuda" else 1,
        precision=config.precision,
        callbacks=list(callbacks),
        plugins=[LightningEnvironment()],  # under SLURM the round loop is the job's one task, not each Trainer
        profiler=profiler or _NoProfiler(),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    leave_signals_alone(trainer)
    return trainer


def _fit(trainer: pl.Trainer, classifier: ClientClassifier, batches: ClientDataModule) -> None:
    """Fit, and let an interrupt be one.

    Lightning turns Ctrl-C into the end of the process and goes on ignoring the signal; the round loop owns it here.
    """
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(classifier, datamodule=batches)
    except SystemExit as end:
        if not isinstance(end.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, on_interrupt)
        raise KeyboardInterrupt from None

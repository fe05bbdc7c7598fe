"""Lightning Trainers for clients: every client and round has a new one, copied from one that was set up once."""

from __future__ import annotations

import copy
import functools
import logging
import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

from ser_fl.config.schema import Config
from ser_fl.data.datamodule import ClientDataModule
from ser_fl.devices import CPU
from ser_fl.models.classifier import EmotionClassifier

# Lightning makes torch look for GPUs through NVML, so that processes may be forked afterwards. Adam looks in every
# step, and loading NVML takes a tenth of a millisecond each time. Nothing is forked here.
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"


class Trainers:
    """Makes the Trainers of a process.

    Setting one up looks through every installed package for plugins, which takes longer than all of its other work for
    a small client. A copy of one that never ran is as good as a new one: its steps and epochs begin at 0, and nothing
    that a client or a callback did to an earlier one is in it. Callbacks and the profiler are not copied: all clients
    share them.
    """

    def __init__(
        self,
        config: Config,
        callbacks: Sequence[pl.Callback],
        device: torch.device = CPU,
        profiler: Profiler | None = None,
    ) -> None:
        self._config = config
        self._callbacks = tuple(callbacks)
        self._device = device
        self._profiler = profiler
        self._unused: pl.Trainer | None = None

    @contextmanager
    def trainer(self) -> Iterator[pl.Trainer]:
        """A Trainer for one client and round, which lets go at the end of what it was given."""
        trainer = self._new()
        try:
            yield trainer
        finally:
            _let_go(trainer)

    def fit(self, classifier: EmotionClassifier, batches: ClientDataModule) -> torch.optim.Optimizer:
        """Train it, and return the optimiser that did."""
        with self.trainer() as trainer, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lightning's advice on workers and log intervals, every time
            _fit(trainer, classifier, batches)
            assert trainer.global_step > 0, "the Trainer took no step"
            return trainer.optimizers[0]

    def _new(self) -> pl.Trainer:
        if self._unused is None:
            self._unused = quiet_trainer(self._config, self._callbacks, self._device, self._profiler)
        shared: dict[int, Any] = {id(part): part for part in (*self._callbacks, self._profiler)}
        return copy.deepcopy(self._unused, shared)

    def __reduce__(self) -> tuple[Any, ...]:
        return Trainers, (self._config, self._callbacks, self._device, self._profiler)


@functools.cache
def has_installed_callbacks() -> bool:
    """Whether an installed package gives every Trainer callbacks of its own, by Lightning's entry point for that."""
    return bool(entry_points(group="lightning.pytorch.callbacks_factory"))


def _fit(trainer: pl.Trainer, classifier: EmotionClassifier, batches: ClientDataModule) -> None:
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


def _let_go(trainer: pl.Trainer) -> None:
    """Drop the client's examples, network and optimiser, so that they are freed at once.

    A Trainer and its parts hold each other, and callbacks hold its module by the logging functions that they are given:
    with all that hangs to them they would stay until the garbage collector comes by, which takes many clients. Metrics
    stay, for a callback that kept the Trainer.
    """
    for part in vars(trainer).keys() - {"state", "callbacks", "_logger_connector"}:
        delattr(trainer, part)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for function in ("log", "log_dict"):
            vars(callback).pop(function, None)


def quiet_trainer(
    config: Config, callbacks: Sequence[pl.Callback], device: torch.device = CPU, profiler: Profiler | None = None
) -> pl.Trainer:
    """A Lightning Trainer for one client and round: no files, no bars, one device, no cluster detection."""
    assert config.precision != "auto"
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    trainer = pl.Trainer(
        max_epochs=config.federation.local_epochs,
        accelerator=device.type,
        devices=[device.index or 0] if device.type == "cuda" else 1,
        precision=config.precision,
        callbacks=list(callbacks),
        plugins=[LightningEnvironment()],  # under SLURM the round loop is the job's one task, not each Trainer
        profiler=profiler,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    trainer._signal_connector = _NoSignals(trainer)
    return trainer


class _NoSignals(_SignalConnector):
    """Leaves signals to the round loop, under SLURM too; Lightning's own SIGTERM ends the fit, and the process."""

    def register_signal_handlers(self) -> None:
        pass

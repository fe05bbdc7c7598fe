"""How a client trains in one round: its module, and the Lightning Trainer or the plain loop that takes the steps. Every
client and round has a new Trainer, copied from one that was set up once.

Legend: B batch, F mel bins, L frames.
"""

import functools
import logging
import os
import signal
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import entry_points
from itertools import product
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Checkpoint, DeviceStatsMonitor, EarlyStopping, LearningRateMonitor, ProgressBar
from lightning.pytorch.profilers import PassThroughProfiler, Profiler
from torch import Tensor, nn

from ser_fl.config.schema import Config
from ser_fl.config.values import ObjectConfig
from ser_fl.data.datamodule import Batch, ClientDataModule
from ser_fl.devices import CPU, autocast
from ser_fl.errors import UserError
from ser_fl.models.classifier import EmotionClassifier
from ser_fl.models.normalisation import BatchRenorm2d
from ser_fl.stopwatch import ClientPart, Stopwatch
from ser_fl.training.lightning_internals import QuickHookNames, copy_of, leave_signals_alone, let_go
from ser_fl.training.objectives import ClientRound, TrainingPlan

# Lightning makes torch look for GPUs through NVML, so that processes may be forked afterwards. Adam looks in every
# step, and loading NVML takes a tenth of a millisecond each time. Nothing is forked here.
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"

_NO_PLACE: dict[type[pl.Callback], str] = {
    Checkpoint: "a client's Trainer writes no files; the run folder has the checkpoint of every round",
    LearningRateMonitor: "a client's Trainer has no logger; rounds.jsonl and the tracker have the rate of every round",
    DeviceStatsMonitor: "a client's Trainer has no logger; profile=true measures where the time goes",
    ProgressBar: "many clients train in every round, maybe side by side; on_round tells of each round",
}
"""Lightning's own callbacks that need what a client does not have."""
_PARTS: dict[str, ClientPart] = {
    "train_dataloader_next": "data",
    "batch_to_device": "data",
    "transfer_batch_to_device": "data",
    "training_step": "forward",
    "backward": "backward",
    "configure_optimizers": "optimiser",
    "optimizer_step": "optimiser",
    "optimizer_zero_grad": "optimiser",
}
"""By the name of Lightning's hook; all others are the trainer's. Its optimizer_step holds the whole of a training step,
of which what has no other part is left."""


class ClientClassifier(QuickHookNames, EmotionClassifier):
    """The local epochs of one client in one round: `EmotionClassifier` with what the round and its plan ask of it.
    ``optimiser_state`` is what the optimiser carries from the client's last round, by ``"<parameter index>.<entry>"``.
    """

    def __init__(
        self,
        config: Config,
        num_classes: int,
        given: ClientRound,
        plan: TrainingPlan,
        *,
        learning_rate: float,
        optimiser_state: Mapping[str, Tensor],
    ) -> None:
        super().__init__(
            None if "network" in config.objects or isinstance(config.model, ObjectConfig) else config.model,
            num_classes,
            optimiser=replace(config.optimiser, learning_rate=learning_rate),
            augmentation=plan.augmentation,
            seed=config.seed,
            network=given.network,
        )
        self.watch, self.stream, self._plan = given.watch, given.stream, plan
        self._freezes_norm = 0 < config.federation.freeze_norm_from <= given.number
        self._optimiser_state = optimiser_state
        self._augmented: Batch = torch.empty(0), torch.empty(0)
        """The minibatch that is replayed."""

    def on_train_start(self) -> None:
        """What stands still leaves training mode again. From `federation.freeze_norm_from` on, batch norm normalises by
        the running statistics it was given and keeps them, while its scale and shift are trained (the second stage of
        FixBN: Zhong et al., arXiv 2303.06530, section 5). Batch renormalisation goes on, since it trains what is
        tested.
        """
        for module in self.network.modules() if self._freezes_norm else ():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, BatchRenorm2d):
                module.eval()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The objective's loss of the augmented batch, which is the same for all of its replays."""
        if batch_idx % self._plan.replays == 0:
            with self.watch("data"):
                self._augmented = self.augmented(batch)
        loss, logits_BC = self._plan.loss(self.network, *self._augmented)
        self._steps.append((loss.detach(), logits_BC.detach(), batch[1]))
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the epoch, where a callback could see it."""
        if self.trainer.callbacks:  # type: ignore[attr-defined]
            super().on_train_epoch_end()
        else:
            self.score_epoch(only_loss=True)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As configured; Lightning would look for what there is to clip where nothing is."""
        if gradient_clip_val is not None:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimiser = super().configure_optimizers()
        if self._optimiser_state:
            parameters, laid_out = list(self.network.parameters()), defaultdict[int, dict[str, Tensor]](dict)
            for key, entry in self._optimiser_state.items():
                index, name = key.split(".", 1)
                moment = torch.empty_like(parameters[int(index)])  # its memory layout, which no checkpoint keeps
                laid_out[int(index)][name] = moment.copy_(entry) if entry.shape == moment.shape else entry.clone()
            groups = optimiser.state_dict()["param_groups"]
            optimiser.load_state_dict({"state": dict(sorted(laid_out.items())), "param_groups": groups})
        return optimiser


def fit_in_loop(
    classifier: ClientClassifier, batches: ClientDataModule, *, epochs: int, device: torch.device, bf16: bool
) -> torch.optim.Optimizer:
    """A client's local epochs as `Trainers.fit` runs them without callbacks, to the same bits; returns the optimiser.

    A Trainer costs some milliseconds a client and some tenths of one a batch (``results/bench/trainer.md``), for flags,
    loggers and callbacks that this loop lacks. With ``bf16`` only the training step runs under autocast, as in
    "bf16-mixed".
    """
    watch = classifier.watch
    classifier.to(device)
    with watch("optimiser"):
        optimiser = classifier.configure_optimizers()
    classifier.on_train_start()
    for _ in range(epochs):
        with watch("data"):
            loader = iter(batches.train_dataloader())
        for number in range(len(batches.batches)):
            with watch("data"):
                batch = batches.transfer_batch_to_device(next(loader), device, 0)
            with watch("forward"), autocast(device, bf16=bf16):
                loss = classifier.training_step(batch, number)
            with watch("optimiser"):
                optimiser.zero_grad()
            with watch("backward"):
                torch.autograd.backward(loss)
            with watch("optimiser"):
                optimiser.step()
        classifier.score_epoch(only_loss=True)
    return optimiser


class Trainers:
    """Makes the Trainers of a process, whose callbacks and stopwatch all clients share. `EarlyStopping` begins anew
    with each client; a callback of the user's own keeps what it gathers.
    """

    def __init__(
        self,
        config: Config,
        callbacks: Sequence[pl.Callback],
        device: torch.device = CPU,
        stopwatch: Stopwatch | None = None,
    ) -> None:
        self._made_of = config, callbacks, device, stopwatch
        self._unused: pl.Trainer | None = None
        self._fresh = [
            (callback, callback.state_dict()) for callback in callbacks if isinstance(callback, EarlyStopping)
        ]

    def fit(self, classifier: ClientClassifier, batches: ClientDataModule) -> torch.optim.Optimizer:
        """Train it, and return the optimiser that did. The Trainer's flag for deterministic kernels holds for the
        process until then. An interrupt stays one: Lightning turns Ctrl-C into the end of the process and ignores the
        signal from then on.
        """
        were = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        wanted, on_interrupt = self._made_of[0].trainer.deterministic, signal.getsignal(signal.SIGINT)
        self._unused = self._unused or quiet_trainer(*self._made_of)
        trainer = copy_of(self._unused)
        for callback, state in self._fresh:
            callback.load_state_dict(state)
        try:
            torch.use_deterministic_algorithms(bool(wanted) or were[0], warn_only=wanted == "warn" or were[1])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Lightning's advice on workers and log intervals, every time
                trainer.fit(classifier, datamodule=batches)
            assert trainer.global_step > 0, "the Trainer took no step"
            return trainer.optimizers[0]
        except SystemExit as end:
            if not isinstance(end.__context__, KeyboardInterrupt):
                raise
            signal.signal(signal.SIGINT, on_interrupt)
            raise KeyboardInterrupt from None
        finally:
            torch.use_deterministic_algorithms(were[0], warn_only=were[1])
            let_go(trainer)


def quiet_trainer(
    config: Config, callbacks: Sequence[pl.Callback], device: torch.device = CPU, stopwatch: Stopwatch | None = None
) -> pl.Trainer:
    """A Lightning Trainer for one client and round: no files, no bars, one device, no cluster detection."""
    assert config.precision != "auto", "resolve_precision comes first"
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    trainer = pl.Trainer(
        **vars(config.trainer),
        max_epochs=config.federation.local_epochs,
        accelerator=device.type,
        devices=[device.index or 0] if device.type == "cuda" else 1,
        precision=config.precision,
        callbacks=list(callbacks),
        plugins=[LightningEnvironment()],  # under SLURM the round loop is the job's one task, not each Trainer
        profiler=FitProfiler(stopwatch) if stopwatch else _NoProfiler(),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    leave_signals_alone(trainer)
    return trainer


class FitProfiler(Profiler):
    """Where the time of a fit goes, by Lightning's own account: its hooks as parts of a stopwatch."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        super().__init__()
        self._stopwatch = stopwatch

    def start(self, action_name: str) -> None:
        hook = action_name.rpartition(".")[2]  # of ``[Strategy]SingleDeviceStrategy.backward``
        self._stopwatch.enter("trainer" if action_name.startswith("[Callback]") else _PARTS.get(hook, "trainer"))

    def stop(self, action_name: str) -> None:
        self._stopwatch.leave()


class _NoProfiler(PassThroughProfiler):
    """Lightning's own makes a generator for each of some thirty actions a batch."""

    _NOTHING = nullcontext()

    def profile(self, action_name: str) -> Any:
        return self._NOTHING


def check_callbacks(config: Config, callbacks: Sequence[pl.Callback]) -> None:
    """Refuse callbacks that could not work: the engine runs none, or one needs a logger, files or a terminal."""
    if config.executor.engine == "loop" and (callbacks or has_installed_callbacks()):
        raise UserError("executor.engine=loop runs no callbacks, got some: use executor.engine=trainer")
    for callback, (kind, reason) in product(callbacks, _NO_PLACE.items()):
        if isinstance(callback, kind):
            raise UserError(f"{type(callback).__name__} cannot watch a client: {reason}")


@functools.cache
def has_installed_callbacks() -> bool:
    """Whether an installed package gives every Trainer callbacks of its own, by Lightning's entry point for that."""
    return bool(entry_points(group="lightning.pytorch.callbacks_factory"))

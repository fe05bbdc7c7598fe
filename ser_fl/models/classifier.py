"""The LightningModule around any network: what a client's Trainer sees.

Legend: B batch, F mel bins, L frames, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from ser_fl.config.schema import AugmentationConfig, OptimiserConfig
from ser_fl.data.augmentation import augment
from ser_fl.data.datamodule import Batch
from ser_fl.models.norms import BatchRenorm2d
from ser_fl.stopwatch import UNWATCHED, Watch

Harden = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(network, features_BFL, labels_B) -> what to train on, features_BFL, some of them adversarial."""

StepLoss = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(network, features_BFL, labels_B) -> the loss of a step, and the clean utterances' logits_BC, which are scored."""


class EmotionClassifier(pl.LightningModule):
    """Cross-entropy training of one client in one round.

    The last epoch's `train_loss` and `train_accuracy`, means over utterances, are in `metrics`, and for a user's
    callback in ``trainer.callback_metrics``.

    With ``replays`` above 1 the data module gives every minibatch so many times in a row.

    With ``freeze_norm`` batch norm normalises by the running statistics it was given and leaves them as they are, while
    its scale and shift are trained (the second stage of FixBN: Zhong et al., arXiv 2303.06530, section 5). Batch
    renormalisation goes on, since it trains what is tested.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        optimiser: OptimiserConfig,
        learning_rate: float,
        augmentation: AugmentationConfig,
        stream: Generator,
        harden: Harden | None = None,
        step_loss: StepLoss | None = None,
        replays: int = 1,
        freeze_norm: bool = False,
        optimiser_state: dict[int, dict[str, Tensor]] | None = None,
        watch: Watch = UNWATCHED,
    ) -> None:
        super().__init__()
        self.network = network
        self.optimiser = optimiser
        self.learning_rate = learning_rate
        self.augmentation = augmentation
        self.stream = stream
        self.harden = harden
        self.step_loss = step_loss
        self.replays = replays
        self.freeze_norm = freeze_norm
        self.optimiser_state = optimiser_state
        self.watch = watch
        self.metrics: dict[str, Tensor] = {}
        self._scored: list[tuple[Tensor, Tensor, Tensor]] = []
        """Loss, logits and labels of this epoch's batches."""
        self._augmented_BFL = torch.empty(0)
        """The minibatch that is replayed."""

    def __setattr__(self, name: str, value: Any) -> None:
        """As every module, but for the name of the hook that is running, which Lightning notes some forty times a step.

        A module would look each time whether it is a parameter.
        """
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def forward(self, features_BFL: Tensor) -> Tensor:
        """Logits of shape (B, C) from standardised features of shape (B, F, L)."""
        logits_BC: Tensor = self.network(features_BFL)
        return logits_BC

    def on_train_start(self) -> None:
        """The network is in training mode by now; what stands still leaves it again."""
        if self.freeze_norm:
            for module in self.network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, BatchRenorm2d):
                    module.eval()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch: augmented, once before its replays, then hardened where the objective says so."""
        features_BFL, labels_B = batch
        if batch_idx % self.replays == 0:
            with self.watch.part("data"):
                self._augmented_BFL = augment(features_BFL, labels_B, self.augmentation, self.stream)
        features_BFL = self._augmented_BFL
        if self.step_loss is not None:
            loss, logits_BC = self.step_loss(self.network, features_BFL, labels_B)
        else:
            if self.harden is not None:
                features_BFL = self.harden(self.network, features_BFL, labels_B)
            logits_BC = self(features_BFL)
            loss = functional.cross_entropy(logits_BC, labels_B, label_smoothing=self.augmentation.label_smoothing)
        self._scored.append((loss.detach(), logits_BC.detach(), labels_B))
        return loss

    def on_train_epoch_end(self) -> None:
        """Show the epoch's metrics; they are computed once an epoch, so that no step waits for them.

        In the same places as `self.log` would, which keeps books for loggers that a client's Trainer does not have.
        """
        if not self._scored:
            return  # a callback skipped the epoch
        losses, logits, labels = zip(*self._scored, strict=True)
        total = sum(loss.float() * len(labels_B) for loss, labels_B in zip(losses, labels, strict=True))
        labels_N = torch.cat(labels)
        self.metrics = {
            "train_loss": total / len(labels_N),
            "train_accuracy": (torch.cat(logits).argmax(dim=1) == labels_N).float().mean(),
        }
        if self._trainer is not None:
            self.trainer.callback_metrics.update(self.metrics)
            self.trainer.logged_metrics.update(self.metrics)
        self._scored.clear()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The client's optimiser, with the state that it carries from its last round, if any."""
        settings, parameters = self.optimiser, self.network.parameters()
        decay = settings.weight_decay
        optimiser: torch.optim.Optimizer
        if settings.name == "sgd":
            optimiser = torch.optim.SGD(
                parameters, self.learning_rate, settings.momentum, weight_decay=decay, fused=True
            )
        elif settings.name == "adamw":
            optimiser = torch.optim.AdamW(parameters, self.learning_rate, weight_decay=decay, fused=True)
        else:
            optimiser = torch.optim.Adam(parameters, self.learning_rate, weight_decay=decay, fused=True)
        if self.optimiser_state is not None:
            laid_out = {
                index: {name: _laid_out_as(parameter, entry) for name, entry in self.optimiser_state[index].items()}
                for index, parameter in enumerate(self.network.parameters())
            }
            groups = optimiser.state_dict()["param_groups"]
            optimiser.load_state_dict({"state": laid_out, "param_groups": groups})
        return optimiser


def _laid_out_as(parameter: Tensor, entry: Tensor) -> Tensor:
    """A moment in its parameter's memory layout; counters stay as they are.

    A checkpoint does not keep the layout, and fused optimisers take it for granted.
    """
    return torch.empty_like(parameter).copy_(entry) if entry.shape == parameter.shape else entry

"""The LightningModule around any network: what a Trainer trains, validates, tests and asks.

Legend: N utterances, B batch, F mel bins, L frames, C classes.
"""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassRecall

from ser_fl.config.data import AugmentationConfig
from ser_fl.config.schema import checked
from ser_fl.config.training import ModelConfig, OptimiserConfig
from ser_fl.config.values import Count, stage
from ser_fl.data.augmentation import augment, mix
from ser_fl.data.datamodule import Batch
from ser_fl.errors import UserError
from ser_fl.files import adapter
from ser_fl.models.networks import build_network
from ser_fl.randomness import generator


@stage
class _HyperParameters:
    """What a checkpoint holds of `EmotionClassifier`'s arguments, as plain values that torch loads without pickle."""

    model: ModelConfig | None
    num_classes: Count
    optimiser: OptimiserConfig
    augmentation: AugmentationConfig
    seed: int


class EmotionClassifier(pl.LightningModule):
    """Cross-entropy training of a network, and its scores.

    Logged once an epoch: ``train_loss``, ``train_uar``, ``train_accuracy``, and so with ``val_`` and ``test_``. UAR is
    the mean recall of the classes that occur; torchmetrics counts one that is only predicted, which a run's records
    leave out.

    ``load_from_checkpoint(path)`` needs nothing but the path, unless the network was one of your own. A fit that goes
    on from a checkpoint (``fit(ckpt_path=...)``) ends with the weights of an uninterrupted one: it holds the streams of
    augmentation, dropout and shuffling.

    >>> from ser_fl import compose
    >>> config = compose(["model=crnn_tiny"])
    >>> EmotionClassifier(config.model, 5, optimiser=config.optimiser, augmentation=config.augmentation).hparams["seed"]
    1

    Args:
        model: the network's settings, as `ser_fl.compose` gives them, or a mapping of the same names; None with a
            network of your own.
        num_classes: C, at least 1.
        optimiser: name, learning rate and more. Its schedule goes by rounds, and is left to whoever counts them.
        augmentation: of training batches.
        seed: initial weights and augmentation.
        network: from (B, F, L) to (B, C), in place of a new one; whoever loads a checkpoint gives one too.

    Raises:
        UserError: a setting is out of its range.
    """

    def __init__(
        self,
        model: ModelConfig | Mapping[str, Any] | None,
        num_classes: int,
        *,
        optimiser: OptimiserConfig | Mapping[str, Any],
        augmentation: AugmentationConfig | Mapping[str, Any],
        seed: int = 1,
        network: nn.Module | None = None,
    ) -> None:
        super().__init__()
        given: dict[str, Any] = {"model": model, "num_classes": num_classes, "optimiser": optimiser}
        given |= {"augmentation": augmentation, "seed": seed}
        settings = checked(_HyperParameters, given)
        # save_hyperparameters() would look through the callers' frames, and keep alive what they hold.
        self.hparams.update(adapter(_HyperParameters).dump_python(settings, mode="json"))
        self.optimiser, self.augmentation = settings.optimiser, settings.augmentation
        if network is None:
            if settings.model is None:
                raise UserError("model=None needs network=..., a network of your own")
            network = build_network(settings.model, num_classes, seed=seed)
        self.network = network
        self.num_classes = num_classes
        self._figures: MetricCollection | None = None
        self.train_figures: dict[str, Tensor] = {}
        """Of the last training epoch."""
        self.stream = generator(seed, "augmentation")
        self._steps: list[tuple[Tensor, Tensor, Tensor]] = []
        self._streams_to_restore: dict[str, Tensor] = {}

    @property
    def figures(self) -> MetricCollection:
        """Of the epoch that is going on: of training at its end, of validation and test batch by batch."""
        if self._figures is None:  # a client that nobody watches never asks, and they take a millisecond to make
            figures: dict[str, Metric | MetricCollection] = {
                # A loss that is not a number stays one. ("disable" would say so, and drops the weights in 1.9.)
                "loss": MeanMetric(nan_strategy=float("nan")),
                "uar": MulticlassRecall(self.num_classes, average="macro"),
                "accuracy": MulticlassAccuracy(self.num_classes, average="micro"),
            }
            self._figures = MetricCollection(figures, compute_groups=False).to(self.device)
        return self._figures

    def forward(self, features_BFL: Tensor) -> Tensor:
        """Logits of shape (B, C) from standardised features of shape (B, F, L)."""
        logits_BC: Tensor = self.network(features_BFL)
        return logits_BC

    def augmented(self, batch: Batch) -> Batch:
        """A training batch after augmentation; labels are of shape (B, C) where it is mixed."""
        features_BFL, labels_B, *more = batch
        features_BFL = augment(features_BFL, labels_B, self.augmentation, self.stream)
        if not self.augmentation.mixup:
            return features_BFL, labels_B, *more
        return mix(features_BFL, labels_B, self.num_classes, self.augmentation.mixup, self.stream)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        features_BFL, targets = self.augmented(batch)
        logits_BC = self(features_BFL)
        loss = F.cross_entropy(logits_BC, targets, label_smoothing=self.augmentation.label_smoothing)
        self._steps.append((loss.detach(), logits_BC.detach(), batch[1]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        features_BFL, labels_B = batch
        logits_BC = self(features_BFL)
        loss = F.cross_entropy(logits_BC, labels_B)
        self.figures.update(value=loss.float(), weight=len(labels_B), preds=logits_BC, target=labels_B)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Batch | Tensor, batch_idx: int) -> Tensor:
        """Probabilities of shape (B, C), from features or from a batch with its labels."""
        features_BFL = batch if isinstance(batch, Tensor) else batch[0]
        return torch.softmax(self(features_BFL).float(), dim=1)

    def on_train_epoch_end(self) -> None:
        self.log_dict({f"train_{name}": value for name, value in self.score_epoch().items()})

    def on_validation_epoch_end(self) -> None:
        part = "test" if self.trainer.testing else "val"
        self.log_dict({f"{part}_{name}": value for name, value in self.figures.compute().items()})
        self.figures.reset()

    def on_test_epoch_end(self) -> None:
        self.on_validation_epoch_end()

    def score_epoch(self, *, only_loss: bool = False) -> dict[str, Tensor]:
        """Figures of the training epoch that ends: computed once, so that no step pays for them or waits for a device.
        Empty where a callback skipped the epoch.
        """
        if not self._steps:
            return {}
        losses, logits, labels = zip(*self._steps, strict=True)
        self._steps.clear()
        total = sum(
            (loss.float() * len(of_step) for loss, of_step in zip(losses, labels, strict=True)), torch.zeros(())
        )
        labels_N = torch.cat(labels)
        self.train_figures = {"loss": total / len(labels_N)}
        if not only_loss:
            logits_NC = torch.cat(logits)
            for name in ("uar", "accuracy"):
                self.train_figures[name] = self.figures[name](logits_NC, labels_N)
            self.figures.reset()
        return self.train_figures

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser of all parameters of the network; fused, but where a gradient scaler must come between."""
        settings, parameters = self.optimiser, self.network.parameters()
        fused = self._trainer is None or self.trainer.precision != "16-mixed"
        rate, decay = settings.learning_rate, settings.weight_decay
        if settings.name == "sgd":
            return torch.optim.SGD(parameters, rate, settings.momentum, weight_decay=decay, fused=fused)
        kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
        return kind(parameters, rate, weight_decay=decay, fused=fused)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        streams = {"augmentation": self.stream.get_state(), "torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            streams["cuda"] = torch.cuda.get_rng_state(self.device)
        checkpoint["streams"] = streams

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """For a fit alone: whoever only loads a model keeps his own streams."""
        self._streams_to_restore = checkpoint.get("streams", {})

    def on_fit_start(self) -> None:
        """Log the hyper-parameters, and go on in the streams of the checkpoint, if there is one."""
        for logger in self.loggers:
            logger.log_hyperparams(dict(self.hparams))
        streams, self._streams_to_restore = self._streams_to_restore, {}
        if streams:
            self.stream.set_state(streams["augmentation"].cpu())
            torch.set_rng_state(streams["torch"].cpu())
        if "cuda" in streams and self.device.type == "cuda":
            torch.cuda.set_rng_state(streams["cuda"].cpu(), self.device)

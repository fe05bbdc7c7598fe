"""What an objective is: given a client's round, what its steps train on and minimise.

Legend: B batch, F mel bins, L frames, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ser_fl.attacks.domains import Domain
from ser_fl.attacks.threat_model import Box
from ser_fl.config.data import AugmentationConfig
from ser_fl.data.features import Examples
from ser_fl.stopwatch import UNWATCHED, Watch

StepLoss = Callable[..., tuple[Tensor, Tensor]]
"""(network, features_BFL, labels_B) -> the loss of a step, and the clean utterances' logits_BC, which are scored. With
`augmentation.mixup` labels are probabilities of shape (B, C). Examples with `speakers_N` are given speakers_B too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    examples: Examples
    num_examples: int
    """Distinct clean utterances among them: the client's weight in the average."""
    augmentation: AugmentationConfig
    """What is done to each batch before its loss is taken."""
    loss: StepLoss
    replays: int = 1
    """How many times in a row each minibatch is trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldRecordings:
    """The recordings of a client's examples, for attacks on them."""

    domain: Domain
    ids: tuple[str, ...]
    num_classes: int
    seed: int
    """Of the attacks' random starts in this round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRound:
    """One client's round before its first step."""

    number: int
    """Of the round, from 1."""
    network: nn.Module
    """With the weights that the client received, in training mode, on its device."""
    examples: Examples
    speakers: tuple[str, ...] = ()
    """Of each example."""
    stream: Generator
    """The client's own random numbers in this round, on the CPU."""
    augmentation: AugmentationConfig
    box: Box
    """The values that features may take, on the network's device."""
    low_precision: bool = False
    """Whether adversarial utterances are made in bfloat16, as the network is then trained."""
    watch: Watch = UNWATCHED
    class_weights_C: Tensor | None = None
    """What an utterance counts by its class, on the network's device (`class_balance=loss`); None: all alike."""
    recordings: HeldRecordings | None = None
    """Of the examples, where the objective attacks them (`objective.snr_db`)."""

    def cross_entropy(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """Of a batch, with the configured label smoothing and balance of classes. Of a mixed utterance each label's
        loss counts by its share and as often as its class.
        """
        smoothing = self.augmentation.label_smoothing
        if self.class_weights_C is None:
            return F.cross_entropy(logits_BC, labels_B, label_smoothing=smoothing)
        weights_B = self._weights(labels_B, self.class_weights_C)
        if labels_B.dim() == 2:
            labels_B = labels_B * self.class_weights_C / weights_B[:, None]
        return (F.cross_entropy(logits_BC, labels_B, label_smoothing=smoothing, reduction="none") * weights_B).mean()

    def mean(self, losses_B: Tensor, labels_B: Tensor) -> Tensor:
        """Of a batch's losses, each utterance's as often as its class counts. The sum is divided by the batch's size
        and not by that of its weights: over an epoch every class then has the same share, however small the batches.
        """
        if self.class_weights_C is None:
            return losses_B.mean()
        return (losses_B * self._weights(labels_B, self.class_weights_C)).mean()

    @staticmethod
    def _weights(labels_B: Tensor, class_weights_C: Tensor) -> Tensor:
        return labels_B @ class_weights_C if labels_B.dim() == 2 else class_weights_C[labels_B]

    def on_all(self, loss: StepLoss, replays: int = 1) -> TrainingPlan:
        return TrainingPlan(
            examples=self.examples,
            num_examples=len(self.examples.labels_N),
            augmentation=self.augmentation,
            loss=loss,
            replays=replays,
        )


class Objective:
    """What clients minimise: the cross-entropy of clean utterances. An objective of your own overrides `loss`, or
    `start_round` where it chooses its examples too; it goes by `class_balance=loss` with `given.cross_entropy` or
    `given.mean`. One object serves all clients and rounds, and is pickled for worker processes: what belongs to one
    round goes into the loss.
    """

    def start_round(self, given: ClientRound) -> TrainingPlan:
        return given.on_all(partial(self.loss, given))

    def loss(
        self, given: ClientRound, network: nn.Module, features_BFL: Tensor, labels_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss of a training step in a round, and the utterances' logits of shape (B, C), which it is scored by.
        The network is in training mode, the batch augmented.
        """
        logits_BC: Tensor = network(features_BFL)
        return given.cross_entropy(logits_BC, labels_B), logits_BC


def balanced_weights(labels_N: Tensor, num_classes: int) -> Tensor:
    """Weights of shape (C,) inverse to the counts of a client's own training utterances: N / (classes present * count),
    so that they are 1 on the average over its utterances. A class that it lacks has none to weigh.

    >>> from torch import tensor
    >>> balanced_weights(tensor([0, 0, 0, 2]), 3)[[0, 2]]
    tensor([0.6667, 2.0000])
    """
    counts_C = labels_N.bincount(minlength=num_classes)
    return len(labels_N) / (counts_C.count_nonzero() * counts_C.clamp(min=1))

"""What an objective is: given a client's round, what its steps train on and minimise.

Legend: B batch, F mel bins, L frames, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ser_fl.attacks.threat_model import Box
from ser_fl.config.data import AugmentationConfig
from ser_fl.data.features import Examples
from ser_fl.stopwatch import UNWATCHED, Watch

StepLoss = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(network, features_BFL, labels_B) -> the loss of a step, and the clean utterances' logits_BC, which are scored."""


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
class ClientRound:
    """One client's round before its first step."""

    number: int
    """Of the round, from 1."""
    network: nn.Module
    """With the weights that the client received, in training mode, on its device."""
    examples: Examples
    stream: Generator
    """The client's own random numbers in this round, on the CPU."""
    augmentation: AugmentationConfig
    box: Box
    """The values that features may take, on the network's device."""
    low_precision: bool = False
    """Whether adversarial utterances are made in bfloat16, as the network is then trained."""
    watch: Watch = UNWATCHED

    def on_all(self, loss: StepLoss, replays: int = 1) -> TrainingPlan:
        return TrainingPlan(
            examples=self.examples,
            num_examples=len(self.examples),
            augmentation=self.augmentation,
            loss=loss,
            replays=replays,
        )


class Objective:
    """What clients minimise: the cross-entropy of clean utterances. An objective of your own overrides `loss`, or
    `start_round` where it chooses its examples too. One object serves all clients and rounds, and is pickled for worker
    processes: what belongs to one round goes into the loss.
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
        return F.cross_entropy(logits_BC, labels_B, label_smoothing=given.augmentation.label_smoothing), logits_BC

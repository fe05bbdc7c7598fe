"""The best that an attack has found for each utterance, and when something else is better.

Legend: B utterances, N some of them; whatever follows B is what is moved: mel bins and frames, or samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ser_fl.attacks.losses import Loss, margin
from ser_fl.attacks.target import Target
from ser_fl.attacks.threat_model import per_utterance

_ALIKE = 1e-6
"""Probabilities of being recognised that differ by rounding."""


@dataclass(frozen=True, slots=True, eq=False)
class BestAdversarial:
    """Inputs, and what the model says of them: the less they are recognised the better, then the larger the loss.

    What is compared must have been asked under the same draws of a randomised model.
    """

    inputs: Tensor
    """Shape (B, ...)."""
    right_B: Tensor
    """Probability of being recognised, in [0, 1]."""
    loss_B: Tensor

    @classmethod
    def of(
        cls, target: Target, inputs: Tensor, labels_B: Tensor, *, loss: Loss = margin, step: int = 0
    ) -> BestAdversarial:
        """These inputs, by one forward pass an utterance and draw."""
        loss_B, right_B = target.score(inputs, labels_B, loss, step=step)
        return cls(inputs, right_B, loss_B)

    def or_better(self, other: BestAdversarial) -> BestAdversarial:
        """The better of the two for each utterance; this one where they are equal."""
        fewer_B = self.right_B - other.right_B
        better_B = (fewer_B > _ALIKE) | ((fewer_B >= -_ALIKE) & (other.loss_B > self.loss_B))
        return BestAdversarial(
            torch.where(per_utterance(better_B, self.inputs), other.inputs, self.inputs),
            torch.where(better_B, other.right_B, self.right_B),
            torch.where(better_B, other.loss_B, self.loss_B),
        )

    def subset(self, rows_N: Tensor) -> BestAdversarial:
        """Of some of the utterances."""
        return BestAdversarial(self.inputs[rows_N], self.right_B[rows_N], self.loss_B[rows_N])

    def put(self, rows_N: Tensor, other: BestAdversarial) -> BestAdversarial:
        """With other inputs for some of the utterances."""
        return BestAdversarial(
            self.inputs.index_copy(0, rows_N, other.inputs),
            self.right_B.index_copy(0, rows_N, other.right_B),
            self.loss_B.index_copy(0, rows_N, other.loss_B),
        )

    def unbroken(self) -> Tensor:
        """Rows of the utterances that the model still recognises, or may."""
        return (self.right_B > 0).nonzero().flatten()

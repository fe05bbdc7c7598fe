"""The model as an attack may question it: logits, losses and gradients, every pass counted.

With a `Defence` in front of it whose randomness the attacker knows of, every answer is an expectation over draws of the
defence (expectation over transformation: Athalye et al. 2018, arXiv 1802.00420), so that one attack is written once and
is adaptive where it is asked to be.

Legend: B utterances, C classes, F mel bins, L frames, K draws; inputs are features_BFL, or whatever `to_features` maps
to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser_fl.attacks.art.estimator import Passes
from ser_fl.attacks.losses import Loss, cross_entropy
from ser_fl.attacks.settings import AttackSettings
from ser_fl.attacks.threat_model import Ball

_AT_A_TIME = {"cpu": 32}
_AT_A_TIME_ELSEWHERE = 512
"""Utterances of all draws together in one forward pass of an expectation. On a CPU larger batches leave the cache: with
64 an utterance takes a tenth longer, with 128 a fifth."""


class Expectation(Protocol):
    """What an adaptive attacker knows of a defence: what it may show the classifier, and how much each counts.

    `ser_fl.attacks.expectation.expectation_of` makes one of a defence.
    """

    @property
    def weights(self) -> Sequence[float]:
        """How much each of the K draws of a step counts; they sum to 1."""
        ...

    def transform(self, features_BFL: Tensor, keys_B: Sequence[str], *, step: int, draws: Sequence[int]) -> Tensor:
        """What the classifier is shown in some draws of a step; has a gradient, its own or a straight-through one.

        It depends on each utterance's key, the step and the draws alone: the same step, the same answer, whoever else
        is in the batch.

        Args:
            features_BFL: what the defence is given.
            keys_B: utterance ids.
            step: number of the step, any integer.
            draws: numbers in [0, K).

        Returns:
            Shape (draws * B, ...): all utterances in the first of the draws, then in the second, and so on.
        """
        ...


class ToFeatures(Protocol):
    """Maps what an attack moves to features; differentiable."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Features of shape (B, F, L)."""
        ...

    def subset(self, rows_N: Tensor) -> Self:
        """The same for some of the utterances."""
        ...

    def ball(self, settings: AttackSettings) -> Ball:
        """What the budget allows of each utterance."""
        ...

    def own(self, inputs: Tensor) -> Tensor:
        """What was moved, where it may be; everywhere else the clean values, bit for bit."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What the model says of one batch."""

    loss_B: Tensor
    gradient: Tensor
    """Of each utterance's own loss, in the shape of the inputs."""
    logits_BC: Tensor
    """Of a randomised model: the mean of log-probabilities over draws."""
    right_B: Tensor
    """Probability of being recognised, in [0, 1]: 0 or 1 where nothing is random."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Target:
    """A batch's model; to be used inside `ser_fl.attacks.training_attacks.attacked`."""

    network: nn.Module
    """Maps features to logits of shape (B, C)."""
    keys_B: Sequence[str]
    """Utterance ids, which draws are keyed by."""
    passes: Passes
    to_features: ToFeatures | None = None
    """None where features themselves are moved."""
    expectation: Expectation | None = None
    """None where the network alone is attacked."""

    @property
    def num_draws(self) -> int:
        """Passes an utterance in one answer."""
        return 1 if self.expectation is None else len(self.expectation.weights)

    def subset(self, rows_N: Tensor) -> Target:
        """The target of some of the utterances, which counts with this one."""
        keys_N = [self.keys_B[row] for row in rows_N.tolist()]
        front = None if self.to_features is None else self.to_features.subset(rows_N)
        return replace(self, keys_B=keys_N, to_features=front)

    def __call__(self, inputs: Tensor, step: int = 0) -> Tensor:
        """Logits of shape (B, C); differentiable where the inputs ask for a gradient.

        Of a randomised model they are the mean of log-probabilities over the draws of a step.
        """
        features_BFL = self.features(inputs)
        if self.expectation is None:
            return self._run(features_BFL)
        drawn = self._drawn(self.expectation, features_BFL, step)
        return torch.stack([weight * F.log_softmax(logits_BC, dim=1) for weight, logits_BC in drawn]).sum(0)

    @torch.no_grad()
    def right(self, inputs: Tensor, labels_B: Tensor, step: int = 0) -> Tensor:
        """Probability of each utterance of being recognised, shape (B,)."""
        return self.score(inputs, labels_B, cross_entropy, step=step)[1]

    @torch.no_grad()
    def score(self, inputs: Tensor, labels_B: Tensor, loss: Loss, *, step: int = 0) -> tuple[Tensor, Tensor]:
        """Loss and probability of being recognised, each of shape (B,): those of `answer`, without its gradient.

        It costs one forward pass an utterance and draw.
        """
        features_BFL = self.features(inputs)
        if self.expectation is None:
            return loss(logits_BC := self._run(features_BFL), labels_B), _recognised(logits_BC, labels_B)
        parts = [
            torch.stack([weight * loss(logits_BC, labels_B), weight * _recognised(logits_BC, labels_B)])
            for weight, logits_BC in self._drawn(self.expectation, features_BFL, step)
        ]
        loss_B, right_B = torch.stack(parts).sum(0)
        return loss_B, right_B

    def answer(self, inputs: Tensor, labels_B: Tensor, loss: Loss, *, step: int = 0) -> Answer:
        """Loss, gradient and recognition of a batch: one forward and one backward pass an utterance and draw.

        In expectation, loss and gradient are weighted means of those of every draw, which is not the loss of a mean
        prediction: a draw that is still right counts, however sure the others are.

        Args:
            inputs: what is moved, shape (B, ...).
            labels_B: true classes.
            loss: to be raised.
            step: number of the step, which chooses the draws: the same step, the same draws (common random numbers).
        """
        inputs = inputs.detach().requires_grad_()
        if self.expectation is None:
            logits_BC = self._run(self.features(inputs))
            loss_B = loss(logits_BC, labels_B)
            self.passes.backward += len(inputs)
            # By the mean, as ART and adversarial training go, whose rounding the signs of small gradients share.
            (gradient,) = torch.autograd.grad(loss_B.mean(), inputs)
            gradient, logits_BC = gradient * len(inputs), logits_BC.detach()
            return Answer(loss_B.detach(), gradient, logits_BC, _recognised(logits_BC, labels_B))
        features_BFL = self.features(inputs)
        shown_BFL = features_BFL.detach().requires_grad_()
        gradient_BFL = torch.zeros_like(shown_BFL)
        means: list[list[Tensor]] = []
        # Some draws at a time, each lot forward and backward, so that memory does not grow with the number of draws.
        for draws in self._lots(self.expectation, inputs):
            raised = []
            for weight, logits_BC in self._together(self.expectation, shown_BFL, step, draws):
                raised.append(weight * loss(logits_BC, labels_B))
                seen_BC = logits_BC.detach()
                right_B = weight * _recognised(seen_BC, labels_B)
                means.append([raised[-1].detach(), weight * F.log_softmax(seen_BC, dim=1), right_B])
            self.passes.backward += len(inputs) * len(draws)
            gradient_BFL += torch.autograd.grad(torch.stack(raised).sum(), shown_BFL)[0]
        loss_B, logits_BC, right_B = (torch.stack(parts).sum(0) for parts in zip(*means, strict=True))
        gradient = gradient_BFL
        if self.to_features is not None:
            (gradient,) = torch.autograd.grad(features_BFL, inputs, gradient_BFL)
        return Answer(loss_B, gradient, logits_BC, right_B)

    def features(self, inputs: Tensor) -> Tensor:
        """What the classifier, or the defence in front of it, is shown: shape (B, F, L)."""
        return inputs if self.to_features is None else self.to_features(inputs)

    def _run(self, features_BFL: Tensor) -> Tensor:
        self.passes.forward += len(features_BFL)
        logits_BC: Tensor = self.network(features_BFL)
        return logits_BC

    def _drawn(self, expectation: Expectation, features_BFL: Tensor, step: int) -> Iterator[tuple[float, Tensor]]:
        """Weight and logits of every draw of a step."""
        for draws in self._lots(expectation, features_BFL):
            yield from self._together(expectation, features_BFL, step, draws)

    def _together(
        self, expectation: Expectation, features_BFL: Tensor, step: int, draws: range
    ) -> list[tuple[float, Tensor]]:
        """Weight and logits of some draws, by one forward pass."""
        shown = expectation.transform(features_BFL, self.keys_B, step=step, draws=draws)
        parts = torch.split(self._run(shown), len(features_BFL))
        return [(expectation.weights[draw], logits_BC) for draw, logits_BC in zip(draws, parts, strict=True)]

    @staticmethod
    def _lots(expectation: Expectation, inputs: Tensor) -> Iterator[range]:
        """The draws of a step, in lots that go forward together."""
        size = max(1, _AT_A_TIME.get(inputs.device.type, _AT_A_TIME_ELSEWHERE) // max(len(inputs), 1))
        for first in range(0, len(expectation.weights), size):
            yield range(first, min(first + size, len(expectation.weights)))


def _recognised(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """1 where the prediction is right, 0 elsewhere, shape (B,)."""
    return (logits_BC.argmax(1) == labels_B).float()

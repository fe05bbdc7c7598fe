"""TRADES: the clean loss, and how far predictions move within the budget.

Legend: B batch, F mel bins, L frames, C classes.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser_fl.attacks.training_attacks import divergence, pgd, random_start
from ser_fl.training.objectives.adversarial import Adversarial
from ser_fl.training.objectives.objective import ClientRound, TrainingPlan

_CLOSE = 0.02
"""Where the attack starts, as a share of epsilon: at x itself the divergence has no gradient. The authors start within
0.001 at an epsilon of 0.031 (by Gaussian noise; here it is uniform)."""


class Trades(Adversarial):
    """Cross-entropy of the clean batch and beta times the divergence of its adversarial predictions.

    Zhang et al. (arXiv 1901.08573, equation 5), as in the authors' code: the mean over utterances of
    KL(p(x) || p(x')), x' found by PGD on that divergence from a start close to x, and both sides trained.
    """

    def start_adversarial_round(self, given: ClientRound, epsilon: float) -> TrainingPlan:
        """All examples, clean; each step attacks its own."""
        return given.on_all(partial(self.trades_loss, given, epsilon))

    def trades_loss(
        self, given: ClientRound, epsilon: float, network: nn.Module, features_BFL: Tensor, labels_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Both halves go through the network in one forward pass, so that batch norm sees them together.

        Returns:
            The loss, and the clean utterances' logits of shape (B, C).
        """
        with given.watch.part("attack"):
            adversarial_BFL = pgd(
                network,
                features_BFL,
                None,
                epsilon=epsilon,
                step_size=self.attack.step_size(epsilon),
                steps=self.config.steps,
                box=given.box,
                start_BFL=random_start(features_BFL, _CLOSE * epsilon, given.stream),
                low_precision=given.low_precision,
            )
        logits_BC, adversarial_BC = network(torch.cat([features_BFL, adversarial_BFL])).float().chunk(2)
        clean = F.cross_entropy(logits_BC, labels_B, label_smoothing=given.augmentation.label_smoothing)
        assert self.config.beta is not None, "checked with the configuration"
        return clean + self.config.beta * divergence(logits_BC, adversarial_BC).mean(), logits_BC

"""Free adversarial training: one forward and one backward pass serve the weights and the attack.

Legend: B batch, F mel bins, L frames.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from ser_fl.attacks.threat_model import Box
from ser_fl.training.objectives.adversarial import Adversarial
from ser_fl.training.objectives.objective import ClientRound, TrainingPlan


class Free(Adversarial):
    """Free adversarial training (Shafahi et al., arXiv 1904.12843, algorithm 1).

    It trains on every minibatch several times in a row, with a perturbation that each of these replays moves by the way
    (`FreePerturbation`); utterances are augmented once, before the replays. The paper divides the number of epochs by
    that of replays, so that training costs what clean training does. Here it is a client's round that does, since
    rounds are what schedules, patience and comparisons count: with m replays each local epoch takes one in m
    minibatches, and a second local epoch goes on with those that have not come yet. That makes as many steps as a clean
    epoch, up to half of one minibatch's replays, and at least one minibatch's: a client of fewer than m minibatches
    takes more. A client's weight in the average stays the number of its utterances. The default of 4 replays is the
    authors' for inputs of a spectrogram's size (ImageNet): more of them make a stronger attack, on fewer utterances a
    round. Its steps are single ones: look for the collapse of `Fast`.
    """

    def start_adversarial_round(self, given: ClientRound, epsilon: float) -> TrainingPlan:
        """A perturbation of this round's own."""
        assert self.config.replays is not None, "checked with the configuration"
        perturbation = FreePerturbation(epsilon, self.attack.step_size(epsilon), given.box)
        return given.on_all(partial(self.perturbed_loss, given, perturbation), self.config.replays)

    def perturbed_loss(
        self,
        given: ClientRound,
        perturbation: FreePerturbation,
        network: nn.Module,
        features_BFL: Tensor,
        labels_B: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the moved batch."""
        return self.loss(given, network, perturbation(features_BFL), labels_B)


class FreePerturbation:
    """The perturbation of one client in one round.

    Called once a training step, it gives the batch moved by the perturbation; when the step's own backward pass reaches
    the batch, its gradient moves the perturbation by ``step_size`` in each cell, clipped to epsilon. The next step sees
    that: the next replay of the minibatch or, as in the paper, the first one of the next minibatch. Minibatches differ
    in size by one utterance, the larger ones first; as in the authors' code a smaller one takes the first rows.

    The gradient is that of the loss which trains the weights, label smoothing included, in training mode: batch norm by
    the statistics of the batch (unless it is frozen) and with dropout, while the other objectives attack in eval mode.
    It is taken at the features inside the box, so that a cell on a side of the box has one too.

    It starts at zero, as there: the first step of a round is a clean one.

    Args:
        epsilon: radius of the L-infinity ball, >= 0, in units of the features.
        step_size: how far each step moves every cell, same units; the paper's is epsilon.
        box: the values that features may take.
    """

    def __init__(self, epsilon: float, step_size: float, box: Box) -> None:
        self.epsilon = epsilon
        self.step_size = step_size
        self.box = box
        self.perturbation_BFL: Tensor | None = None

    def __call__(self, features_BFL: Tensor) -> Tensor:
        """The batch to train on, within epsilon and the box; a leaf that requires its gradient."""
        if self.perturbation_BFL is None:
            self.perturbation_BFL = torch.zeros_like(features_BFL)
            self.box = self.box.to(features_BFL.device)
        perturbation_BFL = self.perturbation_BFL[: len(features_BFL)]
        moved_BFL = self.box.clip(features_BFL + perturbation_BFL).requires_grad_()
        # Runs in the step's own backward pass.
        moved_BFL.register_hook(partial(self._ascend, perturbation_BFL))  # type: ignore[no-untyped-call]
        return moved_BFL

    def _ascend(self, perturbation_BFL: Tensor, gradient_BFL: Tensor) -> None:
        perturbation_BFL.add_(gradient_BFL.sign(), alpha=self.step_size).clamp_(-self.epsilon, self.epsilon)

"""An objective of your own: the focal loss (arXiv 1708.02002), which gives confident utterances less weight."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

import ser_fl
from ser_fl.training.objectives import ClientRound, Objective


class Focal(Objective):
    """(1 - p)^gamma times the cross-entropy, p being the probability of the true class; gamma = 0 is clean training."""

    def __init__(self, gamma: float = 2.0) -> None:
        self.gamma = gamma

    def loss(
        self, given: ClientRound, network: nn.Module, features_BFL: Tensor, labels_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss of a training step, and its logits."""
        logits_BC: Tensor = network(features_BFL)
        losses_B = F.cross_entropy(logits_BC, labels_B, reduction="none")
        focal_B = (1 - (-losses_B).exp()) ** self.gamma * losses_B
        return given.mean(focal_B, labels_B), logits_BC


def main() -> None:
    """Two rounds of two clients."""
    run = ser_fl.train(ser_fl.compose(["experiment=debug"]), objective=Focal(gamma=1.0))
    print(f"test UAR {run.metrics().uar:.3f}")


if __name__ == "__main__":
    main()

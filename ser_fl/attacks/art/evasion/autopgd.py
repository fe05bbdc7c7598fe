"""AutoPGD as an attack of ART."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from ser_fl.attacks.art.evasion.base import BallAttack
from ser_fl.attacks.autopgd import restarted
from ser_fl.attacks.losses import Loss, cross_entropy, difference_of_logits_ratio
from ser_fl.attacks.target import Target
from ser_fl.attacks.threat_model import Box
from ser_fl.errors import unknown_name
from ser_fl.randomness import generator

LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "difference_logits_ratio": difference_of_logits_ratio,
}
"""Under ART's names."""


class AutoPGD(BallAttack):
    """AutoPGD (Croce and Hein 2020, arXiv 2003.01690); stands in for AutoProjectedGradientDescent.

    Args:
        estimator: a PyTorchClassifier whose model gives logits.
        norm: np.inf, "inf", 2 or "2".
        eps: radius of the ball, in the units of the inputs.
        max_iter: steps.
        nb_random_init: random starts; 0 starts once, at the input.
        loss_type: a key of `LOSSES`.
        batch_size: inputs at a time.
        seed: of the random starts.
    """

    attack_params: ClassVar[list[str]] = [*BallAttack.attack_params, "nb_random_init", "loss_type"]

    def __init__(
        self,
        estimator: Any,
        norm: float | str = np.inf,
        eps: float = 0.3,
        max_iter: int = 100,
        nb_random_init: int = 1,
        loss_type: str = "cross_entropy",
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__(estimator, norm=norm, eps=eps, max_iter=max_iter, batch_size=batch_size, seed=seed)
        self.nb_random_init, self.loss_type = nb_random_init, loss_type
        self._check_params()

    def _craft(self, target: Target, clean: Tensor, labels_B: Tensor, box: Box) -> Tensor:
        ball = self._ball(clean)

        def starts(rows_N: Tensor, number: int) -> Tensor | None:
            if not self.nb_random_init:
                return None
            streams = (generator("apgd", self.seed, target.keys_B[row], number) for row in rows_N.tolist())
            return ball.subset(rows_N).random(streams)

        return restarted(
            target,
            ball,
            labels_B,
            losses=[lambda rows_N: LOSSES[self.loss_type]] * max(self.nb_random_init, 1),
            starts=starts,
            steps=self.max_iter,
            box=box,
        )

    def _check_params(self) -> None:
        super()._check_params()
        if (name := getattr(self, "loss_type", "cross_entropy")) not in LOSSES:
            raise unknown_name("loss_type", name, LOSSES)

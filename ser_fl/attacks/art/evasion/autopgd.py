"""AutoPGD as an attack of ART."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from ser_fl.attacks.art.evasion.base import BallAttack
from ser_fl.attacks.art.evasion.parameters import Parameter, choice, refused, whole
from ser_fl.attacks.autopgd import restarted
from ser_fl.attacks.losses import Loss, cross_entropy, difference_of_logits_ratio
from ser_fl.attacks.target import Target
from ser_fl.attacks.threat_model import Box

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
        given: ``targeted``, ``batch_size``, ``seed`` and ``verbose``, as of `BallAttack`.
    """

    parameters: ClassVar[Mapping[str, Parameter]] = {
        **BallAttack.parameters,
        "nb_random_init": whole(1, least=0),
        "loss_type": choice("cross_entropy", LOSSES),
        "eps_step": refused(None, "AutoPGD begins at twice eps and chooses its steps by itself"),
    }

    def _craft(self, target: Target, clean: Tensor, labels_B: Tensor, box: Box) -> Tensor:
        ball = self._ball(clean)

        def starts(rows_N: Tensor, number: int) -> Tensor | None:
            if not self.nb_random_init:
                return None
            return self._start(target.subset(rows_N), ball.subset(rows_N), "apgd", number)

        return restarted(
            target,
            ball,
            labels_B,
            losses=[lambda rows_N: LOSSES[self.loss_type]] * max(self.nb_random_init, 1),
            starts=starts,
            steps=self.max_iter,
            box=box,
        )

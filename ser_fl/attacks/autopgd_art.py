"""AutoPGD as an attack of ART's, for those who run ART's attacks one after another on an estimator of their own."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ser_fl.attacks.autopgd import restarted
from ser_fl.attacks.ball import Ball
from ser_fl.attacks.budget import Box
from ser_fl.attacks.estimator import Array, Passes, import_art
from ser_fl.attacks.gradient import attacked
from ser_fl.attacks.losses import Loss, cross_entropy, difference_of_logits_ratio
from ser_fl.attacks.victim import Victim
from ser_fl.errors import UserError, unknown_name
from ser_fl.randomness import generator

LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "difference_logits_ratio": difference_of_logits_ratio,
}
"""Under ART's names."""


class _Preprocessed(nn.Module):
    """An estimator's model behind its preprocessing, such as ART's own standardisation."""

    def __init__(self, estimator: Any) -> None:
        super().__init__()
        self._estimator = (estimator,)  # in a tuple, so that its model is no child of this one

    def forward(self, inputs: Tensor) -> Tensor:
        (estimator,) = self._estimator
        shown, _ = estimator._apply_preprocessing(inputs, y=None, fit=False, no_grad=False)
        logits_BC: Tensor = estimator.model(shown)
        return logits_BC


@cache
def autopgd_class() -> type[Any]:
    """An ``art.attacks.attack.EvasionAttack`` that takes the arguments of AutoProjectedGradientDescent.

    Where it differs: it stays on tensors, asks for one forward and one backward pass a step, leaves the model's modes
    and gradients as they were, runs recurrent layers in eval mode, and draws each start by (seed, row, restart).
    """
    import_art()
    from art.attacks.attack import EvasionAttack
    from art.estimators.classification import PyTorchClassifier

    class AutoPGD(EvasionAttack):  # type: ignore[misc]
        """AutoPGD (Croce and Hein 2020, arXiv 2003.01690) on a PyTorchClassifier.

        Args:
            estimator: over a module that maps inputs of any shape (B, ...) to logits of shape (B, C).
            norm: "inf" or numpy.inf, or 2.
            eps: radius of the ball, in the units of the inputs.
            max_iter: steps.
            nb_random_init: random starts; 0 starts once, at the clean input.
            loss_type: a key of `LOSSES`.
            batch_size: inputs at a time.
            seed: of the random starts.
        """

        attack_params = [  # noqa: RUF012 - ART's own way
            *EvasionAttack.attack_params,
            *("norm", "eps", "max_iter", "nb_random_init", "loss_type", "batch_size", "seed"),
        ]
        _estimator_requirements = (PyTorchClassifier,)

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
            super().__init__(estimator=estimator)
            self.norm, self.eps, self.max_iter, self.nb_random_init = norm, eps, max_iter, nb_random_init
            self.loss_type, self.batch_size, self.seed = loss_type, batch_size, seed
            self._check_params()

        def generate(self, x: Array, y: Any = None, **kwargs: Any) -> Array:
            """Adversarial inputs of the shape of ``x``.

            Args:
                x: clean inputs, float32.
                y: true classes, indices or one-hot rows; None for what the model predicts.
                kwargs: none; ART's signature has them.
            """
            labels = self.estimator.predict(x, batch_size=self.batch_size) if y is None else np.asarray(y)
            labels_B = torch.from_numpy(labels.argmax(1) if labels.ndim == 2 else labels).long()
            made = [
                self._batch(x[first : first + self.batch_size], labels_B[first : first + self.batch_size], first)
                for first in range(0, len(x), self.batch_size)
            ]
            return np.concatenate(made)

        def _batch(self, x: Array, labels_B: Tensor, first: int) -> Array:
            network, device = _Preprocessed(self.estimator), self.estimator.device
            keys_B = [str(first + row) for row in range(len(x))]
            with attacked(self.estimator.model):
                clean = torch.from_numpy(x).to(device)
                radius_B = torch.full((len(x),), float(self.eps), device=device)
                ball = Ball(clean, radius_B, "2" if self.norm in (2, "2") else "inf")

                def starts(rows_N: Tensor, number: int) -> Tensor | None:
                    if not self.nb_random_init:
                        return None
                    streams = (generator("apgd", self.seed, keys_B[row], number) for row in rows_N.tolist())
                    return ball.subset(rows_N).random(streams)

                made = restarted(
                    Victim(network=network, keys_B=keys_B, passes=Passes()),
                    ball,
                    labels_B.to(device),
                    losses=[lambda rows_N: LOSSES[self.loss_type]] * max(self.nb_random_init, 1),
                    starts=starts,
                    steps=self.max_iter,
                    box=self._box(device),
                )
            adversarial: Array = made.cpu().numpy()
            return adversarial

        def _box(self, device: torch.device) -> Box:
            if self.estimator.clip_values is None:
                return Box.unbounded()
            lower, upper = (torch.as_tensor(side, dtype=torch.float32) for side in self.estimator.clip_values)
            return Box(lower.to(device), upper.to(device))

        def _check_params(self) -> None:
            if self.norm not in (np.inf, "inf", 2, "2"):
                raise UserError(f"norm must be inf or 2, got {self.norm!r}")
            if self.loss_type not in LOSSES:
                raise unknown_name("loss_type", self.loss_type, LOSSES)
            if self.eps < 0 or self.max_iter < 1 or self.nb_random_init < 0:
                raise UserError(
                    f"eps and nb_random_init must be >= 0 and max_iter >= 1, got {self.eps}, {self.nb_random_init} "
                    f"and {self.max_iter}"
                )
            if not self.estimator.all_framework_preprocessing:
                raise UserError("AutoPGD needs gradients of the preprocessing: take ART's PyTorch classes for it")

    return AutoPGD

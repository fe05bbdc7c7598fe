"""Attacks of your own in the benchmark: a class of ART's kind, and a plain function.

The benchmark makes what ART's attacks need, clips what comes back to the values that features may take, and counts an
utterance as broken only if it stayed within epsilon.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from art.estimators.estimator import BaseEstimator, LossGradientsMixin
from art.utils import check_and_transform_label_format
from torch import Tensor, nn

import ser_fl

EPSILON = 0.1


class Colouring(EvasionAttack):
    """One step up or down for each mel bin, the same in all frames: a microphone that sounds different."""

    attack_params: ClassVar[list[str]] = [*EvasionAttack.attack_params, "eps"]
    _estimator_requirements = (BaseEstimator, LossGradientsMixin)

    def __init__(self, estimator: Any, eps: float = EPSILON) -> None:
        super().__init__(estimator=estimator)
        self.eps = eps

    def generate(self, x: np.ndarray, y: np.ndarray | None = None, **kwargs: Any) -> np.ndarray:
        """Adversarial versions of x."""
        labels = check_and_transform_label_format(y, nb_classes=self.estimator.nb_classes)
        gradient = self.estimator.loss_gradient(x, labels)
        return x + self.eps * np.sign(gradient.sum(axis=-1, keepdims=True))


def louder(model: nn.Module, features_BFL: Tensor, labels_B: Tensor) -> Tensor:
    """No look at the model: everything louder."""
    return features_BFL + EPSILON * torch.ones_like(features_BFL)


def main() -> None:
    """Both beside PGD, on a model of the built-in corpus."""
    run = ser_fl.train(
        ser_fl.compose(["experiment=debug", "federation.local_epochs=10", "optimiser.learning_rate=0.01"])
    )
    test = run.test_set()
    attacks = [Colouring, louder, {"name": "pgd", "steps": 10, "restarts": 1}]
    records = ser_fl.benchmark(run.load(), test.features_NFL, test.labels_N, attacks=attacks, epsilons=[EPSILON])
    for record in records:
        print(f"{record.attack:10}  UAR {record.robust_uar:.3f}")


if __name__ == "__main__":
    main()

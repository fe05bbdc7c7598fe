"""What our attacks share as attacks of ART: batches, labels, the box, and a model that is left as it was.

Legend: B inputs; whatever follows B is their shape.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ser_fl.attacks.art.estimator import Array, Passes, import_art
from ser_fl.attacks.ball import Ball
from ser_fl.attacks.target import Expectation, Target
from ser_fl.attacks.threat_model import Box, Norm
from ser_fl.attacks.training_attacks import attacked

import_art()  # before anything else does, which would close log files
from art.attacks.attack import EvasionAttack  # noqa: E402
from art.estimators.classification import PyTorchClassifier  # noqa: E402


class _Classified(nn.Module):
    """What an estimator makes of inputs: its preprocessing, then its model."""

    def __init__(self, estimator: Any) -> None:
        super().__init__()
        self.model = estimator.model
        self._estimator = estimator

    def forward(self, inputs: Tensor) -> Tensor:
        prepared, _ = self._estimator._apply_preprocessing(inputs, y=None, fit=False, no_grad=False)
        logits_BC: Tensor = self.model(prepared)
        return logits_BC


class TensorAttack(EvasionAttack):  # type: ignore[misc]
    """An attack of ours on a PyTorchClassifier whose model gives logits.

    Unlike ART's own, they differentiate recurrent layers in evaluation mode, touch no gradient of a parameter, and take
    ``clip_values=None`` to mean that there is no box, rather than the range of whatever they are given.
    """

    attack_params: ClassVar[list[str]] = [*EvasionAttack.attack_params, "targeted", "batch_size"]
    _least: ClassVar[dict[str, int]] = {}
    """The smallest value of whole numbers that may be less than 1."""
    _estimator_requirements = (PyTorchClassifier,)

    def __init__(self, classifier: Any, *, targeted: bool = False, batch_size: int = 64) -> None:
        super().__init__(estimator=classifier)
        self.targeted = targeted
        self.batch_size = batch_size

    def generate(self, x: Array, y: npt.NDArray[Any] | None = None, **kwargs: Any) -> Array:
        """Adversarial inputs, float32, in the shape of x; the inputs themselves, clipped, where nothing was found.

        Args:
            x: inputs, shape (B, ...).
            y: true classes (target classes, if targeted), indices of shape (B,) or one-hot of shape (B, C). None for
                those that the model predicts.
            kwargs: none are known.

        Raises:
            ValueError: a targeted attack without targets, or a word that is not known.
            NotImplementedError: the estimator preprocesses with NumPy, which no gradient passes.
        """
        if kwargs:
            raise ValueError(f"{type(self).__name__} knows no {', '.join(kwargs)}")
        if y is None and self.targeted:
            raise ValueError("Target labels `y` need to be provided for a targeted attack.")
        if not self.estimator.all_framework_preprocessing:
            raise NotImplementedError("the estimator preprocesses with NumPy: take preprocessors of PyTorch")
        network, device = _Classified(self.estimator), self.estimator.device
        made = []
        with attacked(network):
            for first in range(0, len(x), self.batch_size):
                inputs = torch.from_numpy(x[first : first + self.batch_size].astype(np.float32)).to(device)
                target = Target(
                    network=network,
                    keys_B=[str(first + row) for row in range(len(inputs))],
                    passes=Passes(),
                    expectation=self._expectation(),
                )
                if y is None:
                    with torch.no_grad():
                        labels_B = network(inputs).argmax(1)
                else:
                    labels_B = torch.from_numpy(_indices(y)[first : first + self.batch_size]).to(device)
                box = self._box(device)
                made.append(self._craft(target, box.clip(inputs), labels_B, box).cpu().numpy())
        return np.concatenate(made) if made else x.astype(np.float32)

    @abstractmethod
    def _craft(self, target: Target, clean: Tensor, labels_B: Tensor, box: Box) -> Tensor:
        """Adversarial inputs of one batch."""

    def _expectation(self) -> Expectation | None:
        """What the attacker knows of randomness in front of the model."""
        return None

    def _box(self, device: torch.device) -> Box:
        if self.estimator.clip_values is None:
            return Box.unbounded()
        lower, upper = (torch.as_tensor(side, dtype=torch.float32) for side in self.estimator.clip_values)
        return Box(lower, upper).to(device)

    def _check_params(self) -> None:
        super()._check_params()
        for word in self.attack_params:
            value, least = getattr(self, word, None), self._least.get(word, 1)
            if type(value) is int and value < least:
                raise ValueError(f"{word} must be >= {least}, got {value}")


class BallAttack(TensorAttack):
    """An attack of ours that stays in a ball, from random starts that are keyed by (seed, row, start).

    Args:
        estimator: a PyTorchClassifier whose model gives logits.
        norm: np.inf, "inf", 2 or "2".
        eps: radius of the ball, in the units of the inputs, >= 0.
        max_iter: steps of each start.
        batch_size: inputs at a time.
        seed: of the starts.
    """

    attack_params: ClassVar[list[str]] = [
        *EvasionAttack.attack_params,
        *("batch_size", "norm", "eps", "max_iter", "seed"),
    ]
    _least: ClassVar[dict[str, int]] = {"seed": 0, "nb_random_init": 0, "num_random_init": 0}

    def __init__(
        self, estimator: Any, *, norm: float | str, eps: float, max_iter: int, batch_size: int, seed: int
    ) -> None:
        super().__init__(estimator, batch_size=batch_size)
        self.norm, self.eps, self.max_iter, self.seed = norm, float(eps), max_iter, seed

    def _ball(self, clean: Tensor) -> Ball:
        norm: Norm = "2" if self.norm in (2, "2") else "inf"
        return Ball(clean, clean.new_full((len(clean),), self.eps), norm)

    def _check_params(self) -> None:
        super()._check_params()
        if getattr(self, "norm", 2) not in (np.inf, "inf", 2, "2"):
            raise ValueError(f"norm must be inf or 2, got {self.norm!r}")
        if not 0 <= getattr(self, "eps", 0.0) < np.inf:
            raise ValueError(f"eps must be >= 0 and finite, got {self.eps}")


def _indices(y: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Classes as indices, whichever way ART's users give them."""
    return (y.argmax(axis=1) if y.ndim == 2 and y.shape[1] > 1 else y.reshape(-1)).astype(np.int64)

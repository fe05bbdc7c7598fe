"""Our attacks as evasion attacks of ART, for any of its PyTorchClassifiers and inputs of any shape.

They are used like ART's own: ``CarliniWagnerL2(classifier).generate(x, y)``. Importing this module imports ART.

Legend: B inputs; whatever follows is their shape.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ser_fl.attacks.budget import Box, Norm
from ser_fl.attacks.carlini_wagner import carlini_wagner_l2, carlini_wagner_linf
from ser_fl.attacks.estimator import Array, Passes, import_art
from ser_fl.attacks.fmn import fast_minimum_norm
from ser_fl.attacks.gradient import attacked
from ser_fl.attacks.victim import Victim

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
    """What all of them share: batches, labels, the box, and a model that is left as it was.

    Unlike ART's own, they differentiate recurrent layers in evaluation mode, touch no gradient of a parameter, and take
    ``clip_values=None`` to mean that there is no box, rather than the range of whatever they are given.
    """

    attack_params: ClassVar[list[str]] = [*EvasionAttack.attack_params, "targeted", "batch_size"]
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
                victim = Victim(
                    network=network, keys_B=[str(first + row) for row in range(len(inputs))], passes=Passes()
                )
                if y is None:
                    with torch.no_grad():
                        labels_B = network(inputs).argmax(1)
                else:
                    labels_B = torch.from_numpy(_indices(y)[first : first + self.batch_size]).to(device)
                box = self._box(device)
                made.append(self._craft(victim, box.clip(inputs), labels_B, box).cpu().numpy())
        return np.concatenate(made) if made else x.astype(np.float32)

    @abstractmethod
    def _craft(self, victim: Victim, clean: Tensor, labels_B: Tensor, box: Box) -> Tensor:
        """Adversarial inputs of one batch."""

    def _box(self, device: torch.device) -> Box:
        if self.estimator.clip_values is None:
            return Box.unbounded()
        lower, upper = (torch.as_tensor(side, dtype=torch.float32) for side in self.estimator.clip_values)
        return Box(lower, upper).to(device)

    def _check_params(self) -> None:
        super()._check_params()
        for word in self.attack_params:
            value = getattr(self, word, None)
            if type(value) is int and value < 1:
                raise ValueError(f"{word} must be >= 1, got {value}")


class CarliniWagnerL2(TensorAttack):
    """Carlini and Wagner's L2 attack, `ser_fl.attacks.carlini_wagner.carlini_wagner_l2`; stands in for
    CarliniL2Method.

    Args:
        classifier: an ART PyTorchClassifier whose model gives logits.
        max_iter: iterations for each constant, at most.
        binary_search_steps: constants that are tried.
        targeted: towards the labels rather than away from them.
        batch_size: inputs at a time.
    """

    attack_params: ClassVar[list[str]] = [*TensorAttack.attack_params, "max_iter", "binary_search_steps"]

    def __init__(
        self,
        classifier: Any,
        *,
        max_iter: int = 20,
        binary_search_steps: int = 3,
        targeted: bool = False,
        batch_size: int = 64,
    ) -> None:
        super().__init__(classifier, targeted=targeted, batch_size=batch_size)
        self.max_iter = max_iter
        self.binary_search_steps = binary_search_steps
        self._check_params()

    def _craft(self, victim: Victim, clean: Tensor, labels_B: Tensor, box: Box) -> Tensor:
        return carlini_wagner_l2(
            victim,
            clean,
            labels_B,
            box=box,
            steps=self.max_iter,
            search_steps=self.binary_search_steps,
            targeted=self.targeted,
        )


class CarliniWagnerLInf(TensorAttack):
    """Carlini and Wagner's L-infinity attack, `ser_fl.attacks.carlini_wagner.carlini_wagner_linf`; stands in for
    CarliniLInfMethod.

    Args:
        classifier: an ART PyTorchClassifier whose model gives logits.
        initial_tau: the largest change of a value that is looked at, >= 0.
        max_iter: iterations, for all bounds together.
        targeted: towards the labels rather than away from them.
        batch_size: inputs at a time.
    """

    attack_params: ClassVar[list[str]] = [*TensorAttack.attack_params, "initial_tau", "max_iter"]

    def __init__(
        self,
        classifier: Any,
        *,
        initial_tau: float = 1.0,
        max_iter: int = 40,
        targeted: bool = False,
        batch_size: int = 64,
    ) -> None:
        super().__init__(classifier, targeted=targeted, batch_size=batch_size)
        self.initial_tau = float(initial_tau)
        self.max_iter = max_iter
        self._check_params()

    def _craft(self, victim: Victim, clean: Tensor, labels_B: Tensor, box: Box) -> Tensor:
        return carlini_wagner_linf(
            victim,
            clean,
            labels_B,
            tau_B=clean.new_full((len(clean),), self.initial_tau),
            box=box,
            steps=self.max_iter,
            targeted=self.targeted,
        )

    def _check_params(self) -> None:
        super()._check_params()
        if not getattr(self, "initial_tau", 0.0) >= 0:
            raise ValueError(f"initial_tau must be >= 0, got {self.initial_tau}")


class FastMinimumNorm(TensorAttack):
    """The fast minimum-norm attack, `ser_fl.attacks.fmn.fast_minimum_norm`, which ART does not have.

    Args:
        classifier: an ART PyTorchClassifier whose model gives logits.
        norm: the norm that is made small, np.inf, "inf" or 2.
        max_iter: iterations.
        targeted: towards the labels rather than away from them.
        batch_size: inputs at a time.
    """

    attack_params: ClassVar[list[str]] = [*TensorAttack.attack_params, "norm", "max_iter"]

    def __init__(
        self,
        classifier: Any,
        *,
        norm: float | str = np.inf,
        max_iter: int = 30,
        targeted: bool = False,
        batch_size: int = 64,
    ) -> None:
        super().__init__(classifier, targeted=targeted, batch_size=batch_size)
        self.norm = norm
        self.max_iter = max_iter
        self._check_params()

    def _craft(self, victim: Victim, clean: Tensor, labels_B: Tensor, box: Box) -> Tensor:
        norm: Norm = "2" if self.norm in (2, "2") else "inf"
        return fast_minimum_norm(
            victim, clean, labels_B, norm=norm, box=box, steps=self.max_iter, targeted=self.targeted
        )

    def _check_params(self) -> None:
        super()._check_params()
        if getattr(self, "norm", 2) not in (np.inf, "inf", 2, "2"):
            raise ValueError(f'norm must be np.inf, "inf" or 2, got {self.norm!r}')


def _indices(y: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Classes as indices, whichever way ART's users give them."""
    return (y.argmax(axis=1) if y.ndim == 2 and y.shape[1] > 1 else y.reshape(-1)).astype(np.int64)

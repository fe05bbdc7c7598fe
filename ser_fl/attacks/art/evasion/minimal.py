"""Our attacks that look for the nearest adversarial input, as attacks of ART."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from ser_fl.attacks.art.evasion.base import TensorAttack
from ser_fl.attacks.carlini_wagner import SEARCH_STEPS, carlini_wagner_l2, carlini_wagner_linf
from ser_fl.attacks.fmn import fast_minimum_norm
from ser_fl.attacks.target import Target
from ser_fl.attacks.threat_model import Box, Norm


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
        binary_search_steps: int = SEARCH_STEPS,
        targeted: bool = False,
        batch_size: int = 64,
    ) -> None:
        super().__init__(classifier, targeted=targeted, batch_size=batch_size)
        self.max_iter = max_iter
        self.binary_search_steps = binary_search_steps
        self._check_params()

    def _craft(self, target: Target, clean: Tensor, labels_B: Tensor, box: Box) -> Tensor:
        return carlini_wagner_l2(
            target,
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

    def _craft(self, target: Target, clean: Tensor, labels_B: Tensor, box: Box) -> Tensor:
        return carlini_wagner_linf(
            target,
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

    def _craft(self, target: Target, clean: Tensor, labels_B: Tensor, box: Box) -> Tensor:
        norm: Norm = "2" if self.norm in (2, "2") else "inf"
        return fast_minimum_norm(
            target, clean, labels_B, norm=norm, box=box, steps=self.max_iter, targeted=self.targeted
        )

    def _check_params(self) -> None:
        super()._check_params()
        if getattr(self, "norm", 2) not in (np.inf, "inf", 2, "2"):
            raise ValueError(f'norm must be np.inf, "inf" or 2, got {self.norm!r}')
